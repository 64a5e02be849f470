"""What shard plans of several families have in common: parts and weights of blocks, and the loss.

Letters: b rows, t positions, s those of a text that a decoder reads, u and w positions t and s of
the residual stream, m targets of a row, d and g hidden, h heads, k head width, f inner width, v
vocabulary, p rows of a table of positions, y of one of types, c of one of distances, e extra
classes, n numbers of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mindplm.shards import Part, ShardPlan, Unit, operand, vocab_rows

if TYPE_CHECKING:
    from mindplm.config import ParallelConfig

FLOAT, INT = "float32", "int32"
Parts = tuple[Part, ...]
Weights = dict[str, str]

AXES = {
    **{"b": "data", "h": "model", "f": "model", "v": "model"},
    **{"u": "sequence", "w": "sequence"},
}


def units(config: Any, parallel: ParallelConfig) -> Mapping[str, Unit]:
    """What the cuts of a model of these sizes must divide."""
    return {
        "h": Unit("model.num_heads", config.num_heads),
        "f": Unit("model.ffn_size", config.ffn_size),
        "v": Unit("parallel.vocab_rows", vocab_rows(config.vocab_size, parallel)),
    }


def block_costs(config: Any) -> Sequence[int]:
    """Blocks that cost the same."""
    return [1] * (config.num_layers + 1)


def plan(
    parts: Parts, weights: Weights, columns: Mapping[str, str], optional: Sequence[str] = ()
) -> ShardPlan:
    """A plan over AXES without pipeline stages; see `ShardPlan` for the arguments."""
    return ShardPlan(
        axes=AXES,
        weights=weights,
        parts=parts,
        columns=columns,
        units=units,
        block_costs=block_costs,
        staged=False,
        optional=frozenset(optional),
    )


# --- parts ----------------------------------------------------------------------------------------


def linear(path: str, spec: str, *, biased: bool = True) -> Parts:
    """A projection, such as "(bt)d, fd -> (bt)f"."""
    inputs, _, result = spec.partition(" -> ")
    first = operand(inputs.split(", ")[1])[0]
    found: Parts = (Part(path + ".matmul", spec),)
    if biased:
        found += (Part(path + ".add_bias", f"{result}, {first} -> {result}"),)
    return found


def norm(path: str, rows: str, *, biased: bool = True) -> Part:
    """A norm over d of rows such as "(bu)"."""
    return Part(path + ".norm", f"{rows}d, {'d, d' if biased else 'd'} -> {rows}d")


def attention(
    path: str, bias: str, *, rows: str = "(bt)", keys: str = "", stream: str = "(bu)", biased=True
) -> Parts:
    """Attention of rows to themselves, or to keys.

    Args:
        path: Of the attention.
        bias: Axes of its bias.
        rows: Axis of what looks.
        keys: Axis of what is looked at; "": rows.
        stream: Axis of the result.
        biased: Whether the projections have biases.
    """
    keys = keys or rows
    inner = f"{rows}(hk), {keys}(hk), {keys}(hk), {bias}, 111 -> {rows}(hk)"
    return (
        *linear(path + ".q", f"{rows}d, (hk)d -> {rows}(hk)", biased=biased),
        *linear(path + ".k", f"{keys}d, (hk)d -> {keys}(hk)", biased=biased),
        *linear(path + ".v", f"{keys}d, (hk)d -> {keys}(hk)", biased=biased),
        Part(path + ".heads", inner),
        *linear(path + ".o", f"{rows}(hk), d(hk) -> {stream}d", biased=biased),
    )


def merge(path: str, rows: str = "(bu)") -> Part:
    """A residual sum."""
    return Part(path, f"{rows}d, {rows}d -> {rows}d")


def block(
    prefix: str, bias: str, *, rows: str = "(bt)", stream: str = "(bu)", biased: bool = True
) -> Parts:
    """A block of attention to itself and a feed-forward part, before or behind norms."""
    return (
        norm(prefix + "attn_norm", stream, biased=biased),
        *attention(prefix + "attn", bias, rows=rows, stream=stream, biased=biased),
        merge(prefix + "merge_attn", stream),
        norm(prefix + "ffn_norm", stream, biased=biased),
        *linear(prefix + "ffn.up", f"{rows}d, fd -> {rows}f", biased=biased),
        Part(prefix + "ffn.activate", f"{rows}f -> {rows}f"),
        *linear(prefix + "ffn.down", f"{rows}f, df -> {stream}d", biased=biased),
        merge(prefix + "merge_ffn", stream),
    )


def encoder(path: str, *, rows: str = "(bt)", stream: str = "(bu)") -> Parts:
    """The parts of `mindplm.nn.encoder.Encoder`."""
    length = rows.strip("(b)")
    tokens, square = "b" + length, f"b1{length}{length}"
    return (
        Part(path + "embed.gather", f"vd, {tokens} -> {tokens}d"),
        Part(path + "positions.gather", f"pd, {tokens} -> {tokens}d"),
        Part(path + "types.gather", f"yd, {tokens} -> {tokens}d"),
        merge(path + "add_positions", tokens),
        merge(path + "add_types", tokens),
        norm(path + "embed_norm", rows),
        Part(path + "frame", f"{tokens} -> {square}, 111", (FLOAT, "dtype")),
        *block(path + "blocks.{i}.", square, rows=rows, stream=stream),
    )


def encoder_weights(path: str) -> Weights:
    """Those of `mindplm.nn.encoder.Encoder`."""
    return {
        path + "embed.weight": "vd",
        path + "positions.weight": "pd",
        path + "types.weight": "yd",
        **with_bias(path + "embed_norm", "d"),
        **block_weights(path + "blocks.{i}."),
    }


PICK = Part("model.pick", "(bt)d, bm, bm -> (bm)d, (bm)", ("dtype", INT))


def loss(rows: str = "(bm)", bias: str = "") -> Parts:
    """The losses of rows under a table, and their sum; bias: axes of the classes' biases."""
    biased = (
        Part("nll.add_bias", f"{rows}v, {bias} -> {rows}v"),
        Part("nll.column", f"{bias} -> v1"),
        Part("nll.gather_bias", f"v1, {rows} -> {rows}1"),
        Part("nll.less", f"{rows}, {rows}1 -> {rows}"),
    )
    return (
        Part("nll.scaled", f"{rows}d -> {rows}d"),
        Part("nll.product", f"{rows}d, vd -> {rows}v"),
        Part("nll.real", f"{rows}v, v -> {rows}v", (FLOAT,)),
        Part("nll.top", f"{rows}v -> {rows}1"),
        Part("nll.exp", f"{rows}v, {rows}1 -> {rows}v"),
        Part("nll.total", f"{rows}v -> {rows}1"),
        Part("nll.in_table", f"{rows} -> {rows}"),
        Part("nll.gather", f"vd, {rows} -> {rows}d"),
        Part("nll.finish", f"{rows}d, {rows}d, {rows}1, {rows}1 -> {rows}", (FLOAT,)),
        *(biased if bias else ()),
        Part("weigh", f"{rows}, {rows}, n -> {rows}"),
        Part("total", f"{rows} -> "),
    )


EXTENDED = Part("nll.close", "(bm)d, ed, 1, (bm), (bm)d, (bm)1, (bm)1 -> (bm)", (FLOAT,))
"""Instead of `nll.finish` where there are extra classes."""


# --- weights --------------------------------------------------------------------------------------


def with_bias(name: str, axes: str) -> Weights:
    """A weight and its bias, which has the first axis of the weight."""
    return {name + ".weight": axes, name + ".bias": operand(axes)[0]}


def attention_weights(path: str) -> Weights:
    """Projections with biases."""
    found: Weights = {}
    for name in "qkv":
        found.update(with_bias(f"{path}.{name}", "(hk)d"))
    return {**found, **with_bias(path + ".o", "d(hk)")}


def block_weights(prefix: str) -> Weights:
    """A block with biases."""
    return {
        **with_bias(prefix + "attn_norm", "d"),
        **attention_weights(prefix + "attn"),
        **with_bias(prefix + "ffn_norm", "d"),
        **with_bias(prefix + "ffn.up", "fd"),
        **with_bias(prefix + "ffn.down", "df"),
    }


# --- causal models --------------------------------------------------------------------------------


def causal(*, final_norm: bool, extended: bool) -> ShardPlan:
    """The plan of `mindplm.nn.causal.CausalModel`.

    Args:
        final_norm: Whether there is a norm behind the last block.
        extended: Whether the rows of the table of positions may be classes too.
    """
    last = (norm("model.final_norm", "(bu)"),) if final_norm else ()
    return plan(
        (
            Part("model.embed.gather", "vd, bt -> btd"),
            Part("model.positions.gather", "pd, bt -> btd"),
            merge("model.add_positions", "bt"),
            Part("model.frame", "bt -> b1tt, 111", (FLOAT, "dtype")),
            *block("model.blocks.{i}.", "b1tt"),
            *last,
            PICK,
            *loss(),
            *((EXTENDED,) if extended else ()),
        ),
        {
            "embed.weight": "vd",
            "positions.weight": "pd",
            **block_weights("blocks.{i}."),
            **(with_bias("final_norm", "d") if final_norm else {}),
        },
        {
            **dict.fromkeys(("ids", "positions", "spans"), "bt"),
            **dict.fromkeys(("target_pos", "targets"), "bm"),
        },
        ("nll.finish", "nll.close") if extended else (),
    )
