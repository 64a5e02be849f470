"""Multi-head attention with an additive bias that carries the mask."""

from __future__ import annotations

from mindspore import nn, ops

from mindplm.nn.dropout import Dropout
from mindplm.nn.kernels import Softmax, spread, swapped
from mindplm.nn.layers import Linear


class Attend(nn.Cell):
    """Attention of scaled queries; masked positions hold a large negative bias.

    Softmax in fp32. A row whose every position is masked gives the mean of the values here; the
    caller removes such rows.
    """

    def __init__(self):
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = Softmax()
        self.drop = Dropout()

    def construct(self, q_bhtk, k_bhsk, v_bhsk, bias_bhts):
        logits_bhts = self.scores(q_bhtk, k_bhsk)
        logits_bhts = logits_bhts + spread(bias_bhts, logits_bhts.shape)
        return self.mix(self.drop(self.softmax(logits_bhts).astype(v_bhsk.dtype)), v_bhsk)


class AttendAfter(nn.Cell):
    """Attention of single queries over a prompt that several rows share, and over their own keys.

    The queries of a prompt are one matrix, so its keys and values are read once for all of them.
    """

    def __init__(self):
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = Softmax()

    def construct(self, q_bh1k, k_phsk, v_phsk, k_bhsk, v_bhsk, bias_bh1s):
        rows, heads, _, width = q_bh1k.shape
        prompts, _, num, _ = k_phsk.shape
        each = rows // prompts
        q_phbk = self.together(q_bh1k, (prompts, each, heads, width))
        first = self.apart(self.scores(q_phbk, k_phsk), (rows, heads, 1, num))
        logits = ops.concat((first, self.scores(q_bh1k, k_bhsk)), -1) + bias_bh1s
        shares = self.softmax(logits).astype(v_bhsk.dtype)
        of_prompt = self.together(shares[..., :num], (prompts, each, heads, num))
        out = self.apart(self.mix(of_prompt, v_phsk), (rows, heads, 1, width))
        return out + self.mix(shares[..., num:], v_bhsk)

    @staticmethod
    def together(x_bh1k, size):
        """[B, H, 1, K] to [P, H, B / P, K]; the size is (P, B / P, H, K)."""
        return x_bh1k if size[1] == 1 else x_bh1k.reshape(size).transpose((0, 2, 1, 3))

    @staticmethod
    def apart(x_phbk, size):
        """Back to [B, H, 1, K], the size."""
        alone = size[0] == x_phbk.shape[0]
        return x_phbk if alone else x_phbk.transpose((0, 2, 1, 3)).reshape(size)


class Heads(nn.Cell):
    """Attention between the projections: heads taken apart, `Attend`, heads joined; no weights.

    The number of heads is that of the arguments, so a device may hold a part of them.

    Args:
        head_dim: Width of a head.
        out_scale: Constant on the output.
        query_scale: Factor on the queries; None: one by the root of head_dim.
    """

    def __init__(self, head_dim: int, out_scale: float, query_scale: float | None = None):
        super().__init__()
        self.attend, self.attend_after = Attend(), AttendAfter()
        self.head_dim, self.out_scale = head_dim, out_scale
        self.query_scale = head_dim**-0.5 if query_scale is None else query_scale

    def split(self, x_bti, num: int):
        """[B, T, H * K] or [B * T, H * K] to [B, H, T, K]; num is T."""
        size = (-1, num, x_bti.shape[-1] // self.head_dim, self.head_dim)
        return swapped(x_bti.reshape(size))

    def join(self, x_bhtk, row_bt1):
        """[B, H, T, K] to [B, T, H * K], scaled; zero where row_bt1 is."""
        batch, _, num, _ = x_bhtk.shape
        x_bti = swapped(x_bhtk).reshape((batch, num, -1))
        return x_bti * spread(row_bt1 * self.out_scale, x_bti.shape)

    def construct(self, q_bti, k_bsi, v_bsi, bias_bhts, row_bt1):
        """Joined heads, of the shape of q_bti; flat rows have the positions of bias_bhts."""
        apart = q_bti.ndim == 3
        num = q_bti.shape[1] if apart else bias_bhts.shape[2]
        keys = k_bsi.shape[1] if apart else bias_bhts.shape[3]
        q_bhtk = self.split(q_bti * self.query_scale, num)
        k_bhsk, v_bhsk = self.split(k_bsi, keys), self.split(v_bsi, keys)
        out_bhtk = self.attend(q_bhtk, k_bhsk, v_bhsk, bias_bhts)
        return self.join(out_bhtk, row_bt1).reshape(q_bti.shape)


class Attention(nn.Cell):
    """Query, key, value and output projections around `Heads`.

    Args:
        hidden_size: Width of the residual stream.
        num_heads: Heads.
        head_dim: Width of a head; num_heads * head_dim need not equal hidden_size.
        out_scale: Constant on the output.
        std: Standard deviation of the initial weights.
        out_std: The same for the output projection.
        bias: Whether the four projections have biases.
        query_scale: Factor on the queries; None: one by the root of head_dim.
        dtype: Type of weights and activations.
    """

    def __init__(
        self,
        hidden_size,
        num_heads,
        head_dim,
        *,
        out_scale=1.0,
        std,
        out_std,
        bias=False,
        query_scale=None,
        dtype,
    ):
        super().__init__()
        inner = num_heads * head_dim
        self.q = Linear(hidden_size, inner, bias=bias, std=std, dtype=dtype)
        self.k = Linear(hidden_size, inner, bias=bias, std=std, dtype=dtype)
        self.v = Linear(hidden_size, inner, bias=bias, std=std, dtype=dtype)
        self.o = Linear(inner, hidden_size, bias=bias, std=out_std, dtype=dtype)
        self.heads = Heads(head_dim, out_scale, query_scale)

    def query(self, x_btd):
        """Scaled queries [B, H, T, K]."""
        return self.split(self.q(x_btd) * self.heads.query_scale)

    def attend(self, q_bhtk, k_bhsk, v_bhsk, bias_bhts):
        """Attention of heads that are apart."""
        return self.heads.attend(q_bhtk, k_bhsk, v_bhsk, bias_bhts)

    def attend_after(self, q_bh1k, k_phsk, v_phsk, k_bhsk, v_bhsk, bias_bh1s):
        """Attention of heads that are apart over prompts and what was written; `AttendAfter`."""
        return self.heads.attend_after(q_bh1k, k_phsk, v_phsk, k_bhsk, v_bhsk, bias_bh1s)

    def output(self, out_bhtk, row_bt1):
        """Joins the heads and projects them; row_bt1 is 1, or 0 where the output must be zero."""
        return self.o(self.heads.join(out_bhtk, row_bt1))

    def split(self, x_btd):
        """[B, T, H * K] to [B, H, T, K]."""
        return self.heads.split(x_btd, x_btd.shape[1])

    def construct(self, x_btd, bias_bhts, row_bt1, memory_bsd=None):
        """Attention of whole rows to themselves or to others.

        Args:
            x_btd: Normed input, [B, T, D] or [B * T, D].
            bias_bhts: fp32 additive bias with the mask in it; flat rows take T and S from it.
            row_bt1: 1 for rows that see anything, 0 for rows whose output must be zero.
            memory_bsd: What is looked at, flat if x is; None: x itself.
        """
        source_bsd = x_btd if memory_bsd is None else memory_bsd
        q_bti, k_bsi, v_bsi = self.q(x_btd), self.k(source_bsd), self.v(source_bsd)
        return self.o(self.heads(q_bti, k_bsi, v_bsi, bias_bhts, row_bt1))
