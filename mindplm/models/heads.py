"""A family's network with a head on it."""

from __future__ import annotations

from typing import Any

import mindspore as ms

from mindplm.errors import ConfigError
from mindplm.nn.heads import HeadedModel, HeadLoss


class HeadParts:
    """Makes what training needs of a family with a head.

    Args:
        cell: Config, type -> the family's network.
        states: Network, name of states -> cell for `HeadedModel`.
        form: What the head scores.
        num_classes: Scores of a text or token.
        name: Which states.
    """

    def __init__(self, cell: Any, states: Any, form: str, num_classes: int, name: str):
        self._cell, self._states = cell, states
        self._form, self._num_classes, self._name = form, num_classes, name

    def cell(self, config: Any, dtype=ms.float32) -> HeadedModel:
        """The network; parameters that the head does not look through are frozen."""
        states = self._states(self._cell(config, dtype), self._name)
        for weight in states.unused():
            weight.requires_grad = False
        std = config.init_std
        return HeadedModel(states, self._form, self._num_classes, std=std, dtype=dtype)

    def loss(self, model: HeadedModel) -> HeadLoss:
        """The training cell."""
        return HeadLoss(model, self._form)


def only_understanding(name: str, family: str) -> None:
    """Refuses states that a network with one decoder, or none, does not have."""
    if name != "understanding":
        raise ConfigError(f"head.states={name}: {family} has understanding only")
