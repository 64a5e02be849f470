"""GPT-1 with the head of a task: what training needs of it."""

from __future__ import annotations

from typing import Any

import mindspore as ms

from mindplm.config_head import HeadConfig, marked_form
from mindplm.config_shape import ShapeConfig
from mindplm.models.gpt1.cell import TaskLoss, TaskModel, network
from mindplm.models.gpt1.config import Gpt1Config


class TaskParts:
    """Makes the network and the training cell of a task.

    Args:
        shape: Of the task's data.
        head: Settings of the head.
    """

    def __init__(self, shape: ShapeConfig, head: HeadConfig):
        self._form, self._lm_weight = marked_form(shape, head), head.lm_weight

    def cell(self, config: Gpt1Config, dtype: Any = ms.float32) -> TaskModel:
        """The network."""
        form = self._form
        model = network(config, dtype)
        return TaskModel(model, form.num_outputs, choose=form.chooses, std=config.init_std)

    def loss(self, model: TaskModel) -> TaskLoss:
        """The training cell: L2 + lm_weight * L1."""
        return TaskLoss(model, lm_weight=self._lm_weight)
