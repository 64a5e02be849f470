"""Asking a model: the likeliest candidate, or what it writes, as predictions of one form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindplm import families
from mindplm.config_task import TaskConfig
from mindplm.data.causal_text import Framed
from mindplm.data.cpm_bee import ANSWER
from mindplm.data.documents import Document
from mindplm.data.shapes import BLANK, plain
from mindplm.errors import DataError
from mindplm.generate import write_each
from mindplm.generate.model import Model
from mindplm.generate.scoring import Score, score_each
from mindplm.measure.questions import Questions


@dataclass
class Prediction:
    """The answer to one record.

    Attributes:
        document: What was asked.
        answer: A candidate, a text, a dict of texts, or (type, text) pairs; None: no usable one.
        nats: Minus log-probabilities of the candidates, as they were compared.
        written: What was written, if anything was.
        right: Score of the reference answer, if it was asked for.
        error: Why it could not be asked.
    """

    document: Document
    answer: Any = None
    nats: list[float] = field(default_factory=list)
    written: Any = None
    right: Score | None = None
    error: str = ""


def ask(
    model: Model,
    tokenizer: Any,
    task: TaskConfig,
    questions: Questions,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Prediction]:
    """Answers all questions; a record that the model cannot take has its error.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        task: How to ask.
        questions: What to ask.
        batch_size: Records at once; answers do not depend on it.
        progress: Show a bar.
    """
    if families.family(model.family).plain_texts and task.shape.kind != "records":
        questions = _unescaped(questions)
    scoring = _Scoring(model, tokenizer, task, questions.shots, batch_size, progress)
    found = [Prediction(document) for document in questions.documents]
    if task.method == "likelihood":
        _choose(found, task, scoring)
    elif set(task.metrics) != {"perplexity"}:
        records = [{**d.fields, ANSWER: _emptied(d.fields[ANSWER])} for d in questions.documents]
        written = write_each(
            model,
            tokenizer,
            records,
            task.generate,
            examples=questions.shots,
            batch_size=batch_size,
            progress=progress,
        )
        for prediction, record in zip(found, written):
            if isinstance(record, DataError):
                prediction.error = str(record)
            else:
                prediction.written = plain(record[ANSWER])
                prediction.answer = understood(prediction, task)
    if "perplexity" in task.metrics:
        for prediction, score in zip(found, scoring([d.fields for d in questions.documents])):
            if isinstance(score, DataError):
                prediction.error = str(score)
            else:
                prediction.right = score
    return found


def _unescaped(questions: Questions) -> Questions:
    """The same questions with records for families that have no tags."""
    documents = [
        dataclasses.replace(
            document,
            fields=plain(document.fields),
            candidates=tuple(map(plain, document.candidates)),
            references=tuple(map(plain, document.references)),
        )
        for document in questions.documents
    ]
    shots = [plain(record) for record in questions.shots]
    return dataclasses.replace(questions, documents=documents, shots=shots)


def understood(prediction: Prediction, task: TaskConfig) -> Any:
    """What a written answer means in a task: a candidate, pairs, or the text itself."""
    document, written = prediction.document, prediction.written
    if document.candidates:
        return next((c for c in document.candidates if plain(c) == written), None)
    if task.shape.kind == "extraction":
        parts = [
            (kind, text.strip())
            for kind, texts in written.items()
            for text in (texts or "").split(task.shape.joiner)
        ]
        return list(dict.fromkeys((kind, text) for kind, text in parts if text))
    return written


@dataclass
class _Scoring:
    """Scores of records whose answers are there."""

    model: Model
    tokenizer: Any
    task: TaskConfig
    shots: Sequence[Mapping[str, Any]]
    batch_size: int
    progress: bool

    def __call__(self, records: Sequence[Any]) -> list[Score | DataError]:
        """Scores each of the records, or framed texts, once, however often it occurs."""
        keys = [
            str(record) if isinstance(record, Framed) else json.dumps(record, ensure_ascii=False)
            for record in records
        ]
        unique = dict(zip(keys, records))
        scores = score_each(
            self.model,
            self.tokenizer,
            list(unique.values()),
            batch_size=self.batch_size,
            strict=self.task.generate.strict,
            buckets=self.task.generate.buckets,
            examples=self.shots,
            progress=self.progress,
        )
        by_key = dict(zip(unique, scores))
        return [by_key[key] for key in keys]


def _choose(found: Sequence[Prediction], task: TaskConfig, scoring: _Scoring) -> None:
    """Gives each prediction its likeliest candidate."""
    asked = [
        (prediction, _asked(prediction.document, candidate, task.template))
        for prediction in found
        for candidate in prediction.document.candidates
    ]
    scores = scoring([record for _, record in asked])
    prior: list[Any] = [0.0] * len(asked)
    if task.likelihood == "prior":
        blank = [_without_question(record, task) for _, record in asked]
        prior = [0.0 if isinstance(s, DataError) else s.nats for s in scoring(blank)]
    for (prediction, _), score, before in zip(asked, scores, prior):
        if isinstance(score, DataError):
            prediction.error = str(score)
        else:
            nats = score.per_token if task.likelihood == "token" else score.nats
            prediction.nats.append(nats - before)
    for prediction in found:
        if not prediction.error:
            best = min(range(len(prediction.nats)), key=prediction.nats.__getitem__)
            prediction.answer = prediction.document.candidates[best]


def _asked(document: Document, candidate: Any, template: str) -> Any:
    """The record with a candidate as its answer, or the text that a template makes of both."""
    if not template:
        return {**document.fields, document.slot: candidate}
    answer = candidate[BLANK] if isinstance(candidate, Mapping) else candidate
    texts = {name: text for name, text in document.fields.items() if isinstance(text, str)}
    texts = {name: text.replace(BLANK, answer) for name, text in texts.items()}
    before, text = (part.format(**{**texts, "answer": answer}) for part in template.split("|"))
    return Framed(before, text)


def _without_question(record: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    """The record with nothing in its inputs but the gap."""
    empty = dict.fromkeys(task.shape.shown, "")
    if task.shape.gap:
        empty = {key: "<mask_0>" if "<mask_0>" in record[key] else "" for key in empty}
    return {**record, **empty}


def _emptied(answer: Any) -> Any:
    return {k: _emptied(v) for k, v in answer.items()} if isinstance(answer, Mapping) else ""
