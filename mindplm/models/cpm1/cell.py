"""The CPM-1 network."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms

from mindplm.models.cpm1.config import Cpm1Config
from mindplm.models.parts import causal_model
from mindplm.nn.block import pre_norm_block
from mindplm.nn.causal import CausalModel
from mindplm.nn.kernels import gelu_tanh
from mindplm.nn.layers import LayerNorm
from mindplm.nn.table_loss import ShardedLoss


def network(config: Cpm1Config, dtype=ms.float32) -> CausalModel:
    """The model: pre-norm blocks and a norm at the end, the form of GPT-2.

    Source: Zhang et al. 2020, "CPM: A Large-scale Generative Chinese Pre-trained Language Model".
    """
    blocks = [
        pre_norm_block(
            config.hidden_size,
            config.num_heads,
            config.ffn_size,
            eps=config.eps,
            std=config.init_std,
            out_std=config.residual_std,
            activation=gelu_tanh,
            dtype=dtype,
        )
        for _ in range(config.num_layers)
    ]
    norm = LayerNorm(config.hidden_size, config.eps, dtype=dtype)
    return causal_model(config, blocks, norm, dtype=dtype)


def sharded(config: Cpm1Config, dtype, vocab_rows: int, stages: tuple[int, ...]) -> ShardedLoss:
    """The training cell that a shard plan is laid over."""
    model = network(replace(config, vocab_size=vocab_rows), dtype)
    return ShardedLoss(model, config.vocab_size)
