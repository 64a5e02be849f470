"""Kernels: our formulations beside the framework's operators, in turn; both must agree.

Shapes are those of a training step of 12 x 768 with 4 x 512 tokens and a quarter of them
predicted; the last products are those of rows that are written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import Result
from mindplm import runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import UserError

if TYPE_CHECKING:
    from benchmarks.kernel_cases import Case

_TOLERANCE = 1e-3
_LARGEST_SCALE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes (default 1)")


def run(args: argparse.Namespace) -> list[Result]:
    """A row for each formulation."""
    if not 1 <= args.scale <= _LARGEST_SCALE:
        raise UserError(f"--scale {args.scale}, accepted: 1 to {_LARGEST_SCALE}")
    runtime.setup(RuntimeConfig(threads=args.threads))
    from benchmarks.kernel_cases import cases

    return [_compared(case, args.runs) for case in cases(args.scale)]


def _compared(case: Case, runs: int) -> Result:
    """Times both sides in turn; what they give is compared once."""
    sides = [_called(function, case) for function in (case.plain, case.ours)]
    worst = 0.0
    for wanted, found in zip(*(side() for side in sides), strict=True):
        worst = max(worst, float(np.abs(wanted - found).max() / (np.abs(wanted).max() or 1.0)))
    if not worst < _TOLERANCE:
        raise UserError(f"{case.name}: the two sides differ by {worst:.1e} of the largest value")
    seconds: list[list[float]] = [[], []]
    for _ in range(runs):
        for side, times in zip(sides, seconds):
            begin = time.perf_counter()
            side()
            times.append(time.perf_counter() - begin)
    plain, ours = (1e3 * statistics.median(times) for times in seconds)
    row: Result = {"what": case.name, "of": "gradient" if case.backward else "value"}
    row |= {"framework ms": plain, "ours ms": ours, "ours faster": plain / ours}
    return row | {"difference": worst, "seconds": seconds}


def _called(function: Callable[..., Any], case: Case) -> Callable[[], list[np.ndarray]]:
    """A call of one side that waits for the values, or for the gradients of the float inputs."""
    from mindspore import Tensor, nn, ops

    class Side(nn.Cell):
        def construct(self, *given):
            return function(*given)

    side, inputs = Side(), [Tensor(array) for array in case.inputs]
    if not case.backward:
        return lambda: [side(*inputs).asnumpy()]
    floats = [number for number, array in enumerate(case.inputs) if array.dtype == np.float32]

    class Gradient(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.side, self.grad = side, ops.GradOperation(get_all=True, sens_param=True)

        def construct(self, *given):
            return self.grad(self.side)(*given)

    gradient = Gradient()
    # The loss asks that what comes in is not below zero.
    probe = np.random.default_rng(1).random(side(*inputs).shape, np.float32)
    inputs.append(Tensor(probe))

    def call() -> list[np.ndarray]:
        found = gradient(*inputs)
        return [found[number].asnumpy() for number in floats]

    return call
