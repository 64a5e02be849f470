"""Distillation: the loss of a causal model that follows another one."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindplm.nn.causal import CausalLoss, CausalModel
from mindplm.nn.loss import IGNORE, distance, take_positions


class DistillLoss(nn.Cell):
    """hard * token loss + soft * distance to the teacher, summed over the labelled tokens.

    construct takes the columns of `CausalLoss`. The teacher's weights get no gradient.

    Args:
        student: The model that learns.
        teacher: The model that it follows, with the same vocabulary.
        hard: Weight of the loss of the labels.
        soft: Weight of the divergence of the student's distribution from the teacher's.
        temperature: Both logits are divided by it and the divergence multiplied by its square.

    Source: TsinghuaAI/CPM-1-Distill; Hinton et al. 2015, section 2.
    """

    def __init__(
        self,
        student: CausalModel,
        teacher: CausalModel,
        *,
        hard: float = 0.6,
        soft: float = 0.4,
        temperature: float = 1.0,
    ):
        super().__init__(auto_prefix=False)
        self.model, self.loss = student, CausalLoss(student)
        self.teacher = teacher
        for weight in teacher.get_parameters():
            weight.requires_grad = False
        self.hard, self.soft, self.temperature = hard, soft, temperature

    def tokens(self, *columns):
        """Losses [B * P], and 1 or 0 for places with and without a target, both fp32."""
        target_pos, targets = columns[3:]
        labels = targets.reshape((-1,))
        hidden = take_positions(self.model(*columns[:3]), target_pos)
        guide = take_positions(self.teacher(*columns[:3]), target_pos)
        wanted = ops.stop_gradient(self.teacher.project(guide))
        apart = distance(self.model.project(hidden), wanted, self.temperature)
        losses = self.loss.losses(hidden, labels) * self.hard + apart * self.soft
        return losses, (labels != IGNORE).astype(ms.float32)

    def construct(self, *columns):
        losses, real = self.tokens(*columns)
        return (losses * real).sum(), real.sum()
