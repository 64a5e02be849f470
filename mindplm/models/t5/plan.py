"""How T5 is cut over devices; letters as in `mindplm.models.plans`.

parallel.sequence cuts the encoder's stream only: the decoder's rows have a length of their own.
"""

from __future__ import annotations

from mindplm.models.plans import (
    FLOAT,
    INT,
    Part,
    attention,
    gated_block,
    gated_block_weights,
    loss,
    merge,
    norm,
    plain_attention_weights,
    plan,
)

_TEXT, _STREAM, _WRITTEN = "(bs)", "(bw)", "(bt)"


def _weights(stack: str) -> dict[str, str]:
    return {
        stack + ".position_bias.weight": "ch",
        **gated_block_weights(stack + ".blocks.{i}."),
        stack + ".final_norm.weight": "d",
    }


_READ, _WRITE = "model.encoder.", "model.decoder."
_BLOCK = "blocks.{i}."
_CROSS = "decoder.blocks.{i}.cross"
_ACTIVATE = _BLOCK + "ffn.activate"
"""T5 v1.0 has it instead of a gate."""

PLAN = plan(
    (
        # The same operator looks up the texts that are read and those that are written.
        Part("model.embed.gather", "vd, bt -> btd"),
        Part(_READ + "frame", "ch, bs -> bhss, 111", (FLOAT, "dtype")),
        *gated_block(_READ + _BLOCK, "bhss", rows=_TEXT, stream=_STREAM),
        Part(_READ + _ACTIVATE, f"{_TEXT}f -> {_TEXT}f"),
        norm(_READ + "final_norm", _STREAM, biased=False),
        Part("model.across", "bt, bs -> b1ts", (FLOAT,)),
        Part(_WRITE + "frame", "ch, bt -> 1htt, 111", (FLOAT, "dtype")),
        *gated_block(_WRITE + _BLOCK, "1htt", rows=_WRITTEN, stream=_WRITTEN),
        Part(_WRITE + _ACTIVATE, f"{_WRITTEN}f -> {_WRITTEN}f"),
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
        **plain_attention_weights(_CROSS),
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
            for part in ("ffn.gate.matmul", "ffn.act", "ffn.activate")
        ),
    ),
)
