"""How CPM-Bee is cut over devices: heads, inner width and vocabulary over the model axis.

Letters: b rows, t positions, u positions of the residual stream, r relation values of a row,
m targets of a row, d hidden, h heads, k head width, f inner width, v vocabulary, e extension
classes, c rows of the bias table, n numbers of a step.
"""

from __future__ import annotations

from mindplm.models.cpm_bee.config import CpmBeeConfig, parameter_shapes
from mindplm.models.plans import (
    AXES,
    EXTENDED,
    FLOAT,
    INT,
    Part,
    gated_block,
    gated_block_weights,
    loss,
    norm,
    pick,
    units,
)
from mindplm.shards import ShardPlan

_PARTS = (
    Part("model.embed.rows.gather", "vd, bt -> btd"),
    Part("model.embed.rows.rotate", "btd, bt -> btd"),
    Part(
        "model.frames.{i}.geometry",
        "bt, bt, bt, bt, bt, bt, b, br -> btt, btt, bt1",
        (INT, "bool_", "dtype"),
    ),
    Part("model.frames.{i}.bias", "ch, btt, btt -> bhtt", (FLOAT,)),
    *gated_block("model.blocks.{i}.", "bhtt", seen="bt1"),
    norm("model.final_norm", "(bu)", biased=False),
    pick("pick"),
    Part("ext_rows.gather", "vd, e -> ed"),
    Part("ext_rows.rotate", "ed, e -> ed"),
    *loss(ends=(EXTENDED,)),
)


def _block_costs(config: CpmBeeConfig) -> list[int]:
    """Weights of each block; the projection to the vocabulary follows the last one."""
    costs = [0] * config.num_layers
    for name, shape in parameter_shapes(config).items():
        if name.startswith("blocks.") and len(shape) == 2:
            costs[int(name.split(".")[1])] += shape[0] * shape[1]
    return [*costs, config.vocab_size * config.hidden_size]


PLAN = ShardPlan(
    axes=AXES,
    weights={
        "embed.weight": "vd",
        "position_bias.weight": "ch",
        **gated_block_weights("blocks.{i}."),
        "final_norm.weight": "d",
    },
    parts=_PARTS,
    columns={
        **dict.fromkeys(("ids", "subs", "context", "sample_ids", "segment_ids", "spans"), "bt"),
        **dict.fromkeys(("num_segments", "rel_offset"), "bt"),
        **{"length": "b", "segment_rel": "br", "target_pos": "bm", "targets": "bm"},
        **{"ext_ids": "e", "ext_sub": "e", "num_ext": "1"},
    },
    units=units,
    block_costs=_block_costs,
    homes={"embed.weight": "ends", "position_bias.weight": "all"},
)
