"""What happened since the last log line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindplm.train.step import Report


@dataclass
class Window:
    """Sums of the steps between two log lines.

    Attributes:
        task_names: Names of the tasks whose losses the reports hold.
        waited_s: Seconds spent waiting for batches.
        begin_s: Start of the window; pauses are added to it.
    """

    task_names: Sequence[str] = ()
    waited_s: float = 0.0
    begin_s: float = field(default_factory=time.perf_counter)
    _reports: list[Report] = field(default_factory=list)
    _targets: list[int] = field(default_factory=list)
    _tokens: int = 0
    _flops: float = 0.0

    def __len__(self) -> int:
        return len(self._reports)

    def add(self, report: Report, info: dict[str, Any], flops: float = 0.0) -> None:
        """Takes in a step: its report, its batch's tokens and targets, its arithmetic."""
        self._reports.append(report)
        self._targets.append(info["targets"])
        self._tokens += info["tokens"]
        self._flops += flops

    def values(self, peak_flops: float = 0.0) -> dict[str, float]:
        """Means over the window, each target weighing the same.

        Args:
            peak_flops: What all devices together can do in a second; 0: not known.
        """
        losses = np.array([report.loss for report in self._reports])
        counts = np.array(self._targets, np.float64)
        finite = np.isfinite(losses)
        weight = counts[finite].sum()
        time_s = time.perf_counter() - self.begin_s
        result = {
            "train/loss": float(losses[finite] @ counts[finite] / weight) if weight else math.nan,
            "train/grad_norm": self._reports[-1].norm,
            "train/step_ms": 1000 * time_s / len(losses),
            "train/tokens_per_s": self._tokens / time_s,
            "train/wait": self.waited_s / time_s,
        }
        if peak_flops and self._flops:
            result["train/mfu"] = self._flops / time_s / peak_flops
        nats = np.sum([report.task_nats for report in self._reports], 0)
        targets = np.sum([report.task_targets for report in self._reports], 0)
        for name, loss, count in zip(self.task_names, nats, targets):
            if count:
                result[f"task/{name}"] = float(loss / count)
        return result
