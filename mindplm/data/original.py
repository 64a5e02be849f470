"""Batches exactly as the original makes them, from the same seeds: for comparisons.

All randomness comes from numpy's and Python's global generators, drawn in the original's order.
Training has its own way (`loader`, `preprocess`): there a run can be resumed to the batch, on any
number of processes, and records that do not fit are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.data import transforms
from mindplm.data.binary_reader import DatasetReader
from mindplm.data.cpm_bee import Sample, Shuffler, to_arrays
from mindplm.data.instances import Instance, append_incontext, make_instance
from mindplm.data.mixture import Entry, MixtureFile
from mindplm.data.packing import (
    GOLDEN_NAMES,
    IGNORE,
    Marks,
    Packer,
    Row,
    RowShape,
    collate,
    ext_table,
    row_targets,
)
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

FIELDS = (
    *("inputs", "inputs_sub", "length", "context", "sample_ids", "num_segments", "segment_ids"),
    *("segment_rel_offset", "segment_rel", "spans", "target", "task_ids", "ext_ids", "ext_sub"),
)
"""Arrays of a batch."""
_GLOBAL: Shuffler = np.random  # type: ignore[assignment]


def as_batch(
    rows: Sequence[Row], max_length: int, marks: Marks, share: slice = slice(None)
) -> dict[str, np.ndarray]:
    """Rows as FIELDS.

    Args:
        rows: The global batch, whose extension table is used.
        max_length: S.
        marks: Usually the tokenizer.
        share: The rows of this process.
    """
    ids, subs = ext_table(rows)
    shape = RowShape(max_length, max(len(row.segment_rel) for row in rows), len(ids), max_length)
    taken = rows[share]
    columns = collate(taken, num_rows=len(taken), shape=shape, marks=marks, ext=(ids, subs))
    batch = {GOLDEN_NAMES.get(name, name): value for name, value in columns.items()}
    batch["context"] = columns["context"].astype(bool)
    batch["target"] = np.full_like(columns["ids"], IGNORE)
    batch["task_ids"] = np.zeros_like(columns["ids"])
    for i, row in enumerate(taken):
        batch["target"][i, : len(row)] = row_targets(row, (ids, subs), marks)
        batch["task_ids"][i, : len(row)] = row.task_ids[row.spans]
    return {name: batch[name] for name in FIELDS}


class _Entry:
    """One data set: draws instances."""

    def __init__(
        self,
        entry: Entry,
        read: Callable[[], Any],
        tokenizer: CpmBeeTokenizer,
        max_length: int,
        max_depth: int = 8,
    ):
        self.read, self.task = read, entry.task_name
        self._tokenizer, self._max_length, self._max_depth = tokenizer, max_length, max_depth
        self._script: transforms.Script | None = None
        self.update(entry)

    def update(self, entry: Entry) -> None:
        """Takes over what a changed mixture file says."""
        self.entry = entry
        weights = np.array(entry.incontext_weight, np.float32)
        self._examples = weights / weights.sum()
        is_script = isinstance(entry.transforms, str)
        self._script = transforms.Script(entry.transforms) if is_script else None

    def __call__(self) -> Instance:
        """Draws an instance; EOFError at the end of the data."""
        count = int(np.random.choice(len(self._examples), p=self._examples))
        change = self._change(count)
        while True:
            record = change(self.read())
            sample = self._arrays(record)
            if len(sample) <= self._max_length:
                break
        raw = {"input": record, "samples": []}
        instance = make_instance(sample, raw=raw)
        for _ in range(count):
            if len(instance) >= self._max_length:
                break
            example = change(self.read())
            sample = self._arrays(example, sample)
            if len(instance) + len(sample) > self._max_length:
                break
            instance = append_incontext(instance, sample)
            raw["samples"].append(example)
        return instance

    def _arrays(self, record: Any, before: Sample | None = None) -> Sample:
        state = before.state if before else None
        return to_arrays(
            record, self._tokenizer, max_depth=self._max_depth, shuffle=_GLOBAL, state=state
        )

    def _change(self, count: int) -> Callable[[Any], Any]:
        if self._script is not None:
            script = self._script
            script.refresh()
            seed = random.random()
            return lambda data: script(data, count, random.Random(seed))
        declared = self.entry.transforms
        if not declared:
            return lambda data: data
        chosen = declared[np.random.choice(len(declared))]
        return lambda data: transforms.apply(chosen, data, parity=True)


def finetune_batches(
    records: Callable[[], Iterable[Any]],
    tokenizer: CpmBeeTokenizer,
    *,
    batch_size: int,
    max_length: int,
    world: int = 1,
    drop_last: bool = False,
    task_name: str = "task",
) -> Iterator[list[Row]]:
    """The global batches of one pass over records in their order.

    Args:
        records: Gives the records.
        tokenizer: Cuts the texts.
        batch_size: Rows of one process.
        max_length: Tokens of a row; longer records are left out.
        world: Number of processes; rank r has rows r * batch_size and so on.
        drop_last: Leave out the rows that are open at the end.
        task_name: The only task.
    """
    iterator = iter(records())

    def read() -> Any:
        try:
            return next(iterator)
        except StopIteration:
            raise EOFError from None

    draw = _Entry(Entry("records", task_name, "."), read, tokenizer, max_length)
    packer = Packer(batch_size * world, RowShape(max_length, 0, 0, 0))
    try:
        while True:
            if rows := packer.add(draw()):
                yield rows
    except EOFError:
        pass
    if (rows := packer.flush()) and not drop_last:
        yield rows


class MixtureSampler:
    """The endless global batches of a mixture file, which is watched.

    Args:
        path: The mixture file.
        tokenizer: Cuts the texts.
        batch_size: Rows of a batch.
        max_length: Tokens of a row.
        rank: Number of this process; it has its own blocks of each data set.
        world: Number of processes.

    Attributes:
        picked: Name of the entry that each instance was drawn from.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: CpmBeeTokenizer,
        *,
        batch_size: int,
        max_length: int,
        rank: int = 0,
        world: int = 1,
    ):
        self._file = MixtureFile(path)
        self._tokenizer, self._max_length = tokenizer, max_length
        self._rank, self._world = rank, world
        self._packer = Packer(batch_size, RowShape(max_length, 0, 0, 0))
        self._readers: dict[str, DatasetReader] = {}
        self._draws: dict[str, _Entry] = {}
        self.picked: list[str] = []
        self._names: list[str] = []
        self._update()

    def __iter__(self) -> Iterator[tuple[list[Row], list[str]]]:
        """Batches, and the names of their tasks: sorted, `task_ids` of rows are their places."""
        while True:
            if self._file.refresh():
                self._update()
            name = self._names[np.random.choice(len(self._names), p=self._weights)]
            self.picked.append(name)
            instance = self._draws[name]()
            instance.raw["task"] = self._draws[name].task
            if rows := self._packer.add(instance):
                yield rows, _number_tasks(rows)

    def state(self) -> dict[str, dict[str, list[int]]]:
        """States of the readers by the names of the entries."""
        return {name: reader.state() for name, reader in self._readers.items()}

    def load_state(self, states: Sequence[dict[str, dict[str, list[int]]]]) -> None:
        """Goes on from the states of all ranks."""
        for name, reader in self._readers.items():
            known = [state[name] for state in states if name in state]
            if len(known) == len(states):
                reader.load_state(known)

    def _update(self) -> None:
        entries = {entry.name: entry for entry in self._file.entries}
        for name in set(self._readers) - set(entries):
            del self._readers[name], self._draws[name]
        for name, entry in entries.items():
            known = self._readers.get(name)
            if known is None or known.folder != Path(entry.path):
                reader = DatasetReader(entry.path, rank=self._rank, world=self._world)
                self._readers[name] = reader
                self._draws[name] = _Entry(entry, reader.read, self._tokenizer, self._max_length)
            else:
                self._draws[name].update(entry)
        self._names = list(entries)
        sizes = [entries[name].weight * len(self._readers[name]) for name in self._names]
        weights = np.array(sizes, np.float32)
        self._weights = weights / weights.sum()


def _number_tasks(rows: Sequence[Row]) -> list[str]:
    names = sorted({raw["task"] for row in rows for raw in row.raw})
    for row in rows:
        row.task_ids = np.array([names.index(raw.pop("task")) for raw in row.raw], np.int32)
    return names
