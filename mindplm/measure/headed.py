"""Answers of networks with a head, as predictions like those of networks that write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mindplm import families, runtime
from mindplm.config import RunConfig, RuntimeConfig
from mindplm.config_head import classes_of, form_of
from mindplm.config_shape import ShapeConfig
from mindplm.config_task import TaskConfig, read_task
from mindplm.data import reading
from mindplm.data.cpm_bee import RecordError
from mindplm.data.documents import Document
from mindplm.data.head_rows import tagged_ids, text_ids
from mindplm.data.shapes import spans
from mindplm.errors import CheckpointError, ConfigError
from mindplm.measure.answers import Prediction
from mindplm.measure.questions import Questions
from mindplm.measure.results import TaskResult, summed_up
from mindplm.merged import open_model
from mindplm.nn.crf import best_tags, legal_steps
from mindplm.nn.values import load_model


class Headed:
    """A network with a head that answers the records of its task.

    Args:
        model: The network with its head, `mindplm.nn.heads.HeadedModel`.
        tokenizer: Its tokenizer.
        shape: What the head was trained on.
        seq_len: Tokens of a row.
        batch_size: Rows at once; answers do not depend on it.
    """

    def __init__(
        self, model: Any, tokenizer: Any, shape: ShapeConfig, seq_len: int, batch_size: int = 8
    ):
        @ms.jit
        def forward(ids, spans):
            return model(ids, spans)

        self._forward, self._tokenizer = forward, tokenizer
        self._crf = model.crf
        self.shape, self._form = shape, form_of(shape)
        self._seq_len, self._batch_size = seq_len, batch_size

    def measure(
        self, task: TaskConfig, questions: Questions, *, progress: bool = False
    ) -> TaskResult:
        """Figures and predictions of a task.

        Raises:
            ConfigError: The task's classes are not those that the head was trained on.
        """
        if classes_of(task.shape) != classes_of(self.shape):
            ours, theirs = ("|".join(classes_of(s)) for s in (self.shape, task.shape))
            raise ConfigError(f"task {task.name} has the classes {theirs}, the head has {ours}")
        return summed_up(task, questions, self.answers(questions.documents, progress=progress))

    def answers(self, documents: Sequence[Document], *, progress: bool = False) -> list[Prediction]:
        """The answer to each record; one that does not fit has its error."""
        found, rows = [], []
        for document in documents:
            prediction = Prediction(document)
            found.append(prediction)
            try:
                rows.append(self._rows(document))
            except RecordError as error:
                prediction.error = str(error)
                rows.append([])
        scores = self._scores([ids for own in rows for ids in own], progress)
        for prediction, own in zip(found, rows):
            part = [next(scores) for _ in own]
            if not prediction.error:
                prediction.answer = self._answer(prediction.document, part)
        return found

    def _rows(self, document: Document) -> list[list[int]]:
        if self._form == "span":
            return [window.ids for window in self._windows(document)]
        if self._form == "text":
            ids = text_ids(document, self.shape, self._tokenizer)
        else:
            ids, _ = tagged_ids(document, self._tokenizer)
        if len(ids) > self._seq_len:
            raise RecordError(f"{len(ids)} tokens, the head reads {self._seq_len}")
        return [ids]

    def _windows(self, document: Document) -> list[reading.Window]:
        return reading.windows_of(document, self._tokenizer, self._seq_len, answered=False)

    def _scores(self, rows: Sequence[list[int]], progress: bool) -> Any:
        """Scores of each row, padding left out of those of tokens."""
        size = self._batch_size
        firsts = tqdm(range(0, len(rows), size), desc="answer", disable=None if progress else True)
        for first in firsts:
            ids, spans_bt = (np.zeros((size, self._seq_len), np.int32) for _ in range(2))
            part = rows[first : first + size]
            for place, row in enumerate(part):
                ids[place, : len(row)] = row
                spans_bt[place, : len(row)] = 1
            scores = self._forward(Tensor(ids), Tensor(spans_bt)).asnumpy()
            for row, own in zip(part, scores):
                yield own if self._form == "text" else own[: len(row)]

    def _answer(self, document: Document, scores: Sequence[np.ndarray]) -> Any:
        """A candidate, (type, text) pairs, or a text."""
        if self._form == "text":
            return document.candidates[int(scores[0].argmax())]
        if self._form == "tokens":
            _, places = tagged_ids(document, self._tokenizer)
            names = classes_of(self.shape)
            tags = [names[i] for i in self._best(scores[0][places])]
            words = [(self.shape.types[kind], text) for kind, text in self._found(document, tags)]
            return list(dict.fromkeys(words))
        text = document.fields["input"]
        ends = [(own[:, 0], own[:, 1]) for own in scores]
        words_of_text = reading.words_of(reading.unescape(text))[0]
        best = reading.best_answers(words_of_text, self._windows(document), ends)
        return best[0][0] if best else ""

    def _best(self, scores_tc: np.ndarray) -> list[int]:
        """The tags of a row's tokens, together if the head has a field, else one by one."""
        if self._crf is None:
            return scores_tc.argmax(-1).tolist()
        top = scores_tc - scores_tc.max(-1, keepdims=True)
        log_tc = top - np.log(np.exp(top).sum(-1, keepdims=True))
        weights = [weight.asnumpy() for weight in self._crf.get_parameters()]
        legal = legal_steps(classes_of(self.shape))
        return best_tags(log_tc, weights[0], weights[1], weights[2], legal)[0]

    def _found(self, document: Document, tags: list[str]) -> list[tuple[str, str]]:
        return spans([token for token, _ in document.tagged], tags)


def of_run(config: RunConfig, model: Any, tokenizer: Any) -> Any:
    """The head of a run's network: `Headed`, or what a family with heads of its own has like it.

    Raises:
        ConfigError: The run has no head.
    """
    if config.head is None:
        raise ConfigError("the run has no head")
    entry = families.family(config.family)
    if entry.head_answers_ref:
        return entry.part("head_answers")(config, model, tokenizer)
    shape = read_task(config.head.task).shape
    return Headed(model, tokenizer, shape, config.data.seq_len, config.micro_batch_size)


def load(folder: str | Path, settings: RuntimeConfig | None = None) -> Any:
    """Reads a network with a head; None if the checkpoint has no head.

    Raises:
        CheckpointError: Something is missing or damaged.
    """
    opened = open_model(folder)
    if not (opened.run or {}).get("head"):
        return None
    if opened.adapter is not None:
        raise CheckpointError(f"{folder} holds adapters; merge them into their base first")
    settings = settings or RuntimeConfig()
    runtime.setup(settings)
    assert opened.run is not None
    config = families.config_from_dict(opened.run, f"{folder}/run.yaml")
    parts = families.parts_of(config.family, config.head)
    model = parts.part("cell")(opened.base.model(), runtime.compute_dtype(settings.dtype))
    load_model(model, opened.weights(), str(opened.base.folder))
    return of_run(config, model, opened.tokenizer())
