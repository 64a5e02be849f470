"""Answers of GPT-1 with a head, as predictions like those of networks that write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from tqdm import tqdm

from mindplm.config import RunConfig
from mindplm.config_head import marked_form
from mindplm.config_task import TaskConfig, read_task
from mindplm.data.documents import Document
from mindplm.data.gpt1_tasks import arrays
from mindplm.data.marked_rows import example_of, form_of_run, marks_of
from mindplm.errors import ConfigError, DataError
from mindplm.measure.answers import Prediction
from mindplm.measure.questions import Questions
from mindplm.measure.results import TaskResult, summed_up


class Marked:
    """A network with a head that answers the records of its task.

    Args:
        config: Settings of the run that trained it.
        model: `mindplm.models.gpt1.cell.TaskModel`.
        tokenizer: Its tokenizer.
    """

    def __init__(self, config: RunConfig, model: Any, tokenizer: Any):
        @ms.jit
        def forward(ids, length, extract):
            return ops.log_softmax(model(ids, length, extract), -1)

        assert config.head is not None
        self._forward, self._tokenizer, self._head = forward, tokenizer, config.head
        self._shape, self._form = read_task(config.head.task).shape, form_of_run(config)
        self._seq_len, self._size = config.data.seq_len, min(config.micro_batch_size, 16)

    def measure(
        self, task: TaskConfig, questions: Questions, *, progress: bool = False
    ) -> TaskResult:
        """Figures and predictions of a task.

        Raises:
            ConfigError: The task's classes are not those that the head was trained on.
        """
        form = marked_form(task.shape, self._head)
        if form != self._form or list(task.shape.labels) != list(self._shape.labels):
            raise ConfigError(f"task {task.name} is not of the form that the head was trained on")
        return summed_up(task, questions, self.answers(questions.documents, progress=progress))

    def answers(self, documents: Sequence[Document], *, progress: bool = False) -> list[Prediction]:
        """The answer to each record; one that does not fit has its error."""
        found = [Prediction(document) for document in documents]
        examples = []
        for prediction in found:
            try:
                own, _ = example_of(
                    prediction.document, self._shape, self._form, self._tokenizer, self._seq_len
                )
                examples.append((prediction, own))
            except DataError as error:
                prediction.error = str(error)
        marks = marks_of(self._tokenizer)
        bar = tqdm(total=len(examples), desc="answer", disable=None if progress else True)
        for first in range(0, len(examples), self._size):
            part = examples[first : first + self._size]
            columns = arrays([own for _, own in part], marks, self._seq_len, self._size)
            scores = self._forward(*map(Tensor, columns.values())).asnumpy()
            for (prediction, _), own in zip(part, scores.astype(np.float64)):
                prediction.nats = (-own).tolist()
                prediction.answer = prediction.document.candidates[int(own.argmax())]
            bar.update(len(part))
        bar.close()
        return found
