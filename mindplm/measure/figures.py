"""Figures with confidence intervals: proportions, means, ratios of sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

LEVEL = 0.95
_Z = 1.959963984540054
_RESAMPLES, _AT_ONCE, _SEED = 1000, 50, 0


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: The value; shares and F1 are between 0 and 1, BLEU, chrF and ROUGE to 100.
        low: Lower end of the 95 % confidence interval.
        high: Its upper end.
        count: Records that it was measured on.
    """

    value: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


def share(right: int, count: int) -> Figure:
    """A proportion with Wilson's interval.

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    if count == 0:
        return Figure(0.0, 0.0, 1.0, 0)
    part, square = right / count, _Z * _Z / count
    middle = (part + square / 2) / (1 + square)
    half = _Z * math.sqrt(part * (1 - part) / count + square / (4 * count)) / (1 + square)
    return Figure(part, max(0.0, middle - half), min(1.0, middle + half), count)


def mean(values: Sequence[float]) -> Figure:
    """A mean with a bootstrap interval."""
    sums = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    return of_sums(sums, lambda total: total[:, 0] / np.maximum(total[:, 1], 1))


def of_sums(sums: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]) -> Figure:
    """A figure that depends on sums over records, with a percentile bootstrap interval.

    Args:
        sums: What each record adds, [records, terms].
        formula: Sums [n, terms] -> figures [n].

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    count = len(sums)
    if count == 0:
        return Figure(0.0, 0.0, 0.0, 0)
    value = float(formula(sums.sum(0, keepdims=True))[0])
    rng = np.random.default_rng(_SEED)
    drawn = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE)
        drawn.append(formula(times @ sums))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(value, float(low), float(high), count)
