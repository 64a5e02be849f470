"""Formulations of elementary functions, chosen once here for every device.

On CPU the fused kernels of some operators are slower than the same formula written with other
operators, and some of Ascend's have no CPU kernel. Every model calls these functions only, and a
test checks that all formulations agree.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

SQRT_HALF = 0.7071067811865476
# Added to the logits of masked positions; finite, so that a row of masks is no NaN anywhere.
MASKED = -1e30


def gelu(x):
    """Exact GELU, x * Phi(x), by the error function.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", equation in section 2.
    """
    return x * (0.5 * (1.0 + ops.erf(x * SQRT_HALF)))


def softmax(logits):
    """Softmax over the last axis, computed in fp32; returns fp32."""
    return ops.softmax(logits.astype(ms.float32), axis=-1)


def one_below(count: int, limit):
    """Boolean vector [count], True where the index is below limit (int32 tensor of one element)."""
    return ops.arange(count).astype(ms.int32) < limit


def masked(value, mask):
    """Replaces value where mask is False by a large negative number, in fp32."""
    return ops.where(mask, value.astype(ms.float32), Tensor(MASKED, ms.float32))
