"""How BERT is cut over devices; letters as in `mindplm.models.plans`."""

from __future__ import annotations

from mindplm.models.plans import (
    Part,
    encoder,
    encoder_weights,
    linear,
    loss,
    norm,
    pick,
    plan,
    with_bias,
)

PLAN = plan(
    (
        *encoder("model.encoder."),
        pick(),
        *linear("model.head.dense", "(bm)d, gd -> (bm)g"),
        Part("model.head.activate", "(bm)d -> (bm)d"),
        norm("model.head.norm", "(bm)"),
        *loss(bias="v"),
    ),
    {
        **encoder_weights("encoder."),
        **with_bias("head.dense", "gd"),
        **with_bias("head.norm", "d"),
        "head.bias": "v",
    },
    {
        **dict.fromkeys(("ids", "types", "positions", "spans"), "bt"),
        **dict.fromkeys(("target_pos", "targets"), "bm"),
    },
)
