"""Formulations of elementary functions, chosen once here for every device.

On CPU the fused kernels of some operators are slower than the same formula written with other
operators, and some of Ascend's have no CPU kernel. Every model calls these functions only, and a
test checks that all formulations agree.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


@ms.constexpr
def on_cpu() -> bool:
    """Whether graphs are being built for CPU; known when a graph is compiled."""
    return ms.get_context("device_target") == "CPU"


@ms.constexpr
def on_ascend() -> bool:
    """Whether graphs are being built for Ascend."""
    return ms.get_context("device_target") == "Ascend"


_LARGE = 1 << 16


@ms.constexpr
def _repeats(own: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """How often each axis is repeated; each once where to broadcast is as good."""
    once = (1,) * len(own)
    if tuple(own) == tuple(shape) or math.prod(own) == 1:
        return once  # a single value needs no table
    if min(shape) < 1 or math.prod(shape) < _LARGE:
        return once
    if ms.get_context("device_target") != "CPU":
        return once
    whole = (1,) * (len(shape) - len(own)) + tuple(own)
    if len(whole) > len(shape) or any(size not in (1, n) for size, n in zip(whole, shape)):
        return once  # the other operand is broadcast too
    return tuple(wanted // size for wanted, size in zip(shape, whole))


_tile, _gather = ops.Tile(), ops.Gather()


def spread(x, shape):
    """x repeated to the shape of what it will be combined with, where that pays: on CPU.

    A kernel there that broadcasts makes two tables of 8 bytes for each element of its output when
    it is built, keeps them as long as the program runs, and takes three times as long as one
    for operands of equal shape. For small ones the one kernel more would cost more. The values are
    the same. The compiler removes what repeats nothing; there is no branch and no further function
    here, since it loses those of what a gradient calls when a second network is compiled.

    Args:
        x: Of a shape that can be broadcast to the other.
        shape: Of the other operand, static.
    """
    return _tile(x, _repeats(x.shape, shape))


SQRT_HALF = 0.7071067811865476
TWO_OVER_ROOT_PI = 1.1283791670955126
ROOT_TWO_OVER_PI = 0.7978845608028654
# Added to the logits of masked positions; finite, so that a row of masks is no NaN anywhere.
MASKED = -1e30


class _Erf(nn.Cell):
    """Error function for CPU, whose gradient squares by a product.

    The framework's takes a power there, a kernel that broadcasts, see `spread`.
    """

    def construct(self, x):
        return ops.erf(x)

    def bprop(self, x, out, grad):
        return (grad * (ops.exp(-(x * x)) * TWO_OVER_ROOT_PI),)


_erf = _Erf()


def gelu(x, scale: float = 1.0):
    """Exact GELU times a constant, x * Phi(x) * scale, by the error function.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", equation in section 2.
    """
    inner = x * SQRT_HALF
    erf = _erf(inner) if on_cpu() else ops.erf(inner)
    return x * ((erf + 1.0) * (0.5 * scale))


def gelu_tanh(x, scale: float = 1.0):
    """Approximate GELU, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), times a constant.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2.
    """
    inner = (x + x * x * x * 0.044715) * ROOT_TWO_OVER_PI
    return x * ((ops.tanh(inner) + 1.0) * (0.5 * scale))


class Softmax(nn.Cell):
    """Softmax over the last axis of logits [B, H, T, S], computed in fp32; returns fp32.

    The gradient p * (g - sum(g * p)) is composed here: on CPU it takes a fraction of the time of
    the framework's, most of which is the sum.
    """

    def construct(self, logits_bhts):
        return ops.softmax(logits_bhts.astype(ms.float32), axis=-1)

    def bprop(self, logits_bhts, out, grad):
        product = grad * out
        rows = product.reshape((-1, out.shape[-1]))  # four axes take 8 times as long on CPU
        inner = rows.sum(-1, keepdims=True).reshape(out.shape[:-1] + (1,))
        return ((product - out * spread(inner, out.shape)).astype(logits_bhts.dtype),)


@ms.constexpr
def _swapped_rows(num: int, first: int, second: int) -> Tensor:
    """Where each row of the swapped array comes from, int32."""
    rows = np.arange(num * first * second, dtype=np.int32).reshape(num, first, second)
    return Tensor(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1))


def _gathered(x):
    num, first, second, width = x.shape
    rows = _gather(x.reshape((-1, width)), _swapped_rows(num, first, second), 0)
    return rows.reshape((num, second, first, width))


class _Swap(nn.Cell):
    """Swaps the two middle axes of four by gathering rows, forward and backward."""

    def construct(self, x):
        return _gathered(x)

    def bprop(self, x, out, grad):
        return (_gathered(grad),)


_swap = _Swap()


def swapped(x):
    """x with the two middle of its four axes swapped.

    On CPU rows are gathered if there are many: the kernel that transposes makes a table of 8 bytes
    for each element when it is built, and keeps it as long as the program runs.
    """
    if on_cpu() and x.size >= _LARGE:
        return _swap(x)
    return x.transpose((0, 2, 1, 3))


def one_below(count: int, limit):
    """Boolean vector [count], True where the index is below limit (int32 tensor of one element)."""
    return ops.arange(count).astype(ms.int32) < limit


def masked(value, mask):
    """Replaces value where mask is False by a large negative number, in fp32."""
    return ops.where(mask, value.astype(ms.float32), Tensor(MASKED, ms.float32))


def mask_bias(mask_bts):
    """fp32 bias [B, 1, T, S] for attention: 0 where a boolean mask is True, else very negative."""
    zero, low = Tensor(0.0, ms.float32), Tensor(MASKED, ms.float32)
    return ops.where(mask_bts, zero, low).expand_dims(1)


def sum_squares(x):
    """Sum of squares in fp32.

    On CPU as the product of the flat vector with itself: a reduction over millions of elements is
    several times slower there. Elsewhere products may round their inputs, so a reduction it is.
    """
    flat = x.astype(ms.float32).reshape((1, -1))
    if on_cpu():
        return ops.MatMul(transpose_b=True)(flat, flat).reshape(())
    return (flat * flat).sum()


def row_max(x_nv):
    """Largest values of rows, [N, 1]; on CPU by the kernel that also finds their places.

    The one for values alone takes 6 to 10 times as long there (512 rows of 86,583).
    """
    if on_cpu():
        return ops.ArgMaxWithValue(axis=-1, keep_dims=True)(x_nv)[1]
    return ops.ReduceMax(keep_dims=True)(x_nv, -1)


def column_sum(x_nv):
    """Sums of columns, [V] fp32; on CPU as a product with a row of ones, which is faster."""
    x_nv = x_nv.astype(ms.float32)
    if on_cpu():
        ones = ops.ones((1, x_nv.shape[0]), ms.float32)
        return ops.MatMul()(ones, x_nv).reshape((x_nv.shape[1],))
    return x_nv.sum(0)


@ms.constexpr
def _turned(num_rows: int) -> bool:
    """Whether a product of so many rows is faster turned round."""
    return ms.get_context("device_target") == "CPU" and 12 <= num_rows <= 64


def projected(product, x_nd, weight_od, may_turn: bool):
    """x W^T by a product that transposes its second operand, a `MatMul(transpose_b=True)`.

    On CPU it may be the transpose of W x^T for 12 to 64 rows, as a batch that writes has them: with
    the few rows in front oneDNN takes up to four times as long (16 rows, W of 768 x 2,048). For
    fewer rows both ways take as long as it takes to read W. A product that is cut over devices
    must keep its operands' places.
    """
    if may_turn and _turned(x_nd.shape[0]):
        return product(weight_od, x_nd).transpose((1, 0))
    return product(x_nd, weight_od)


def overflowed(grads):
    """Whether the chip noted an overflow, fp32 scalar 1 or 0; infinities that show are not meant.

    Ascend chips that saturate give no infinities: there only a register tells, and it must be read
    before gradients of several devices are added up. Everywhere else the norm of the gradients is
    infinite or no number after an overflow.
    """
    if on_ascend():
        return 1.0 - ms.amp.all_finite(grads).astype(ms.float32)
    return Tensor(0.0, ms.float32)
