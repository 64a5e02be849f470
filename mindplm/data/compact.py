"""CPM-Bee's instances and rows without what can be computed: how they are made, stored and sent.

Six of the eight numbers of a token follow from the segment that it is in. What is kept as one
array, all int32:
  tokens, segments, subs, spans   how many of each follow
  ids [tokens]
  length [segments]; flags [segments]: context + 2 * sample + 2**16 * span
  position [subs]; value [subs]   of the tokens whose sub index is not 0
  task [spans]
  the relation matrices
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mindplm.data.cpm_bee import Sample
from mindplm.data.instances import (
    CONTEXT,
    IDS,
    NUM_SEGMENTS,
    REL_OFFSET,
    SAMPLES,
    SEGMENTS,
    SPANS,
    SUBS,
    TOKEN_COLUMNS,
)

_HEAD = 4
_MOST = 1 << 15
_NO_TASKS = np.zeros(0, np.int32)


@dataclass
class Compact:
    """An instance, or a row of several.

    Attributes:
        ids: Token ids.
        lengths: Tokens of each segment.
        flags: Context, sample and span of each segment.
        at: Positions of the tokens with sub indices.
        values: Their sub indices.
        segment_rel: The relation matrices of all samples, flat, one after the other.
        task_ids: Number of the task of each span; none of an instance.
        task: Number of the task of an instance.
        num_chars: Characters of the predicted texts.
        num_targets: Predicted tokens and begin marks, each of which has one target.
    """

    ids: np.ndarray
    lengths: np.ndarray
    flags: np.ndarray
    at: np.ndarray
    values: np.ndarray
    segment_rel: np.ndarray
    task_ids: np.ndarray
    task: int = 0
    num_chars: int = 0
    num_targets: int = 0

    @classmethod
    def of(cls, sample: Sample) -> Compact:
        """An instance of one record."""
        return cls(
            sample.ids, sample.lengths, sample.known, *sample.indexed, sample.rel, _NO_TASKS,
            num_chars=sample.num_chars, num_targets=sample.num_targets,
        )  # fmt: skip

    def with_example(self, sample: Sample) -> Compact:
        """The instance with an example behind it, whose answer is context.

        Args:
            sample: The example, converted with the state of the sample before it.
        """
        number = (int(self.flags[-1]) >> 1) + 1
        flags = np.full(len(sample.lengths), 1 + (number << 1), np.int32)
        return replace(
            self,
            ids=np.concatenate([self.ids, sample.ids]),
            lengths=np.concatenate([self.lengths, sample.lengths]),
            flags=np.concatenate([self.flags, flags]),
            at=np.concatenate([self.at, sample.indexed.at + len(self.ids)]),
            values=np.concatenate([self.values, sample.indexed.values]),
            segment_rel=np.concatenate([self.segment_rel, sample.rel]),
        )

    @classmethod
    def joined(cls, parts: list[Compact]) -> Compact:
        """Instances as a row: one after the other, each a span."""
        assert len(parts) < _MOST, "more spans than a row can have"
        starts = np.cumsum([0, *map(len, parts[:-1])], dtype=np.int32)
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.flags + (i << 16) for i, part in enumerate(parts)]),
            np.concatenate([part.at + start for part, start in zip(parts, starts)]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.segment_rel for part in parts]),
            np.array([part.task for part in parts], np.int32),
            num_chars=sum(part.num_chars for part in parts),
            num_targets=sum(part.num_targets for part in parts),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.flat().tobytes(), self.task, self.num_chars, self.num_targets)

    @cached_property
    def largest_subs(self) -> dict[int, int]:
        """Largest sub index of each base id that has one above 0."""
        largest: dict[int, int] = {}
        if not len(self.at):
            return largest
        for base, sub in zip(self.ids[self.at].tolist(), self.values.tolist()):
            largest[base] = max(sub, largest.get(base, 0))
        return largest

    @property
    def num_ext(self) -> int:
        """Extra output classes; the subs of a base start at 1 without gaps."""
        return sum(self.largest_subs.values())

    @cached_property
    def tokens(self) -> np.ndarray:
        """TOKEN_COLUMNS by tokens."""
        return unflatten(self.flat())[0]

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct (id, sub) with sub > 0, in order of first appearance."""
        found = dict.fromkeys(zip(self.ids[self.at].tolist(), self.values.tolist()))
        table = np.array(list(found), np.int32).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def flat(self) -> np.ndarray:
        """All of it as one array."""
        head = (len(self.ids), len(self.lengths), len(self.at), len(self.task_ids))
        return np.concatenate(
            [np.array(head, np.int32), self.ids, self.lengths, self.flags, self.at, self.values,
             self.task_ids, self.segment_rel]
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored of a row."""
        return {"row": self.flat()}


def _restored(flat: bytes, *numbers: int) -> Compact:
    ids, lengths, flags, at, values, rel, tasks = _parts(np.frombuffer(flat, np.int32))
    return Compact(ids, lengths, flags, at, values, rel, tasks, *numbers)


def _parts(flat: np.ndarray) -> list[np.ndarray]:
    """ids, lengths, flags, at, values, segment_rel, task_ids."""
    num, segments, subs, spans = flat[:_HEAD].tolist()
    parts, start = [], _HEAD
    for size in (num, segments, segments, subs, subs):
        parts.append(flat[start : start + size])
        start += size
    return [*parts, flat[start + spans :], flat[start : start + spans]]


def flatten(tokens: np.ndarray, segment_rel: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
    """One array of a row that is given as token columns.

    Args:
        tokens: TOKEN_COLUMNS by tokens.
        segment_rel: The relation matrices of all samples, flat, one after the other.
        task_ids: Number of the task of each span.
    """
    marks = tokens[[SEGMENTS, SAMPLES, SPANS]]
    begins = np.flatnonzero((marks[:, 1:] != marks[:, :-1]).any(axis=0)) + 1
    starts = np.concatenate([[0], begins])
    first = tokens[:, starts]
    assert first[[SAMPLES, SPANS]].max() < _MOST, "more samples or spans than a row can have"
    lengths = np.diff(starts, append=tokens.shape[1]).astype(np.int32)
    flags = first[CONTEXT] + (first[SAMPLES] << 1) + (first[SPANS] << 16)
    at = np.flatnonzero(tokens[SUBS]).astype(np.int32)
    row = Compact(tokens[IDS], lengths, flags, at, tokens[SUBS, at], segment_rel, task_ids)
    return row.flat()


def unflatten(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `flatten` from its result."""
    ids, lengths, flags, at, values, segment_rel, tasks = _parts(flat)
    group = flags >> 1
    starts = np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1])
    counts = np.diff(starts, append=len(flags))
    columns = np.empty((len(TOKEN_COLUMNS), len(flags)), np.int32)
    columns[CONTEXT] = flags & 1
    columns[SAMPLES] = flags >> 1 & (_MOST - 1)
    columns[SPANS] = flags >> 16
    columns[SEGMENTS] = np.arange(len(flags)) - np.repeat(starts, counts)
    columns[NUM_SEGMENTS] = np.repeat(counts, counts)
    columns[REL_OFFSET] = np.repeat(np.cumsum(counts**2) - counts**2, counts)
    tokens = np.repeat(columns, lengths, axis=1)
    tokens[IDS] = ids
    tokens[SUBS] = 0
    tokens[SUBS, at] = values
    return tokens, segment_rel, tasks
