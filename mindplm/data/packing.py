"""Packs instances into rows of a fixed length and rows into batches of a fixed shape.

A row holds several instances side by side; `spans` tells them apart, and nothing attends across
spans.

The compiled boundary of a training step is COLUMNS, all int32, in this order:
  ids, subs, context, sample_ids, segment_ids, spans, num_segments, rel_offset   [B, S]
  length [B]; segment_rel [B, R]; target_pos, targets [B, T]; ext_ids, ext_sub [E]; num_ext [1]
Unused places are 0, in `targets` IGNORE. The classes from vocab_size + num_ext on do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from mindplm.data.compact import flatten
from mindplm.data.cpm_bee import RecordError
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
from mindplm.errors import DataError

IGNORE = -100
"""Label of a position that has no target."""
COLUMNS = (*TOKEN_COLUMNS, "length", "segment_rel", "target_pos", "targets", "ext_ids", "ext_sub",
           "num_ext")  # fmt: skip
PLACEHOLDER = (0, 1)
"""Pair that stands in the extension table of a batch without indexed tokens."""
GOLDEN_NAMES = {
    "ids": "inputs",
    "subs": "inputs_sub",
    "rel_offset": "segment_rel_offset",
    "targets": "target",
}


class Marks(Protocol):
    """The part of a tokenizer that targets depend on."""

    @property
    def vocab_size(self) -> int:
        """Number of base classes."""

    @property
    def bos_id(self) -> int:
        """Begins every segment."""

    @property
    def eos_id(self) -> int:
        """Is predicted at the end of a predicted segment."""


class Packable(Protocol):
    """What packing asks of an instance."""

    @property
    def segment_rel(self) -> np.ndarray:
        """Its relation matrices, flat."""

    @property
    def largest_subs(self) -> Mapping[int, int]:
        """Largest sub index of each base id that has one above 0."""

    @property
    def num_targets(self) -> int:
        """Predicted tokens."""

    def __len__(self) -> int:
        """Tokens."""


class RowShape(NamedTuple):
    """The fixed sizes of a batch: tokens, relation values, extension classes, targets."""

    seq_len: int
    max_rel: int
    max_ext: int
    max_targets: int


def _column(number: int) -> Any:
    return property(lambda row: row.tokens[number])


@dataclass
class Row:
    """One packed row.

    Attributes:
        tokens: TOKEN_COLUMNS by tokens, int32; each column is also an attribute.
        segment_rel: The relation matrices of all samples, flat, one after the other.
        task_ids: Number of the task of each span.
        num_chars: Characters of the predicted texts.
        raw: `raw` of the instances.
    """

    tokens: np.ndarray
    segment_rel: np.ndarray
    task_ids: np.ndarray
    num_chars: int = 0
    raw: list[Any] = field(default_factory=list)

    ids: ClassVar[Any] = _column(IDS)
    subs: ClassVar[Any] = _column(SUBS)
    context: ClassVar[Any] = _column(CONTEXT)
    sample_ids: ClassVar[Any] = _column(SAMPLES)
    segment_ids: ClassVar[Any] = _column(SEGMENTS)
    spans: ClassVar[Any] = _column(SPANS)
    num_segments: ClassVar[Any] = _column(NUM_SEGMENTS)
    rel_offset: ClassVar[Any] = _column(REL_OFFSET)

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @property
    def num_targets(self) -> int:
        """Positions that predict something."""
        return len(self) - int(np.count_nonzero(self.context))

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored of it."""
        return {"row": flatten(self.tokens, self.segment_rel, self.task_ids)}

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """What it brings to the extension table."""
        return row_pairs(self.ids, self.subs)


class OpenRow:
    """Instances that share a row, and the room they take."""

    def __init__(self) -> None:
        self.instances: list[Any] = []
        self.length = self.num_rel = self.num_targets = 0
        self.subs: Mapping[int, int] = {}

    def fits(self, instance: Packable, limits: RowShape) -> bool:
        """Whether an instance whose tokens have room has it in every other respect."""
        if self.num_rel + len(instance.segment_rel) > limits.max_rel:
            return False
        if self.num_targets + instance.num_targets > limits.max_targets:
            return False
        # The subs of one base start at 1 without gaps, so the largest is their number.
        subs = instance.largest_subs
        return not subs or sum(_largest(self.subs, subs).values()) <= limits.max_ext

    def add(self, instance: Packable) -> None:
        """Takes an instance."""
        self.length += len(instance)
        self.num_rel += len(instance.segment_rel)
        self.num_targets += instance.num_targets
        if instance.largest_subs:
            self.subs = _largest(self.subs, instance.largest_subs)
        self.instances.append(instance)

    def close(self) -> Row:
        """The row."""
        tokens = np.concatenate([i.tokens for i in self.instances], axis=1)
        lengths = [len(i) for i in self.instances]
        starts = np.cumsum([0] + [len(i.segment_rel) for i in self.instances[:-1]])
        tokens[REL_OFFSET] += np.repeat(starts, lengths).astype(np.int32)
        tokens[SPANS] = np.repeat(np.arange(len(lengths)), lengths)
        return Row(
            tokens,
            segment_rel=np.concatenate([i.segment_rel for i in self.instances]),
            task_ids=np.array([i.task for i in self.instances], np.int32),
            num_chars=sum(i.num_chars for i in self.instances),
            raw=[i.raw for i in self.instances],
        )


class Packer:
    """Puts each instance into the open row with the least sufficient room.

    When more than num_rows rows are open, the first num_rows come out as a batch and the newest
    stays open.

    Args:
        num_rows: Rows of a batch.
        shape: Limits of a row; a limit of 0 (all but seq_len) means none.
        open_row: Makes an empty row.
    """

    def __init__(self, num_rows: int, shape: RowShape, open_row: Callable[[], OpenRow] = OpenRow):
        self.num_rows = num_rows
        self.shape = shape
        self._limits = RowShape(*(limit or 2**62 for limit in shape))
        self._open: list[OpenRow] = []
        self._new = open_row

    def add(self, instance: Packable) -> list[Row]:
        """Takes an instance; returns the rows of a batch, or an empty list.

        Raises:
            RecordError: The instance does not fit into an empty row.
        """
        check_fits(instance, self.shape)
        best, most = None, 0
        room = self.shape.seq_len - len(instance)
        for row in self._open:
            if most < row.length <= room and row.fits(instance, self._limits):
                best, most = row, row.length
        if best is None:
            best = self._new()
            self._open.append(best)
        best.add(instance)
        if len(self._open) <= self.num_rows:
            return []
        closed, self._open = self._open[:-1], self._open[-1:]
        return [row.close() for row in closed]

    def flush(self) -> list[Row]:
        """Closes the rows that are open."""
        closed, self._open = self._open, []
        return [row.close() for row in closed]


_TOO_BIG = {
    "seq_len": ("too long", "{} tokens"),
    "max_rel": ("too many segments", "{} relations between segments"),
    "max_ext": ("too many indexed tokens", "{} numbered or unknown tokens"),
    "max_targets": ("too many predicted tokens", "{} predicted tokens"),
}


def check_fits(instance: Packable, shape: RowShape) -> None:
    """Checks that an instance fits into an empty row.

    Raises:
        RecordError: It does not.
    """
    subs = instance.largest_subs
    used = (
        len(instance), len(instance.segment_rel), sum(subs.values()) if subs else 0,
        instance.num_targets,
    )  # fmt: skip
    for name, need, limit in zip(RowShape._fields, used, shape):
        if need > (limit or need):
            reason, what = _TOO_BIG[name]
            message = f"record of {what.format(need)}, {name} is {limit}"
            raise RecordError(message, reason=reason, too_big=True)


def _largest(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    merged = dict(left)
    for base, sub in right.items():
        merged[base] = max(sub, merged.get(base, 0))
    return merged


def row_pairs(ids: np.ndarray, subs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (id, sub) with sub > 0, in order of first appearance."""
    at = np.flatnonzero(subs)
    pairs = dict.fromkeys(zip(ids[at].tolist(), subs[at].tolist()))
    table = np.array(list(pairs), np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def merge_pairs(
    tables: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The extension table of rows whose pairs are given, in the order of the rows."""
    pairs: dict[tuple[int, int], None] = {}
    for ids, subs in tables:
        pairs.update(dict.fromkeys(zip(ids.tolist(), subs.tolist())))
    table = np.array(list(pairs) or [PLACEHOLDER], np.int32)
    return table[:, 0], table[:, 1]


def ext_table(rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The extension table of a batch: its indexed tokens with sub > 0, or the placeholder."""
    return merge_pairs(row_pairs(row.ids, row.subs) for row in rows)


def row_targets(row: Row, ext: tuple[np.ndarray, np.ndarray], marks: Marks) -> np.ndarray:
    """The class that each position predicts, IGNORE where none."""
    classes = row.ids.copy()
    predicted = row.context == 0
    index = {pair: i for i, pair in enumerate(zip(ext[0].tolist(), ext[1].tolist()))}
    for i in np.flatnonzero((row.subs > 0) & predicted):
        classes[i] = marks.vocab_size + index[int(row.ids[i]), int(row.subs[i])]
    following = np.full(len(row), marks.eos_id, np.int32)
    begins = row.ids[1:] == marks.bos_id
    following[:-1] = np.where(begins, marks.eos_id, classes[1:])
    return np.where(predicted, following, IGNORE).astype(np.int32)


def collate(
    rows: Sequence[Row],
    *,
    num_rows: int,
    shape: RowShape,
    marks: Marks,
    ext: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS; missing rows are empty.

    Args:
        rows: At most num_rows rows.
        num_rows: B.
        shape: S, R, E and T.
        marks: Usually the tokenizer.
        ext: Extension table of the global batch; None: that of these rows.

    Raises:
        DataError: Something does not fit.
    """
    ext = ext_table(rows) if ext is None else ext
    columns = _empty_columns(num_rows, shape)
    _fit("rows", len(rows), num_rows)
    for i, row in enumerate(rows):
        _fit("seq_len", len(row), shape.seq_len)
        for name, values in zip(TOKEN_COLUMNS, row.tokens):
            columns[name][i, : len(row)] = values
        columns["length"][i] = len(row)
        _put(columns["segment_rel"][i], row.segment_rel, "max_rel")
        _put_targets(columns, i, row_targets(row, ext, marks))
    _put_ext(columns, *ext)
    return columns


def columns_from_batch(
    inputs: Mapping[str, np.ndarray], *, max_rel: int, max_ext: int, max_targets: int
) -> dict[str, np.ndarray]:
    """A batch of variable sizes, with the original's field names, to COLUMNS.

    Args:
        inputs: Token fields [B, S] with `target`, `length` [B], `segment_rel` [B, any],
            `ext_ids` and `ext_sub` [any].
        max_rel: R.
        max_ext: E.
        max_targets: T.
    """
    num_rows, seq_len = inputs["inputs"].shape
    columns = _empty_columns(num_rows, RowShape(seq_len, max_rel, max_ext, max_targets))
    for name in (*TOKEN_COLUMNS, "length"):
        columns[name][:] = inputs[GOLDEN_NAMES.get(name, name)]
    for i in range(num_rows):
        _put(columns["segment_rel"][i], inputs["segment_rel"][i], "max_rel")
        _put_targets(columns, i, inputs[GOLDEN_NAMES["targets"]][i])
    _put_ext(columns, inputs["ext_ids"], inputs["ext_sub"])
    return columns


def _empty_columns(num_rows: int, shape: RowShape) -> dict[str, np.ndarray]:
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(TOKEN_COLUMNS, (num_rows, shape.seq_len))
    sizes |= {"length": (num_rows,), "segment_rel": (num_rows, shape.max_rel)}
    sizes |= dict.fromkeys(("target_pos", "targets"), (num_rows, shape.max_targets))
    sizes |= dict.fromkeys(("ext_ids", "ext_sub"), (shape.max_ext,))
    sizes["num_ext"] = (1,)
    columns = {name: np.zeros(sizes[name], np.int32) for name in COLUMNS}
    columns["targets"][:] = IGNORE
    return columns


def _put(place: np.ndarray, values: np.ndarray, limit: str) -> None:
    _fit(limit, len(values), len(place))
    place[: len(values)] = values


def _put_targets(columns: dict[str, np.ndarray], i: int, targets: np.ndarray) -> None:
    at = np.flatnonzero(targets != IGNORE)
    _put(columns["target_pos"][i], at, "max_targets")
    _put(columns["targets"][i], targets[at], "max_targets")


def _put_ext(columns: dict[str, np.ndarray], ids: np.ndarray, subs: np.ndarray) -> None:
    _put(columns["ext_ids"], ids, "max_ext")
    _put(columns["ext_sub"], subs, "max_ext")
    columns["num_ext"][0] = len(ids)


def _fit(limit: str, need: int, room: int) -> None:
    if need > room:
        raise DataError(f"a batch needs {limit} of at least {need}, it is {room}")
