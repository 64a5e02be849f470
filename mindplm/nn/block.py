"""Residual blocks: pre-norm with optional halves, and post-norm."""

from __future__ import annotations

from typing import Any

from mindspore import nn

from mindplm.nn.attention import Attention
from mindplm.nn.dropout import Dropout
from mindplm.nn.feed_forward import FeedForward
from mindplm.nn.layers import LayerNorm


class Merge(nn.Cell):
    """(x + y) * keep.

    Multiplied by 1 too: with recomputing and dropout the compiler for Ascend finds a cycle in the
    graph of a network whose sums are plain.
    """

    def __init__(self, keep: float = 1.0):
        super().__init__()
        self.keep = keep

    def construct(self, x, y):
        return (x + y) * self.keep


class Block(nn.Cell):
    """x -> (x + part(norm(x))) * keep for attention, then for feed-forward.

    Args:
        attn_norm, attn: Norm and attention, both None if the block has none.
        ffn_norm, ffn: Norm and feed-forward, both None if the block has none.
        keep: Factor on each residual sum; CPM-Bee divides by 1.05.
    """

    def __init__(
        self,
        attn_norm: nn.Cell | None,
        attn: nn.Cell | None,
        ffn_norm: nn.Cell | None,
        ffn: nn.Cell | None,
        *,
        keep: float = 1.0,
    ):
        super().__init__()
        self.attn_norm: Any = attn_norm
        self.attn: Any = attn
        self.ffn_norm: Any = ffn_norm
        self.ffn: Any = ffn
        self.has_attn, self.has_ffn = attn is not None, ffn is not None
        self.merge_attn, self.merge_ffn = Merge(keep), Merge(keep)
        self.drop_attn, self.drop_ffn = Dropout(), Dropout()

    def seen(self, x_btd):
        """What the attention works on."""
        return self.attn_norm(x_btd)

    def joined(self, x_btd, out_btd):
        """The stream after the attention has given its output."""
        return self.merge_attn(x_btd, self.drop_attn(out_btd))

    def attend(self, x_btd, bias_bhts, row_bt1):
        """The attention half over whole rows."""
        if self.has_attn:
            return self.joined(x_btd, self.attn(self.seen(x_btd), bias_bhts, row_bt1))
        return x_btd

    def feed(self, x_btd):
        """The feed-forward half."""
        if self.has_ffn:
            return self.merge_ffn(x_btd, self.drop_ffn(self.ffn(self.ffn_norm(x_btd))))
        return x_btd

    def construct(self, x_btd, bias_bhts, row_bt1):
        return self.feed(self.attend(x_btd, bias_bhts, row_bt1))


class PostNormBlock(nn.Cell):
    """x -> attn_norm(x + attn(x)) -> ffn_norm(x + ffn(x)), the order of the first Transformer.

    Args:
        attn, attn_norm: Self-attention and the norm behind it.
        ffn, ffn_norm: Feed-forward and the norm behind it.
    """

    def __init__(self, attn: nn.Cell, attn_norm: nn.Cell, ffn: nn.Cell, ffn_norm: nn.Cell):
        super().__init__()
        self.attn, self.attn_norm = attn, attn_norm
        self.ffn, self.ffn_norm = ffn, ffn_norm
        self.has_attn = True
        self.merge_attn, self.merge_ffn = Merge(), Merge()
        self.drop_attn, self.drop_ffn = Dropout(), Dropout()

    def seen(self, x_btd):
        """What the attention works on."""
        return x_btd

    def joined(self, x_btd, out_btd):
        """The stream after the attention has given its output."""
        return self.attn_norm(self.merge_attn(x_btd, self.drop_attn(out_btd)))

    def feed(self, x_btd):
        """The feed-forward half."""
        return self.ffn_norm(self.merge_ffn(x_btd, self.drop_ffn(self.ffn(x_btd))))

    def construct(self, x_btd, bias_bhts, row_bt1):
        return self.feed(self.joined(x_btd, self.attn(x_btd, bias_bhts, row_bt1)))


def post_norm_block(
    hidden_size: int, num_heads: int, ffn_size: int, *, eps: float, std: float, activation, dtype
) -> PostNormBlock:
    """A post-norm block with biases and heads that share the width, as GPT-1 and BERT have it."""
    sizes: dict[str, Any] = {"std": std, "out_std": std, "bias": True, "dtype": dtype}
    return PostNormBlock(
        Attention(hidden_size, num_heads, hidden_size // num_heads, **sizes),
        LayerNorm(hidden_size, eps, dtype=dtype),
        FeedForward(hidden_size, ffn_size, activation=activation, **sizes),
        LayerNorm(hidden_size, eps, dtype=dtype),
    )


def pre_norm_block(
    hidden_size: int,
    num_heads: int,
    ffn_size: int,
    *,
    eps: float,
    std: float,
    out_std: float,
    activation,
    dtype,
) -> Block:
    """A pre-norm block with biases and heads that share the width, as GPT-2 has it."""
    sizes: dict[str, Any] = {"std": std, "out_std": out_std, "bias": True, "dtype": dtype}
    return Block(
        LayerNorm(hidden_size, eps, dtype=dtype),
        Attention(hidden_size, num_heads, hidden_size // num_heads, **sizes),
        LayerNorm(hidden_size, eps, dtype=dtype),
        FeedForward(hidden_size, ffn_size, activation=activation, **sizes),
    )
