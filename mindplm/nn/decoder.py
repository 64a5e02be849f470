"""A post-norm decoder block that looks back at itself and across at an encoder's output."""

from __future__ import annotations

from typing import Any

from mindspore import nn, ops

from mindplm.nn.attention import Attention
from mindplm.nn.block import PostNormBlock
from mindplm.nn.feed_forward import FeedForward
from mindplm.nn.kernels import gelu
from mindplm.nn.layers import LayerNorm


class CrossBlock(nn.Cell):
    """attn_norm(x + attn(x)), cross_norm(. + cross(., memory)), ffn_norm(. + ffn(.)).

    Args:
        hidden_size: Width.
        num_heads: Heads, which share the width.
        ffn_size: Inner width of the feed-forward part.
        eps: Added to the variance in the norms.
        std: Standard deviation of the initial weights.
        dtype: Type of weights and activations.

    Source: Vaswani et al. 2017, section 3.1.
    """

    feed = PostNormBlock.feed
    seen = PostNormBlock.seen
    joined = PostNormBlock.joined

    def __init__(self, hidden_size, num_heads, ffn_size, *, eps, std, dtype):
        super().__init__()
        sizes: dict[str, Any] = {"std": std, "out_std": std, "bias": True, "dtype": dtype}
        head_dim = hidden_size // num_heads
        self.attn = Attention(hidden_size, num_heads, head_dim, **sizes)
        self.attn_norm = LayerNorm(hidden_size, eps, dtype=dtype)
        self.cross = Attention(hidden_size, num_heads, head_dim, **sizes)
        self.cross_norm = LayerNorm(hidden_size, eps, dtype=dtype)
        self.ffn = FeedForward(hidden_size, ffn_size, activation=gelu, **sizes)
        self.ffn_norm = LayerNorm(hidden_size, eps, dtype=dtype)
        self.dtype = dtype

    def memory(self, memory_bsd):
        """Keys and values of the encoder's output, [B, H, S, K] each."""
        cross = self.cross
        return cross.split(cross.k(memory_bsd)), cross.split(cross.v(memory_bsd))

    def across(self, x_btd, k_bhsk, v_bhsk, bias_b1ts):
        """The half that looks at the encoder's output."""
        out = self.cross.attend(self.cross.query(x_btd), k_bhsk, v_bhsk, bias_b1ts)
        row = ops.ones((1, 1, 1), self.dtype)
        return self.cross_norm(x_btd + self.cross.output(out, row))

    def construct(self, x_btd, bias_b1tt, memory_bsd, memory_bias_b1ts):
        row = ops.ones((1, 1, 1), self.dtype)
        x_btd = self.joined(x_btd, self.attn(x_btd, bias_b1tt, row))
        k_bhsk, v_bhsk = self.memory(memory_bsd)
        return self.feed(self.across(x_btd, k_bhsk, v_bhsk, memory_bias_b1ts))
