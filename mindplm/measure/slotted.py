"""Labels by the words that fill a template's slots; see `mindplm.config_slots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mindplm import families
from mindplm.config_task import TaskConfig
from mindplm.data.slots import Slots, Slotted, slots_of, texts_of, votes
from mindplm.errors import ConfigError
from mindplm.generate.model import Model
from mindplm.measure.answers import Prediction
from mindplm.measure.questions import Questions


class _Row(NamedTuple):
    """What is read; with the writing decoder's input, and the label that is tried, if it is one."""

    ids: list[int]
    places: list[int]
    asked: list[int]
    label: int


def fill(
    model: Model,
    tokenizer: Any,
    task: TaskConfig,
    questions: Questions,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Prediction]:
    """Answers all questions with the label that most templates choose.

    A label's score is the sum of the scores of its words' tokens at the slots. With the writing
    decoder each label is tried in turn, its words before those that follow.

    Args:
        model: Of a family with slots.
        tokenizer: Its tokenizer.
        task: Its shape has slots.
        questions: What to ask.
        batch_size: Rows at once; answers do not depend on it.
        progress: Show a bar.

    Raises:
        ConfigError: The family has no slots, or a template is longer than what it reads.
    """
    entry = families.family(model.family)
    if not entry.slots_ref:
        able = ", ".join(name for name, each in families.FAMILIES.items() if each.slots_ref)
        raise ConfigError(f"task {task.name} has slots; {model.family} has none, but {able}")
    own = slots_of(task.shape, tokenizer, model.config.max_len)
    writes = task.shape.slots.states == "writing"
    found = [Prediction(document) for document in questions.documents]
    rows: list[_Row] = []
    num_cut = 0
    for document in questions.documents:
        texts = texts_of(document, task.shape)
        for slots in own:
            made = slots(*texts)
            num_cut += made.cut
            rows += _rows(slots, made, len(task.shape.labels) if writes else 0)
    if num_cut:
        questions.first.append(f"texts were cut {num_cut} times to fit their template")
    scores = _Scores(entry.part("slots")(model.cell), rows, batch_size)
    logits = iter(tqdm(scores, total=len(rows), desc="fill", disable=not progress))
    for prediction in found:
        chosen = [_scores_of(slots, logits, writes) for slots in own]
        prediction.answer = prediction.document.candidates[votes(chosen)]
        prediction.nats = [-float(value) for value in np.mean(chosen, 0)]
    return found


def _rows(slots: Slots, made: Slotted, num_tried: int) -> list[_Row]:
    if not num_tried:
        return [_Row(made.ids, made.places, [], 0)]
    return [
        _Row(made.ids, made.places, slots.decoder_ids(made, label), label)
        for label in range(num_tried)
    ]


def _scores_of(slots: Slots, logits: Any, writes: bool) -> np.ndarray:
    """Scores of the labels, [labels]."""
    if not writes:
        return slots.scores(next(logits))
    return np.array([slots.scores(next(logits))[i] for i in range(len(slots.word_ids))])


class _Scores:
    """Scores of words at the places of each row, [slots, words], row by row."""

    def __init__(self, cell: Any, rows: Sequence[_Row], batch_size: int):
        @ms.jit
        def forward(*columns):
            return cell(*columns)

        self._forward, self._rows, self._batch_size = forward, rows, batch_size

    def __iter__(self) -> Any:
        size, rows = self._batch_size, self._rows
        length = max(max(len(row.ids), len(row.asked)) for row in rows)
        most = max(len(row.places) for row in rows)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            ids, asked = (np.zeros((size, length), np.int32) for _ in range(2))
            writes, places = np.zeros(size, np.int32), np.zeros((size, most), np.int32)
            for place, row in enumerate(part):
                ids[place, : len(row.ids)] = row.ids
                asked[place, : len(row.asked)] = row.asked
                writes[place] = len(row.asked) > 0
                places[place, : len(row.places)] = row.places
            columns = [Tensor(array) for array in (ids, asked, writes, places)]
            logits = self._forward(*columns).asnumpy().reshape(size, most, -1)
            for row, own in zip(part, logits):
                yield own[: len(row.places)]
