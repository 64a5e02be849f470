"""The records of a task's data, and the examples that questions are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.config_task import TaskConfig
from mindplm.data.documents import Document, Problem
from mindplm.data.sources import SourceReader
from mindplm.errors import DataError

_FIRST = 5


@dataclass
class Questions:
    """What a model is asked.

    Attributes:
        documents: Records with candidates and references.
        shots: Records with answers that each of them is shown.
        problems: Lines that could not be used, by reason.
        first: The first problems of each reason.
        path: Where they are from.
    """

    path: str
    documents: list[Document] = field(default_factory=list)
    shots: list[dict[str, Any]] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def labels(self) -> Counter[str]:
        """How often each label is right."""
        return Counter(document.label for document in self.documents if document.label)


def read_questions(task: TaskConfig, path: str = "") -> Questions:
    """Reads the data of a task.

    Args:
        task: The task; its `limit` and `shots` count.
        path: The data; empty: the task's own path.

    Raises:
        DataError: There is none, or nothing in it can be used.
    """
    place = path or task.path
    if not place:
        raise DataError(
            f"task {task.name} names no data; give its path in the task file, in finetune.tasks "
            "or with --data"
        )
    found = Questions(place)
    for item in _items(task, place):
        if isinstance(item, Document):
            found.documents.append(item)
        else:
            found.problems[item.reason] += 1
            if found.problems[item.reason] <= _FIRST:
                found.first.append(str(item))
    if not found.documents:
        first = f"; {found.first[0]}" if found.first else ""
        raise DataError(f"{place}: nothing in it can be used for task {task.name}{first}")
    if task.shots:
        found.shots = draw_shots(task, taken=set(map(_key, found.documents)))
    if task.limit and task.limit < len(found.documents):
        places = np.arange(task.limit) * len(found.documents) // task.limit
        found.documents = [found.documents[i] for i in places]
    return found


def draw_shots(task: TaskConfig, taken: set[str]) -> list[dict[str, Any]]:
    """Draws the examples of a task, as many of each label as possible, in mixed order.

    Args:
        task: Says where they are and how many.
        taken: Keys of the records that are asked; those are never shown.

    Raises:
        DataError: There are not enough.
    """
    items = _items(task, task.shots_path)
    pool = [d for d in items if isinstance(d, Document) and _key(d) not in taken]
    if len(pool) < task.shots:
        raise DataError(
            f"{task.shots_path}: {len(pool)} records can be shown (those that are asked cannot), "
            f"shots={task.shots}"
        )
    rng = np.random.default_rng(task.shots_seed)
    mixed = [pool[i] for i in rng.permutation(len(pool))]
    seen: Counter[str] = Counter()
    rank = []
    for document in mixed:
        rank.append(seen[document.label])
        seen[document.label] += 1
    order = sorted(range(len(mixed)), key=lambda i: rank[i])[: task.shots]
    return [mixed[i].fields for i in rng.permutation(order)]


def without_answer(document: Document) -> dict[str, Any]:
    """What is given of a record."""
    return {key: value for key, value in document.fields.items() if key != document.slot}


def _key(document: Document) -> str:
    return json.dumps(without_answer(document), ensure_ascii=False, sort_keys=True)


def _items(task: TaskConfig, path: str) -> Sequence[Document | Problem]:
    name = Path(path).name
    return list(SourceReader(SourceConfig(path, name=name, shape=task.shape)))
