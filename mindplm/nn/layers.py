"""Linear, embedding and norm layers, built on plain operators that every device has.

Suffixes of tensor names: b batch, t positions of this call, s key positions, d hidden,
h heads, k head width, f feed-forward, v vocabulary, n flattened b*t.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Zero

from mindplm.nn.kernels import row_sum


def parameter(shape: tuple[int, ...], dtype, std: float | None) -> Parameter:
    """A parameter that `initialise` fills: normal with deviation std, or ones if std is None."""
    made = Parameter(Tensor(shape=shape, dtype=dtype, init=Zero()))
    made.init_std = std
    return made


class Linear(nn.Cell):
    """Projection without bias: y = x W^T, W of shape [out, in].

    Args:
        num_in: Input width.
        num_out: Output width.
        std: Standard deviation of the initial weights.
        dtype: Type of the weight and of the product.
    """

    def __init__(self, num_in: int, num_out: int, *, std: float, dtype):
        super().__init__()
        self.weight = parameter((num_out, num_in), dtype, std)
        self.matmul = ops.MatMul(transpose_b=True)
        self.num_in, self.num_out = num_in, num_out

    def construct(self, x):
        y = self.matmul(x.reshape((-1, self.num_in)), self.weight)
        return y.reshape(x.shape[:-1] + (self.num_out,))


class Embedding(nn.Cell):
    """Rows of a table [count, width] by index."""

    def __init__(self, count: int, width: int, *, std: float, dtype):
        super().__init__()
        self.weight = parameter((count, width), dtype, std)

    def construct(self, ids):
        return ops.gather(self.weight, ids, 0)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight * scale with fp32 statistics and a gradient of few operators.

    Args:
        width: Size of the last axis.
        eps: Added to the mean of squares.
        scale: Constant on the output, for a projection that wants its input scaled.
        dtype: Type of the weight.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, width: int, eps: float, *, scale: float = 1.0, dtype):
        super().__init__()
        self.weight = parameter((width,), dtype, None)
        self.norm = _Normalise(width, eps)
        self.scale = scale

    def construct(self, x):
        weight = self.weight if self.scale == 1.0 else self.weight * self.scale
        return self.norm(x, weight)


class _Normalise(nn.Cell):
    """x / rms(x) * weight; keeps 1 / rms(x) for its gradient."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps

    def inverse(self, x_nd):
        """1 / rms of rows, fp32 [N, 1]."""
        return ops.rsqrt(row_sum(x_nd * x_nd) * (1.0 / self.width) + self.eps)

    def construct(self, x, weight_d):
        x_nd = x.reshape((-1, self.width)).astype(ms.float32)
        y_nd = (x_nd * self.inverse(x_nd)).astype(x.dtype) * weight_d
        return y_nd.reshape(x.shape)

    def bprop(self, x, weight_d, out, grad):
        x_nd = x.reshape((-1, self.width)).astype(ms.float32)
        grad_nd = grad.reshape((-1, self.width)).astype(ms.float32)
        inverse_n1 = self.inverse(x_nd)
        normed_nd = x_nd * inverse_n1
        product_nd = grad_nd * normed_nd
        ones = ops.ones((1, x_nd.shape[0]), ms.float32)
        d_weight = ops.MatMul()(ones, product_nd).reshape((self.width,))
        weighted_d = weight_d.astype(ms.float32)
        mean_n1 = ops.MatMul()(product_nd, weighted_d.reshape((self.width, 1)))
        inner = grad_nd * weighted_d - normed_nd * (mean_n1 * (1.0 / self.width))
        d_x = (inner * inverse_n1).astype(x.dtype).reshape(x.shape)
        return d_x, d_weight.astype(weight_d.dtype)
