"""How CPM-Bee is cut over devices: heads, inner width and vocabulary over the model axis.

Letters: b rows, t positions, u positions of the residual stream, r relation values of a row,
m targets of a row, d hidden, h heads, k head width, f inner width, v vocabulary, e extension
classes, c rows of the bias table, n numbers of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mindplm.models.cpm_bee.config import CpmBeeConfig, parameter_shapes
from mindplm.shards import Part, ShardPlan, Unit, vocab_rows

if TYPE_CHECKING:
    from mindplm.config import ParallelConfig

_BLOCK = "model.blocks.{i}."
_FLOAT, _INT = "float32", "int32"

_PARTS = (
    Part("model.embed.rows.gather", "vd, bt -> btd"),
    Part("model.embed.rows.rotate", "btd, bt -> btd"),
    Part(
        "model.frames.{i}.geometry",
        "bt, bt, bt, bt, bt, bt, b, br -> btt, btt, bt1",
        (_INT, "bool_", "dtype"),
    ),
    Part("model.frames.{i}.bias", "ch, btt, btt -> bhtt", (_FLOAT,)),
    Part(_BLOCK + "attn_norm.norm", "(bu)d, d -> (bu)d"),
    Part(_BLOCK + "attn.q.matmul", "(bt)d, (hk)d -> (bt)(hk)"),
    Part(_BLOCK + "attn.k.matmul", "(bt)d, (hk)d -> (bt)(hk)"),
    Part(_BLOCK + "attn.v.matmul", "(bt)d, (hk)d -> (bt)(hk)"),
    Part(_BLOCK + "attn.heads", "(bt)(hk), (bt)(hk), (bt)(hk), bhtt, bt1 -> (bt)(hk)"),
    Part(_BLOCK + "attn.o.matmul", "(bt)(hk), d(hk) -> (bu)d"),
    Part(_BLOCK + "merge_attn", "(bu)d, (bu)d -> (bu)d"),
    Part(_BLOCK + "ffn_norm.norm", "(bu)d, d -> (bu)d"),
    Part(_BLOCK + "ffn.gate.matmul", "(bt)d, fd -> (bt)f"),
    Part(_BLOCK + "ffn.up.matmul", "(bt)d, fd -> (bt)f"),
    Part(_BLOCK + "ffn.act", "(bt)f, (bt)f -> (bt)f"),
    Part(_BLOCK + "ffn.down.matmul", "(bt)f, df -> (bu)d"),
    Part(_BLOCK + "merge_ffn", "(bu)d, (bu)d -> (bu)d"),
    Part("model.final_norm.norm", "(bu)d, d -> (bu)d"),
    Part("pick", "(bt)d, bm, bm -> (bm)d, (bm)", ("dtype", _INT)),
    Part("ext_rows.gather", "vd, e -> ed"),
    Part("ext_rows.rotate", "ed, e -> ed"),
    Part("nll.scaled", "(bm)d -> (bm)d"),
    Part("nll.product", "(bm)d, vd -> (bm)v"),
    Part("nll.real", "(bm)v, v -> (bm)v", (_FLOAT,)),
    Part("nll.top", "(bm)v -> (bm)1"),
    Part("nll.exp", "(bm)v, (bm)1 -> (bm)v"),
    Part("nll.total", "(bm)v -> (bm)1"),
    Part("nll.in_table", "(bm) -> (bm)"),
    Part("nll.gather", "vd, (bm) -> (bm)d"),
    Part(
        "nll.close",
        "(bm)d, ed, 1, (bm), (bm)d, (bm)1, (bm)1 -> (bm)",
        (_FLOAT,),
    ),
    Part("weigh", "(bm), (bm), n -> (bm)"),
    Part("total", "(bm) -> "),
)


def _units(config: CpmBeeConfig, parallel: ParallelConfig) -> Mapping[str, Unit]:
    return {
        "h": Unit("model.num_heads", config.num_heads),
        "f": Unit("model.ffn_size", config.ffn_size),
        "v": Unit("parallel.vocab_rows", vocab_rows(config.vocab_size, parallel)),
    }


def _block_costs(config: CpmBeeConfig) -> list[int]:
    """Weights of each block; the projection to the vocabulary follows the last one."""
    costs = [0] * config.num_layers
    for name, shape in parameter_shapes(config).items():
        if name.startswith("blocks.") and len(shape) == 2:
            costs[int(name.split(".")[1])] += shape[0] * shape[1]
    return [*costs, config.vocab_size * config.hidden_size]


PLAN = ShardPlan(
    axes={"b": "data", "h": "model", "f": "model", "v": "model", "u": "sequence"},
    weights={
        "embed.weight": "vd",
        "position_bias.weight": "ch",
        "blocks.{i}.attn_norm.weight": "d",
        "blocks.{i}.attn.q.weight": "(hk)d",
        "blocks.{i}.attn.k.weight": "(hk)d",
        "blocks.{i}.attn.v.weight": "(hk)d",
        "blocks.{i}.attn.o.weight": "d(hk)",
        "blocks.{i}.ffn_norm.weight": "d",
        "blocks.{i}.ffn.gate.weight": "fd",
        "blocks.{i}.ffn.up.weight": "fd",
        "blocks.{i}.ffn.down.weight": "df",
        "final_norm.weight": "d",
    },
    parts=_PARTS,
    columns={
        **dict.fromkeys(("ids", "subs", "context", "sample_ids", "segment_ids", "spans"), "bt"),
        **dict.fromkeys(("num_segments", "rel_offset"), "bt"),
        **{"length": "b", "segment_rel": "br", "target_pos": "bm", "targets": "bm"},
        **{"ext_ids": "e", "ext_sub": "e", "num_ext": "1"},
    },
    units=_units,
    block_costs=_block_costs,
    homes={"embed.weight": "ends", "position_bias.weight": "all"},
)
