"""Linear, embedding and norm layers, built on plain operators that every device has.

Suffixes of tensor names: b batch, t positions of this call, s key positions, d hidden,
h heads, k head width, f feed-forward, v vocabulary, n flattened b*t.
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Zero


def parameter(shape: tuple[int, ...], dtype, std: Optional[float]) -> Parameter:
    """A parameter that `initialise` fills: normal with deviation std, or ones if std is None."""
    made = Parameter(Tensor(shape=shape, dtype=dtype, init=Zero()))
    made.init_std = std
    return made


class Linear(nn.Cell):
    """Projection without bias: y = (x W^T) * scale, W of shape [out, in].

    Args:
        num_in: Input width.
        num_out: Output width.
        scale: Factor on the product; CPM-Bee uses 1 / sqrt(num_in).
        std: Standard deviation of the initial weights.
        dtype: Type of the weight and of the product.
    """

    def __init__(self, num_in: int, num_out: int, *, scale: float = 1.0, std: float, dtype):
        super().__init__()
        self.weight = parameter((num_out, num_in), dtype, std)
        self.matmul = ops.MatMul(transpose_b=True)
        self.num_in, self.num_out, self.scale = num_in, num_out, scale

    def construct(self, x):
        y = self.matmul(x.reshape((-1, self.num_in)), self.weight)
        if self.scale != 1.0:
            y = y * self.scale
        return y.reshape(x.shape[:-1] + (self.num_out,))


class Embedding(nn.Cell):
    """Rows of a table [count, width] by index."""

    def __init__(self, count: int, width: int, *, std: float, dtype):
        super().__init__()
        self.weight = parameter((count, width), dtype, std)

    def construct(self, ids):
        return ops.gather(self.weight, ids, 0)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight with fp32 statistics.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, width: int, eps: float, *, dtype):
        super().__init__()
        self.weight = parameter((width,), dtype, None)
        self.eps = eps

    def construct(self, x):
        x32 = x.astype(ms.float32)
        mean = ops.mean(x32 * x32, -1, True)
        return (x32 * ops.rsqrt(mean + self.eps)).astype(x.dtype) * self.weight
