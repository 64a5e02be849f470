"""The best state of a run by a figure of its validations, and when to stop for want of a better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindplm.config import FinetuneConfig
from mindplm.errors import ConfigError

FOLDER = "best"
LOSS = "valid/loss"
_LOWER = ("loss", "per_char", "perplexity")


class Best:
    """Remembers the best validation.

    Args:
        config: Which figure counts, and the patience; None: nothing is kept.

    Attributes:
        step: Of the best validation, 0 before the first.
        value: Its figure.
        figure: Name of the figure; empty before the first validation unless it was set.
    """

    def __init__(self, config: FinetuneConfig | None):
        self.on = config is not None
        self.figure = config.best_by if config is not None else ""
        self._patience = config.patience if config is not None else 0
        self._worse = 0
        self.step, self.value = 0, 0.0

    @property
    def exhausted(self) -> bool:
        """Whether the run shall stop."""
        return 0 < self._patience <= self._worse

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes note of a validation; whether it is the best so far.

        Raises:
            ConfigError: It does not have the figure.
        """
        if not self.on:
            return False
        if not self.figure:
            self.figure = next((name for name in values if name.count("/") > 1), LOSS)
        if self.figure not in values:
            raise ConfigError(
                f"finetune.best_by={self.figure} is not measured; accepted: {', '.join(values)}"
            )
        value = values[self.figure]
        lower = self.figure.rpartition("/")[2] in _LOWER
        better = not self.step or (value < self.value if lower else value > self.value)
        self._worse = 0 if better else self._worse + 1
        if better:
            self.step, self.value = step, value
        return better

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"figure": self.figure, "step": self.step, "value": self.value, "worse": self._worse}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; another figure than its begins anew."""
        if not self.on or not state or self.figure not in ("", state["figure"]):
            return
        self.figure, self._worse = state["figure"], state["worse"]
        self.step, self.value = state["step"], state["value"]

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.4f} at step {self.step}"
