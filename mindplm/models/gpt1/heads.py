"""GPT-1 with the head of a task: what training needs of it."""

from __future__ import annotations

from typing import Any

import mindspore as ms

from mindplm.models.gpt1.cell import TaskLoss, TaskModel, network
from mindplm.models.gpt1.config import Gpt1Config


class TaskParts:
    """Makes the network and the training cell of a task.

    Args:
        num_outputs: Scores of the head.
        chooses: Whether the sequences of an example compete.
        lm_weight: Weight of the language model's loss on the task's texts.
    """

    def __init__(self, num_outputs: int, chooses: bool, lm_weight: float):
        self._num_outputs, self._chooses, self._lm_weight = num_outputs, chooses, lm_weight

    def cell(self, config: Gpt1Config, dtype: Any = ms.float32) -> TaskModel:
        """The network."""
        model = network(config, dtype)
        return TaskModel(model, self._num_outputs, choose=self._chooses, std=config.init_std)

    def loss(self, model: TaskModel) -> TaskLoss:
        """The training cell: L2 + lm_weight * L1."""
        return TaskLoss(model, lm_weight=self._lm_weight)
