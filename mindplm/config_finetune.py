"""The settings of finetuning: what a run watches, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindplm.strict import at_least, require


@dataclass(frozen=True)
class WatchedTask:
    """A task that is measured at each validation."""

    task: str
    """Task file."""
    path: str = ""
    """Its data; empty: what the task file names."""
    limit: int = 200
    """At most so many of its records, spread evenly over them; 0: all."""

    def __post_init__(self) -> None:
        require(self.task != "", "finetune.tasks: task is empty, expected a task file")
        at_least("finetune.tasks", self, limit=0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Training that keeps its best state."""

    tasks: list[WatchedTask] = field(default_factory=list)
    """Tasks that are measured at each validation."""
    best_by: str = ""
    """Name of the figure in the log that tells the best checkpoint, such as valid/loss; empty: the
    first metric of the first task, or else valid/loss."""
    patience: int = 0
    """Validations without a better figure that end the run; 0: none do."""

    def __post_init__(self) -> None:
        at_least("finetune", self, patience=0)
