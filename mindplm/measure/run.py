"""Running tasks on a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindplm.config_task import TaskConfig, read_task
from mindplm.generate.model import Model
from mindplm.measure import slotted
from mindplm.measure.answers import ask
from mindplm.measure.questions import Questions, read_questions
from mindplm.measure.results import TaskResult, summed_up


def evaluate_task(
    model: Model,
    tokenizer: Any,
    task: TaskConfig | str | Path,
    path: str = "",
    *,
    batch_size: int = 8,
    progress: bool = False,
    overrides: Sequence[str] = (),
) -> TaskResult:
    """Measures a model on a task.

    Args:
        model: From `mindplm.load`.
        tokenizer: From `mindplm.load`.
        task: A task file, or what was read from one.
        path: The data; empty: what the task names.
        batch_size: Records at once; results do not depend on it.
        progress: Show a bar.
        overrides: `key=value` texts that win over the task file, such as shots=4.

    Returns:
        Figures with confidence intervals, and all predictions; `print` shows a table.

    Raises:
        UserError: The task file or the data cannot be used.
    """
    if not isinstance(task, TaskConfig):
        task = read_task(task, overrides)
    questions = read_questions(task, path)
    return asked(model, tokenizer, task, questions, batch_size=batch_size, progress=progress)


def asked(
    model: Model,
    tokenizer: Any,
    task: TaskConfig,
    questions: Questions,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> TaskResult:
    """`evaluate_task` with questions that were read before."""
    give = slotted.fill if task.shape.slots.templates else ask
    predictions = give(model, tokenizer, task, questions, batch_size=batch_size, progress=progress)
    return summed_up(task, questions, predictions)
