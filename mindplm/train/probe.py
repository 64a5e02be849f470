"""A closer look at a run: statistics of parameters, and where the time of its steps goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindplm import runtime
from mindplm.nn.values import to_arrays
from mindplm.runtime import log

if TYPE_CHECKING:
    from mindplm.train.trainer import Trainer

_NUMBERS = ("mean", "std", "min", "max")


def statistics(array: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, smallest and largest value, in fp64."""
    wide = array.astype(np.float64)
    return {
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "min": float(wide.min()),
        "max": float(wide.max()),
    }


class Inspector:
    """Tables of all weights and of their mean gradients, the first moments of the optimizer.

    Args:
        trainer: The run.
        path: The JSON lines that keep the numbers; None on other ranks than 0, which tell nothing.
    """

    def __init__(self, trainer: Trainer, path: Path | None):
        self._trainer, self._path = trainer, path

    def __call__(self, step: int) -> None:
        """Writes the table of a step, and shows it in the log."""
        if self._path is None:
            return
        weights = self._trainer.weights()
        moments = to_arrays(self._trainer.optimizer.moment1)
        width = max(map(len, weights))
        log.info("%-*s %s", width, f"step {step}", " ".join(f"{n:>10}" for n in _NUMBERS * 2))
        with open(self._path, "a", encoding="utf-8") as file:
            for weight, moment in zip(self._trainer.optimizer.weights, moments.values()):
                value, gradient = statistics(weights[weight.name]), statistics(moment)
                shown = [*value.values(), *gradient.values()]
                log.info("%-*s %s", width, weight.name, " ".join(f"{n:10.3g}" for n in shown))
                line = {"step": step, "name": weight.name, "value": value, "gradient": gradient}
                file.write(json.dumps(line) + "\n")


class Profiler:
    """Times the steps of a range and lets MindSpore's profiler watch them where it can.

    Args:
        steps: First step and the one after the last; (0, 0): none.
        folder: Where the results go.
        rank: Number of this process.
    """

    def __init__(self, steps: tuple[int, int], folder: Path, rank: int):
        self._first, self._end = steps
        self._folder, self._rank = folder, rank
        self._profile: Any = None

    def before(self, step: int) -> None:
        """Begins with the first step."""
        if step == self._first:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile = runtime.start_profile(self._folder / f"rank_{self._rank}")

    def after(self, step: int, waited_s: float, computed_s: float) -> None:
        """Notes a step's times; ends with the last one."""
        if not self._first <= step < self._end:
            return
        line = {
            "step": step,
            "wait_ms": round(1000 * waited_s, 3),
            "compute_ms": round(1000 * computed_s, 3),
        }
        path = self._folder / f"steps_{self._rank}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if step == self._end - 1:
            if self._profile is not None:
                self._profile.stop()
            log.info("profile     %s", self._folder)
