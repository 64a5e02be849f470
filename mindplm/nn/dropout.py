"""Dropout whose masks follow from a step number, so that an interrupted run drops the same again.

A generator with a hidden state of its own could not be saved and set by a checkpoint.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

STEP = "dropout.step"
"""Name of the step."""
OFF = -1
"""Value of the step at which nothing is dropped."""
_BITS = 24


def step_parameter() -> Parameter:
    """The step that all dropouts of a network share, int32 [1]; OFF at first."""
    return Parameter(Tensor([OFF], ms.int32), name=STEP, requires_grad=False)


class Dropout(nn.Cell):
    """Drops values with a probability and scales the others, so that the mean stays.

    Whether a value is dropped depends on its place in the tensor, the salt and the step.

    Args:
        p: Probability.
        step: From `step_parameter`.
        salt: Tells dropouts of a network from each other.

    Source: the finishing steps of MurmurHash3 (Appleby, public domain) as the mixing function.
    """

    def __init__(self, p: float, step: Parameter, salt: int):
        super().__init__()
        self.step, self.salt = step, salt % 2**31
        self.limit, self.scale = int(p * 2**_BITS), 1 / (1 - p)

    def mixed(self, number_n):
        """Spreads int32 numbers over all of int32's positive half; products wrap around."""
        positive = 2**31 - 1
        for shift, factor in ((16, -2048144789), (13, -1028477387), (16, 1)):
            number_n = ops.bitwise_and(number_n, positive)
            number_n = ops.bitwise_xor(number_n, ops.bitwise_right_shift(number_n, shift)) * factor
        return ops.bitwise_and(number_n, positive)

    def construct(self, x):
        place_n = ops.arange(x.size).astype(ms.int32)
        key = self.mixed(self.step * 747796405 + self.salt)
        drawn = ops.bitwise_and(self.mixed(self.mixed(place_n) + key), 2**_BITS - 1)
        calm = self.step < 0
        keep = ops.logical_or(drawn >= self.limit, calm).astype(x.dtype).reshape(x.shape)
        factor = ops.where(calm, 1.0, self.scale).astype(x.dtype)
        return x * keep * factor
