"""Cells that are built alike in several families, from the sizes of a config."""

from __future__ import annotations

from typing import Any

from mindspore import nn

from mindplm.models.sizes import PlainSizes
from mindplm.nn.block import PostNormBlock, post_norm_block
from mindplm.nn.causal import CausalModel


def post_norm_blocks(config: Any, activation, dtype) -> list[PostNormBlock]:
    """The post-norm blocks of a config of plain sizes with an `eps`."""
    return [
        post_norm_block(
            config.hidden_size,
            config.num_heads,
            config.ffn_size,
            eps=config.eps,
            std=config.init_std,
            activation=activation,
            dtype=dtype,
        )
        for _ in range(config.num_layers)
    ]


def causal_model(
    config: PlainSizes,
    blocks: list[Any],
    final_norm: nn.Cell | None,
    *,
    position_classes: bool = False,
    dtype,
) -> CausalModel:
    """A causal model of a config's sizes; see `CausalModel` for the other arguments."""
    return CausalModel(
        (config.vocab_size, config.max_len),
        config.hidden_size,
        blocks,
        final_norm,
        std=config.init_std,
        position_classes=position_classes,
        dtype=dtype,
    )
