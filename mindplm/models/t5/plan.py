"""How T5 is cut over devices; letters as in `mindplm.models.plans`.

parallel.sequence cuts the encoder's stream only: the decoder's rows have a length of their own.
"""

from __future__ import annotations

from mindplm.models.plans import FLOAT, INT, Part, Parts, attention, linear, loss, merge, norm, plan

_TEXT, _STREAM, _WRITTEN = "(bs)", "(bw)", "(bt)"
_GATED = ("ffn.gate.matmul", "ffn.act")


def _halves(path: str, bias: str, rows: str, stream: str) -> Parts:
    """Attention to itself and feed-forward, with or without a gate."""
    return (
        norm(path + "attn_norm", stream, biased=False),
        *attention(path + "attn", bias, rows=rows, stream=stream, biased=False),
        merge(path + "merge_attn", stream),
        norm(path + "ffn_norm", stream, biased=False),
        *linear(path + "ffn.gate", f"{rows}d, fd -> {rows}f", biased=False),
        *linear(path + "ffn.up", f"{rows}d, fd -> {rows}f", biased=False),
        Part(path + "ffn.act", f"{rows}f, {rows}f -> {rows}f"),
        Part(path + "ffn.activate", f"{rows}f -> {rows}f"),
        *linear(path + "ffn.down", f"{rows}f, df -> {stream}d", biased=False),
        merge(path + "merge_ffn", stream),
    )


def _weights(stack: str) -> dict[str, str]:
    path = stack + ".blocks.{i}."
    return {
        stack + ".position_bias.weight": "ch",
        path + "attn_norm.weight": "d",
        **{f"{path}attn.{name}.weight": "(hk)d" for name in "qkv"},
        path + "attn.o.weight": "d(hk)",
        path + "ffn_norm.weight": "d",
        path + "ffn.gate.weight": "fd",
        path + "ffn.up.weight": "fd",
        path + "ffn.down.weight": "df",
        stack + ".final_norm.weight": "d",
    }


_READ, _WRITE = "model.encoder.", "model.decoder."
_BLOCK = "blocks.{i}."
_CROSS = "decoder.blocks.{i}.cross"

PLAN = plan(
    (
        # The same operator looks up the texts that are read and those that are written.
        Part("model.embed.gather", "vd, bt -> btd"),
        Part(_READ + "frame", "ch, bs -> bhss, 111", (FLOAT, "dtype")),
        *_halves(_READ + _BLOCK, "bhss", _TEXT, _STREAM),
        norm(_READ + "final_norm", _STREAM, biased=False),
        Part("model.across", "bt, bs -> b1ts", (FLOAT,)),
        Part(_WRITE + "frame", "ch, bt -> 1htt, 111", (FLOAT, "dtype")),
        *_halves(_WRITE + _BLOCK, "1htt", _WRITTEN, _WRITTEN),
        norm(_WRITE + _BLOCK + "cross_norm", _WRITTEN, biased=False),
        *attention(
            _WRITE + _BLOCK + "cross",
            "b1ts",
            rows=_WRITTEN,
            keys=_TEXT,
            stream=_WRITTEN,
            biased=False,
        ),
        merge(_WRITE + _BLOCK + "merge_cross", _WRITTEN),
        norm(_WRITE + "final_norm", _WRITTEN, biased=False),
        Part("model.labels", "bt -> (bt)", (INT,)),
        *loss(_WRITTEN),
    ),
    {
        "embed.weight": "vd",
        "head.weight": "vd",
        **_weights("encoder"),
        **_weights("decoder"),
        "decoder.blocks.{i}.cross_norm.weight": "d",
        **{f"{_CROSS}.{name}.weight": "(hk)d" for name in "qkv"},
        _CROSS + ".o.weight": "d(hk)",
    },
    {
        **dict.fromkeys(("ids", "real"), "bs"),
        **dict.fromkeys(("decoder_ids", "targets"), "bt"),
    },
    (
        "head.weight",
        *(f"{stack}.{_BLOCK}ffn.gate.weight" for stack in ("encoder", "decoder")),
        *(
            f"{stack}{_BLOCK}{part}"
            for stack in (_READ, _WRITE)
            for part in (*_GATED, "ffn.activate")
        ),
    ),
)
