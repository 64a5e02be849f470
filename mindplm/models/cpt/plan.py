"""How CPT is cut over devices; letters as in `mindplm.models.plans`.

Both decoders have rows of one length, so t is the length of the text as well.
"""

from __future__ import annotations

from mindplm.models.plans import (
    FLOAT,
    Part,
    attention,
    attention_weights,
    block,
    block_weights,
    encoder,
    encoder_weights,
    loss,
    merge,
    norm,
    pick,
    plan,
    with_bias,
)

_DECODER = "model.decoder."
_BLOCK = _DECODER + "blocks.{i}."
_OWN = "decoder.blocks.{i}."

PLAN = plan(
    (
        Part("model.source", "bt -> bt, bt, bt", ("int32", "int32", "int32")),
        *encoder("model.encoder."),
        Part(_DECODER + "order", "bt -> 1t"),
        Part(_DECODER + "positions.gather", "pd, 1t -> 1td"),
        Part(_DECODER + "add_positions", "btd, 1td -> btd"),
        norm(_DECODER + "embed_norm", "bt"),
        Part(_DECODER + "frame", "bt -> b1tt, 111", (FLOAT, "dtype")),
        Part(_DECODER + "across", "bt, bt -> b1tt", (FLOAT,)),
        *block(_BLOCK, "b1tt"),
        *attention(_BLOCK + "cross", "b1tt"),
        merge(_BLOCK + "merge_cross"),
        norm(_BLOCK + "cross_norm", "(bu)"),
        Part("model.branch", "(bt)d, (bt)d, b -> (bt)d"),
        pick(),
        *loss(bias="1v"),
    ),
    {
        **encoder_weights("encoder."),
        "decoder.positions.weight": "pd",
        **with_bias("decoder.embed_norm", "d"),
        **block_weights(_OWN),
        **attention_weights(_OWN + "cross"),
        **with_bias(_OWN + "cross_norm", "d"),
        "logits_bias": "1v",
    },
    {
        **dict.fromkeys(("ids", "decoder_ids"), "bt"),
        "writes": "b",
        **dict.fromkeys(("target_pos", "targets"), "bm"),
    },
)
