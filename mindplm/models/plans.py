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
FINISH, EXTENDED = "nll.finish", "nll.close"
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
    path: str,
    bias: str,
    *,
    rows: str = "(bt)",
    keys: str = "",
    stream: str = "(bu)",
    seen: str = "111",
    biased: bool = True,
) -> Parts:
    """Attention of rows to themselves, or to keys.

    Args:
        path: Of the attention.
        bias: Axes of its bias.
        rows: Axis of what looks.
        keys: Axis of what is looked at; "": rows.
        stream: Axis of the result.
        seen: Axes of what says which rows see anything.
        biased: Whether the projections have biases.
    """
    keys = keys or rows
    inner = f"{rows}(hk), {keys}(hk), {keys}(hk), {bias}, {seen} -> {rows}(hk)"
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


def block(prefix: str, bias: str) -> Parts:
    """A block of attention to itself and a feed-forward part, before or behind norms."""
    return (
        norm(prefix + "attn_norm", "(bu)"),
        *attention(prefix + "attn", bias),
        merge(prefix + "merge_attn"),
        norm(prefix + "ffn_norm", "(bu)"),
        *linear(prefix + "ffn.up", "(bt)d, fd -> (bt)f"),
        Part(prefix + "ffn.activate", "(bt)f -> (bt)f"),
        *linear(prefix + "ffn.down", "(bt)f, df -> (bu)d"),
        merge(prefix + "merge_ffn"),
    )


def gated_block(
    prefix: str, bias: str, *, rows: str = "(bt)", stream: str = "(bu)", seen: str = "111"
) -> Parts:
    """A block with a gate and without biases; the arguments are those of `attention`."""
    return (
        norm(prefix + "attn_norm", stream, biased=False),
        *attention(prefix + "attn", bias, rows=rows, stream=stream, seen=seen, biased=False),
        merge(prefix + "merge_attn", stream),
        norm(prefix + "ffn_norm", stream, biased=False),
        *linear(prefix + "ffn.gate", f"{rows}d, fd -> {rows}f", biased=False),
        *linear(prefix + "ffn.up", f"{rows}d, fd -> {rows}f", biased=False),
        Part(prefix + "ffn.act", f"{rows}f, {rows}f -> {rows}f"),
        *linear(prefix + "ffn.down", f"{rows}f, df -> {stream}d", biased=False),
        merge(prefix + "merge_ffn", stream),
    )


def encoder(path: str) -> Parts:
    """The parts of `mindplm.nn.encoder.Encoder`."""
    return (
        Part(path + "embed.gather", "vd, bt -> btd"),
        Part(path + "positions.gather", "pd, bt -> btd"),
        Part(path + "types.gather", "yd, bt -> btd"),
        merge(path + "add_positions", "bt"),
        merge(path + "add_types", "bt"),
        norm(path + "embed_norm", "(bt)"),
        Part(path + "frame", "bt -> b1tt, 111", (FLOAT, "dtype")),
        *block(path + "blocks.{i}.", "b1tt"),
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


def pick(path: str = "model.pick") -> Part:
    """The rows that have a target, and the labels of all places."""
    return Part(path, "(bt)d, bm, bm -> (bm)d, (bm)", ("dtype", INT))


def loss(rows: str = "(bm)", bias: str = "", ends: Sequence[str] = (FINISH,)) -> Parts:
    """The losses of rows under a table, and their sum.

    Args:
        rows: Axis of what is projected.
        bias: Axes of the classes' biases; "": there are none.
        ends: What may close the losses: FINISH, or EXTENDED where there are extra classes.
    """
    closing = {
        FINISH: f"{rows}d, {rows}d, {rows}1, {rows}1 -> {rows}",
        EXTENDED: f"{rows}d, ed, 1, {rows}, {rows}d, {rows}1, {rows}1 -> {rows}",
    }
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
        *(Part(end, closing[end], (FLOAT,)) for end in ends),
        *(biased if bias else ()),
        Part("weigh", f"{rows}, {rows}, n -> {rows}"),
        Part("total", f"{rows} -> "),
    )


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


def plain_attention_weights(path: str) -> Weights:
    """Projections without biases."""
    return {**{f"{path}.{name}.weight": "(hk)d" for name in "qkv"}, path + ".o.weight": "d(hk)"}


def gated_block_weights(prefix: str) -> Weights:
    """A block with a gate and without biases."""
    return {
        prefix + "attn_norm.weight": "d",
        **plain_attention_weights(prefix + "attn"),
        prefix + "ffn_norm.weight": "d",
        prefix + "ffn.gate.weight": "fd",
        prefix + "ffn.up.weight": "fd",
        prefix + "ffn.down.weight": "df",
    }


# --- causal models --------------------------------------------------------------------------------


def causal(*, final_norm: bool, extended: bool) -> ShardPlan:
    """The plan of `mindplm.nn.causal.CausalModel`.

    Args:
        final_norm: Whether there is a norm behind the last block.
        extended: Whether the rows of the table of positions may be classes too.
    """
    last = (norm("model.final_norm", "(bu)"),) if final_norm else ()
    ends = (FINISH, EXTENDED) if extended else (FINISH,)
    return plan(
        (
            Part("model.embed.gather", "vd, bt -> btd"),
            Part("model.positions.gather", "pd, bt -> btd"),
            merge("model.add_positions", "bt"),
            Part("model.frame", "bt -> b1tt, 111", (FLOAT, "dtype")),
            *block("model.blocks.{i}.", "b1tt"),
            *last,
            pick(),
            *loss(ends=ends),
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
        ends if extended else (),
    )
