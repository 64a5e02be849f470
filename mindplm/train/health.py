"""Steps that go wrong: numbers that are none, spikes of the loss, overflows. What is done and told.

Every such step is a line of events.jsonl in the run folder, with the numbers of its rows, and a
warning in the log; totals are in the metrics.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mindplm.config import TrainConfig
from mindplm.errors import UserError
from mindplm.runtime import log
from mindplm.train.step import LARGEST, Report

FILE = "events.jsonl"
_KEEP = 0.98
"""Weight of the past in the running mean of the losses."""
_WARM = 20
"""Losses in the mean before one can be a spike."""
_SHOWN_ROWS = 8


class Health:
    """Looks at each step's report.

    Args:
        config: What to do.
        folder: The run folder; None writes nothing.
        data: Where the rows are, for messages.
    """

    def __init__(self, config: TrainConfig, folder: Path | None, data: str):
        self.config, self.data = config, data
        self.path = folder / FILE if folder is not None else None
        self.counts = {"overflows": 0, "skipped": 0, "spikes": 0}
        self._mean, self._weight, self._num = 0.0, 0.0, 0
        self._in_a_row = 0

    @property
    def mean(self) -> float:
        """Running mean of the losses; infinite as long as there are few."""
        return self._mean / self._weight if self._num >= _WARM else math.inf

    @property
    def loss_limit(self) -> float:
        """Loss from which on the weights shall not move."""
        if self.config.on_spike != "skip":
            return LARGEST
        return min(LARGEST, self.config.spike_factor * self.mean)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {**self.counts, "mean": [self._mean, self._weight, self._num]}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.counts = {name: int(state.get(name, 0)) for name in self.counts}
        self._mean, self._weight, self._num = state.get("mean", (0.0, 0.0, 0))

    def see(self, step: int, report: Report, info: dict[str, Any]) -> None:
        """Takes note of a step.

        Args:
            step: Its number, from 1 on.
            report: What it told.
            info: Of its batch: rows.

        Raises:
            UserError: The run shall stop because of it.
        """
        loss, mean = report.loss, self.mean
        factor = self.config.spike_factor
        finite = math.isfinite(loss) and math.isfinite(report.norm)
        spike = finite and factor > 0 and (loss > factor * mean or not report.moved)
        if finite and not spike and not report.moved:
            raise RuntimeError(f"step {step} got rates that do not fit its updates")
        if not finite and report.scale > 1:
            self.counts["overflows"] += 1
            self._skipped(step)
            return
        if spike:
            self.counts["spikes"] += 1
        if not report.moved:
            self.counts["skipped"] += 1
        if finite and not spike:
            self._mean = _KEEP * self._mean + (1 - _KEEP) * loss
            self._weight = _KEEP * self._weight + (1 - _KEEP)
            self._num += 1
        if finite and not spike:
            self._in_a_row = 0
            return
        self._event(step, "spike" if spike else "nan", report, info, mean)
        if self.config.on_spike == "stop" if spike else self.config.on_nan == "stop":
            setting = "on_spike" if spike else "on_nan"
            raise UserError(
                f"{self._why(step, report, info, mean, spike)}; lower optim.lr, or go on over such "
                f"steps with train.{setting}=skip"
            )
        log.warning("%s", self._why(step, report, info, mean, spike))
        if not report.moved:
            self._skipped(step)

    def _skipped(self, step: int) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self.config.max_skipped:
            raise UserError(
                f"step {step}: the last {self._in_a_row} steps moved no weight "
                f"(train.max_skipped={self.config.max_skipped}); lower optim.lr, or go on from an "
                "older checkpoint"
            )

    def _why(
        self, step: int, report: Report, info: dict[str, Any], mean: float, spike: bool
    ) -> str:
        rows = [int(row) for row in info["rows"]]
        more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
        what = (
            f"loss {report.loss:.4g} is more than {self.config.spike_factor:g} times {mean:.4g}, "
            "the mean of the last ones"
            if spike
            else f"loss {report.loss} and gradient norm {report.norm}"
        )
        return (
            f"step {step} has {what}; {'the weights moved' if report.moved else 'not used'}; rows "
            f"{', '.join(map(str, rows[:_SHOWN_ROWS]))}{more} of {self.data}"
        )

    def _event(
        self, step: int, kind: str, report: Report, info: dict[str, Any], mean: float
    ) -> None:
        if self.path is None:
            return
        line = {
            "step": step,
            "event": kind,
            "loss": _number(report.loss),
            "grad_norm": _number(report.norm),
            "mean": _number(mean),
            "moved": report.moved,
            "rows": [int(row) for row in info["rows"]],
            "data": self.data,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
