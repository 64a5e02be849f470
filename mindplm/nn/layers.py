"""Linear, embedding and norm layers, built on plain operators that every device has.

Suffixes of tensor names: b batch, t positions of this call, s key positions, d hidden,
h heads, k head width, f feed-forward, v vocabulary, n flattened b*t.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Zero

from mindplm.nn.kernels import column_sum, projected, spread


def parameter(shape: tuple[int, ...], dtype, std: float | None) -> Parameter:
    """A parameter that `initialise` fills: normal with deviation std, or ones if std is None."""
    made = Parameter(Tensor(shape=shape, dtype=dtype, init=Zero()))
    made.init_std = std
    return made


class Linear(nn.Cell):
    """Projection y = x W^T, or y = x W^T + b, with W of shape [out, in].

    Args:
        num_in: Input width.
        num_out: Output width.
        bias: Whether there is a b; it starts with zeros.
        std: Standard deviation of the initial weights.
        dtype: Type of the weight and of the product.
    """

    def __init__(self, num_in: int, num_out: int, *, bias: bool = False, std: float, dtype):
        super().__init__()
        self.weight = parameter((num_out, num_in), dtype, std)
        self.has_bias = bias
        if bias:
            self.bias = parameter((num_out,), dtype, 0.0)
            self.add_bias = AddBias()
        self.matmul, self.may_turn = ops.MatMul(transpose_b=True), False
        self.num_in, self.num_out = num_in, num_out

    def construct(self, x):
        y = projected(self.matmul, x.reshape((-1, self.num_in)), self.weight, self.may_turn)
        if self.has_bias:
            y = self.add_bias(y, self.bias)
        return y.reshape(x.shape[:-1] + (self.num_out,))


def turn_products(network: nn.Cell) -> None:
    """Lets projections choose the faster order of their operands, for a network that writes."""
    for _, cell in network.cells_and_names():
        if hasattr(cell, "may_turn"):
            cell.may_turn = True


class AddBias(nn.Cell):
    """x [N, D] + b [D]; the gradient of b is a sum over rows, which on CPU is a product."""

    def construct(self, x_nd, bias_d):
        return x_nd + spread(bias_d, x_nd.shape)

    def bprop(self, x_nd, bias_d, out, grad):
        return grad, column_sum(grad).astype(bias_d.dtype)


class Embedding(nn.Cell):
    """Rows of a table [count, width] by index."""

    def __init__(self, count: int, width: int, *, std: float, dtype):
        super().__init__()
        self.weight = parameter((count, width), dtype, std)
        self.gather = ops.Gather()

    def construct(self, ids):
        return self.gather(self.weight, ids, 0)


class Flatten(nn.Cell):
    """Puts rows and positions of [B, T, D] into one axis; does nothing until it is on.

    Networks that are cut over devices have flat rows, so that no reshape crosses an axis that is
    cut.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = False

    def construct(self, x_btd):
        return x_btd.reshape((-1, x_btd.shape[-1])) if self.on else x_btd


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
        self.norm = _Normalise(width, eps, scale)

    def construct(self, x):
        return self.norm(x, self.weight)


class _Normalise(nn.Cell):
    """x / rms(x) * weight * scale; makes scale / rms(x) anew for its gradient."""

    def __init__(self, width: int, eps: float, scale: float):
        super().__init__()
        self.width = width
        # scale / rms(x) = 1 / sqrt(sum(x^2) / (width scale^2) + eps / scale^2)
        self.part, self.eps = 1.0 / (width * scale * scale), eps / (scale * scale)

    def inverse(self, x_nd):
        """scale / rms of rows, fp32 [N, 1]."""
        return ops.rsqrt((x_nd * x_nd).sum(-1, keepdims=True) * self.part + self.eps)

    def construct(self, x, weight_d):
        x_nd = x.reshape((-1, self.width)).astype(ms.float32)
        y_nd = (x_nd * spread(self.inverse(x_nd), x_nd.shape)).astype(x.dtype)
        return (y_nd * spread(weight_d, x_nd.shape)).reshape(x.shape)

    def bprop(self, x, weight_d, out, grad):
        x_nd = x.reshape((-1, self.width)).astype(ms.float32)
        grad_nd = grad.reshape((-1, self.width)).astype(ms.float32)
        inverse_nd = spread(self.inverse(x_nd), x_nd.shape)
        normed_nd = x_nd * inverse_nd
        product_nd = grad_nd * normed_nd
        d_weight = column_sum(product_nd)
        weight_d32 = weight_d.astype(ms.float32)
        mean_n1 = ops.MatMul()(product_nd, weight_d32.reshape((self.width, 1)))
        inner = grad_nd * spread(weight_d32, x_nd.shape)
        inner = inner - normed_nd * spread(mean_n1 * self.part, x_nd.shape)
        d_x = (inner * inverse_nd).astype(x.dtype).reshape(x.shape)
        return d_x, d_weight.astype(weight_d.dtype)


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(variance + eps) * weight + bias with fp32 statistics and its own gradient.

    Args:
        width: Size of the last axis.
        eps: Added to the variance.
        dtype: Type of the weight and the bias.

    Source: Ba, Kiros and Hinton, "Layer Normalization", equation 4.
    """

    def __init__(self, width: int, eps: float, *, dtype):
        super().__init__()
        self.weight = parameter((width,), dtype, None)
        self.bias = parameter((width,), dtype, 0.0)
        self.norm = _Standardise(width, eps)

    def construct(self, x):
        return self.norm(x, self.weight, self.bias)


class _Standardise(nn.Cell):
    """(x - mean) / deviation * weight + bias over the last axis."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps

    def standard(self, x):
        """Rows with mean 0 and deviation 1, and 1 / deviation to multiply rows with, fp32."""
        x_nd = x.reshape((-1, self.width)).astype(ms.float32)
        x_nd = x_nd - spread(x_nd.mean(-1, True), x_nd.shape)
        inverse_n1 = ops.rsqrt((x_nd * x_nd).mean(-1, True) + self.eps)
        inverse_nd = spread(inverse_n1, x_nd.shape)
        return x_nd * inverse_nd, inverse_nd

    def construct(self, x, weight_d, bias_d):
        y_nd, _ = self.standard(x)
        y_nd = y_nd.astype(x.dtype) * spread(weight_d, y_nd.shape)
        return (y_nd + spread(bias_d, y_nd.shape)).reshape(x.shape)

    def bprop(self, x, weight_d, bias_d, out, grad):
        y_nd, inverse_nd = self.standard(x)
        grad_nd = grad.reshape((-1, self.width)).astype(ms.float32)
        d_weight, d_bias = column_sum(grad_nd * y_nd), column_sum(grad_nd)
        inner_nd = grad_nd * spread(weight_d.astype(ms.float32), y_nd.shape)
        mean_n1 = inner_nd.mean(-1, True)
        along_n1 = (inner_nd * y_nd).mean(-1, True)
        inner_nd = inner_nd - spread(mean_n1, y_nd.shape)
        d_x = (inner_nd - y_nd * spread(along_n1, y_nd.shape)) * inverse_nd
        d_x = d_x.astype(x.dtype).reshape(x.shape)
        return d_x, d_weight.astype(weight_d.dtype), d_bias.astype(bias_d.dtype)
