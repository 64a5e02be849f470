"""The settings of distillation: a small model follows a large one."""

from __future__ import annotations

from dataclasses import dataclass

from mindplm.strict import at_least, require


@dataclass(frozen=True)
class DistillConfig:
    """Training whose loss is hard x loss of the labels + soft x distance to a teacher."""

    teacher: str
    """A checkpoint, or run folder, of the model to follow, with the same vocabulary."""
    hard: float = 0.6
    """Weight of the loss of the labels."""
    soft: float = 0.4
    """Weight of the divergence of the model's predictions from the teacher's."""
    temperature: float = 1.0
    """Both models' scores are divided by it, and the divergence is multiplied by its square."""

    def __post_init__(self) -> None:
        require(self.teacher != "", "distill.teacher is empty, expected a checkpoint")
        at_least("distill", self, hard=0, soft=0)
        require(self.hard + self.soft > 0, "distill.hard and distill.soft are both 0")
        require(self.temperature > 0, f"distill.temperature={self.temperature}, expected > 0")
