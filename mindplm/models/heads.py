"""A family's network with a head on it."""

from __future__ import annotations

from typing import Any

import mindspore as ms

from mindplm.config_head import HeadConfig
from mindplm.errors import ConfigError
from mindplm.nn.heads import CrfLoss, HeadedModel, HeadLoss


class HeadParts:
    """Makes what training needs of a family with a head.

    Args:
        cell: Config, type -> the family's network.
        states: Network, name of states -> cell for `HeadedModel`.
        form: What the head scores.
        num_classes: Scores of a text or token.
        head: Which states, and whether there is a conditional random field.
    """

    def __init__(self, cell: Any, states: Any, form: str, num_classes: int, head: HeadConfig):
        self._cell, self._states = cell, states
        self._form, self._num_classes, self._head = form, num_classes, head

    def cell(self, config: Any, dtype=ms.float32) -> HeadedModel:
        """The network; parameters that the head does not look through are frozen."""
        states = self._states(self._cell(config, dtype), self._head.states)
        for weight in states.unused():
            weight.requires_grad = False
        more: dict[str, Any] = {"std": config.init_std, "crf": self._head.crf, "dtype": dtype}
        return HeadedModel(states, self._form, self._num_classes, **more)

    def loss(self, model: HeadedModel) -> HeadLoss | CrfLoss:
        """The training cell."""
        if self._head.crf:
            return CrfLoss(model)
        return HeadLoss(model, self._form)


def only_understanding(name: str, family: str) -> None:
    """Refuses states that a network with one decoder, or none, does not have."""
    if name != "understanding":
        raise ConfigError(f"head.states={name}: {family} has understanding only")
