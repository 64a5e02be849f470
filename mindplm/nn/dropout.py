"""Dropout whose masks follow from a step number, so that an interrupted run drops the same again.

A generator with a hidden state of its own could not be saved and set by a checkpoint. Networks are
built with their dropouts turned off, where they are no operators at all; only training turns them
on. The first axis of what is dropped begins with the rows of a batch: a value's fate depends on its
place in the whole batch of all devices, not on how the batch is cut.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindplm.nn.init import stream
from mindplm.nn.kernels import spread

STEP = "dropout.step"
"""Name of the parameter that says what is dropped; it is no weight."""
OFF = -1
"""The step at which nothing is dropped."""
_BITS = 31
_LOWEST = -(2**_BITS)
_ODD = -1640531535  # the golden ratio of 32 bits: spreads the numbers of rows


def step_parameter() -> Parameter:
    """What all dropouts of a network share, see `told`; OFF at first."""
    return Parameter(Tensor(told(OFF)), name=STEP, requires_grad=False)


def told(step: int, part: int = 0) -> np.ndarray:
    """1 or 0 for steps of training and others, number of the part, a number of the step; int32."""
    key = 0 if step == OFF else int(stream(step, STEP).integers(2**_BITS))
    return np.array([step != OFF, part, key], np.int32)


@ms.constexpr
def _columns(width: int) -> Tensor:
    """An odd number for each place of the last axis, int32 [1, width]."""
    drawn = stream(width, "columns").integers(-(2**_BITS), 2**_BITS, size=width)
    return Tensor((drawn | 1).astype(np.int32)[None])


class Dropout(nn.Cell):
    """Drops values with a probability and scales the others, so that the mean stays.

    Whether a value is dropped depends on its place in the whole batch, the salt and the step: an
    odd number of its row times one of its column is below a limit. Only the rows' numbers are
    mixed, since mixing every value takes as long as the rest of a small network's step.
    Gives its input back until it is turned on, and while the step is OFF.

    Source: the finishing steps of MurmurHash3 (Appleby, public domain) mix; products of odd numbers
    whose high bits are taken are the multiplicative hashing of Dietzfelbinger et al. (1997).
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self.salt = self.limit = 0
        self.more = 0.0
        self.step: Any = None

    def turn_on(self, p: float, step: Parameter, salt: int) -> None:
        """Makes it work; to be done before anything is compiled.

        Args:
            p: Probability.
            step: From `step_parameter`.
            salt: Tells dropouts of a network from each other.
        """
        self.active, self.step, self.salt = True, step, salt % 2**_BITS
        self.limit, self.more = _LOWEST + int(p * 2 ** (_BITS + 1)), 1 / (1 - p) - 1
        step.name = STEP  # entering a cell has renamed it

    def mixed(self, number):
        """Spreads int32 numbers over all of int32's positive half; products wrap around."""
        positive = 2**_BITS - 1
        for shift, factor in ((16, -2048144789), (13, -1028477387)):
            number = ops.bitwise_and(number, positive)
            number = ops.bitwise_xor(number, ops.bitwise_right_shift(number, shift)) * factor
        number = ops.bitwise_and(number, positive)
        return ops.bitwise_xor(number, ops.bitwise_right_shift(number, 16))

    def construct(self, x):
        if not self.active:
            return x
        width = x.shape[-1]
        rows = x.size // width
        row_n1 = ops.arange(rows).astype(ms.int32).expand_dims(1) + self.step[1] * rows
        key_n1 = ops.bitwise_or(self.mixed(row_n1 * _ODD + (self.step[2] + self.salt)), 1)
        drawn_nw = spread(key_n1, (rows, width)) * spread(_columns(width), (rows, width))
        limit = self.step[0] * self.limit + (1 - self.step[0]) * _LOWEST
        keep_nw = (drawn_nw >= limit).astype(x.dtype)
        factor = (self.step[0].astype(ms.float32) * self.more + 1.0).astype(x.dtype)
        return x * (keep_nw * factor).reshape(x.shape)


def turn_on(network: nn.Cell, p: float, *, seed: int, spared: Sequence[str] = ()) -> None:
    """Lets the dropouts of a network that is trained work, with one probability.

    Args:
        network: Nothing has been compiled with it yet.
        p: Probability; 0: nothing is done.
        seed: Of the run.
        spared: Patterns of names of dropouts that stay off.
    """
    if not p:
        return
    step = dropout_step(network)
    step = step_parameter() if step is None else step
    for name, cell in network.cells_and_names():
        if not isinstance(cell, Dropout) or cell.active:
            continue
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in spared):
            cell.turn_on(p, step, salt_of(seed, name))


def salt_of(seed: int, name: str) -> int:
    """A salt for each name."""
    return int(stream(seed, f"{name}.dropout").integers(2**31))


def dropout_step(network: nn.Cell) -> Parameter | None:
    """What `step_parameter` made for the dropouts of a network; None if it has none at work."""
    return next((p for p in network.get_parameters() if p.name == STEP), None)


class Moment:
    """Tells the dropouts of a network which step comes, and which part of its batch.

    Args:
        network: Nothing is told if it has no dropouts at work.
        first: Number of this device's first part of a batch, among those of all devices.
    """

    def __init__(self, network: nn.Cell | None = None, first: int = 0):
        self._step = None if network is None else dropout_step(network)
        self._first = first

    def begin(self, step: int, part: int = 0) -> None:
        """A part of a step's batch comes."""
        self._set(step, self._first + part)

    def end(self) -> None:
        """What comes is no step of training."""
        self._set(OFF, 0)

    def _set(self, step: int, part: int) -> None:
        if self._step is not None:
            ops.assign(self._step, Tensor(told(step, part)))
