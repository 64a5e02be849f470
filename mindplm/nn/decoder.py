"""Decoders that look across at an encoder's output: a post-norm block, and the passes of writing.

Suffixes of tensor names: b rows, t positions, s key positions, d hidden.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn, ops

from mindplm.nn.attention import Attention
from mindplm.nn.block import Merge, PostNormBlock
from mindplm.nn.cache import place_token, take_rows
from mindplm.nn.dropout import Dropout
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
        self.merge_attn, self.merge_cross, self.merge_ffn = Merge(), Merge(), Merge()
        self.drop_attn, self.drop_cross, self.drop_ffn = Dropout(), Dropout(), Dropout()
        self.dtype = dtype

    def memory(self, memory_bsd):
        """Keys and values of the encoder's output, [B, H, S, K] each."""
        cross = self.cross
        return cross.split(cross.k(memory_bsd)), cross.split(cross.v(memory_bsd))

    def across(self, x_btd, k_bhsk, v_bhsk, bias_b1ts):
        """The half that looks at the encoder's output."""
        out = self.cross.attend(self.cross.query(x_btd), k_bhsk, v_bhsk, bias_b1ts)
        row = ops.ones((1, 1, 1), self.dtype)
        return self.crossed(x_btd, self.cross.output(out, row))

    def crossed(self, x_btd, out_btd):
        """The stream after the attention to the encoder's output has given its own."""
        return self.cross_norm(self.merge_cross(x_btd, self.drop_cross(out_btd)))

    def construct(self, x_btd, bias_b1tt, row, memory_bsd, memory_bias_b1ts):
        """Whole rows that look at whole rows; see `Attention`."""
        x_btd = self.joined(x_btd, self.attn(x_btd, bias_b1tt, row))
        out_btd = self.cross(x_btd, memory_bias_b1ts, row, memory_bsd)
        return self.feed(self.crossed(x_btd, out_btd))


def first_token(blocks, x_b1d, bias_b1tt, memory_bsd, memory_bias_b1ts):
    """Runs the start token through blocks that look across.

    Returns:
        (x [B, 1, D], (k and v of each self-attention, one position long), (those of each attention
        to the encoder's output)).
    """
    own: tuple[Tensor, ...] = ()
    across: tuple[Tensor, ...] = ()
    row = ops.ones((1, 1, 1), x_b1d.dtype)
    for block in blocks:
        attn, h = block.attn, block.seen(x_b1d)
        k, v = attn.split(attn.k(h)), attn.split(attn.v(h))
        out = attn.output(attn.attend(attn.query(h), k, v, bias_b1tt), row)
        keys, values = block.memory(memory_bsd)
        x_b1d = block.across(block.joined(x_b1d, out), keys, values, memory_bias_b1ts)
        x_b1d = block.feed(x_b1d)
        own, across = own + (k, v), across + (keys, values)
    return x_b1d, own, across


def next_token(blocks, x_b1d, bias_b1ts, memory_bias_b1ts, parents_b, slot_1, old):
    """Runs one token of every row through blocks that look across.

    Args:
        blocks: The blocks.
        x_b1d: The tokens.
        bias_b1ts: Bias over the caches of self-attention, the new token's place among it.
        memory_bias_b1ts: Bias over the encoder's output, as long as its caches.
        parents_b: The row of the caches that each row goes on from.
        slot_1: The place of the new token in the caches.
        old: k and v of each self-attention, then of each attention across; [B, H, S, K].

    Returns:
        (x [B, 1, D], all caches with the new entry; rows are reordered within a prompt only, so
        those of the encoder's output stay where they are).
    """
    half = len(old) // 2
    own: tuple[Tensor, ...] = ()
    row = ops.ones((1, 1, 1), x_b1d.dtype)
    number = 0
    for block in blocks:
        attn, h = block.attn, block.seen(x_b1d)
        k = place_token(take_rows(old[number], parents_b), attn.split(attn.k(h)), slot_1)
        v = place_token(take_rows(old[number + 1], parents_b), attn.split(attn.v(h)), slot_1)
        out = attn.output(attn.attend(attn.query(h), k, v, bias_b1ts), row)
        keys, values = old[half + number], old[half + number + 1]
        x_b1d = block.across(block.joined(x_b1d, out), keys, values, memory_bias_b1ts)
        x_b1d = block.feed(x_b1d)
        own = own + (k, v)
        number += 2
    return x_b1d, own + tuple(old[half:])
