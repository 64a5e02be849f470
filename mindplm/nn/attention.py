"""Multi-head attention with an additive bias that carries the mask."""

from __future__ import annotations

from mindspore import nn, ops

from mindplm.nn.kernels import softmax
from mindplm.nn.layers import Linear


def attend(q_bhtk, k_bhsk, v_bhsk, bias_bhts):
    """Attention of scaled queries; masked positions hold a large negative bias.

    Softmax in fp32. A row whose every position is masked gives the mean of the values here; the
    caller removes such rows.
    """
    logits_bhts = ops.BatchMatMul(transpose_b=True)(q_bhtk, k_bhsk)
    weights_bhts = softmax(logits_bhts + bias_bhts).astype(v_bhsk.dtype)
    return ops.BatchMatMul()(weights_bhts, v_bhsk)


class Attention(nn.Cell):
    """Query, key, value and output projections around `attend`.

    Args:
        hidden_size: Width of the residual stream.
        num_heads: Heads.
        head_dim: Width of a head; num_heads * head_dim need not equal hidden_size.
        fan_in_scale: Whether every projection is divided by the root of its input width.
        std: Standard deviation of the initial weights.
        dtype: Type of weights and activations.
    """

    def __init__(self, hidden_size, num_heads, head_dim, *, fan_in_scale, std, dtype):
        super().__init__()
        inner = num_heads * head_dim
        scale = hidden_size**-0.5 if fan_in_scale else 1.0
        root = head_dim**-0.5
        self.q = Linear(hidden_size, inner, scale=scale * root, std=std, dtype=dtype)
        self.k = Linear(hidden_size, inner, scale=scale, std=std, dtype=dtype)
        self.v = Linear(hidden_size, inner, scale=scale, std=std, dtype=dtype)
        self.o = Linear(
            inner, hidden_size, scale=inner**-0.5 if fan_in_scale else 1.0, std=std, dtype=dtype
        )
        self.num_heads, self.head_dim = num_heads, head_dim

    def split(self, x_btd):
        """[B, T, H * K] to [B, H, T, K]."""
        shape = (x_btd.shape[0], x_btd.shape[1], self.num_heads, self.head_dim)
        return x_btd.reshape(shape).transpose((0, 2, 1, 3))

    def join(self, x_bhtk):
        """[B, H, T, K] to [B, T, H * K]."""
        batch, _, num, _ = x_bhtk.shape
        return x_bhtk.transpose((0, 2, 1, 3)).reshape((batch, num, self.num_heads * self.head_dim))

    def construct(self, x_btd, bias_bhts, row_bt1):
        """Self-attention over one whole row set.

        Args:
            x_btd: Normed input.
            bias_bhts: fp32 additive bias with the mask in it.
            row_bt1: 1 for rows that see anything, 0 for rows whose output must be zero.
        """
        out_bhtk = attend(
            self.split(self.q(x_btd)), self.split(self.k(x_btd)), self.split(self.v(x_btd)),
            bias_bhts,
        )
        return self.o(self.join(out_bhtk) * row_bt1)
