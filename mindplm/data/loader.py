"""Batches of fixed shape from a folder of rows, exactly repeatable from any step on.

The rows form an endless stream: one permutation of all rows after the other, each drawn from the
seed and its number. Step t takes stream positions t * batch_size to (t + 1) * batch_size, and each
rank its share of them. So the step number alone says which rows come next, nothing is dropped,
and the number of ranks changes nothing: the extension table is that of all ranks' rows.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindplm.data.kinds import Draws, RowKind
from mindplm.data.packing import IGNORE, RowShape, merge_pairs
from mindplm.data.records import RowFolder, open_folder
from mindplm.errors import ConfigError, DataError

Columns = dict[str, np.ndarray]
Info = dict[str, Any]
Batch = tuple[Columns, Info]
_READ_AHEAD_ROWS = 8192
_GET_SECONDS = 0.2
_EVAL_SEED = 0
"""Validation draws the same at every time of every run."""


class _Step(NamedTuple):
    """Rows of a global batch, and the epoch of each."""

    info: Info
    rows: np.ndarray
    epochs: np.ndarray


class Share(NamedTuple):
    """Rows of a rank in a full batch, its number, and the number of ranks."""

    size: int
    rank: int
    world: int

    @property
    def part(self) -> slice:
        """The rank's rows among those of a batch."""
        return slice(self.rank * self.size, (self.rank + 1) * self.size)

    def made(self, kind: RowKind) -> slice:
        """The rows of a batch that the rank reads: all where it must make the whole batch."""
        return slice(None) if kind.draws else self.part

    def batch(
        self,
        kind: RowKind,
        rows: Sequence[Any],
        info: Info,
        *,
        shape: RowShape,
        marks: Any,
        draws: Draws,
    ) -> Batch:
        """The rank's batch of the rows that it read; completes what is known of it."""
        num_rows = self.size * (self.world if kind.draws else 1)
        columns = kind.collate(rows, num_rows=num_rows, shape=shape, marks=marks, draws=draws)
        if kind.draws:
            info["targets"] = int((columns["targets"] != IGNORE).sum())
            columns = {name: array[self.part] for name, array in columns.items()}
            rows = rows[self.part]
        info["tasks"] = [row.task_ids.tolist() for row in rows]
        return columns, info


class RowStream:
    """The training batches of one rank, prepared in a thread.

    Iterating gives (columns, info) without end. `columns` maps COLUMNS to int32 arrays of this
    rank's rows. `info` has, for the global batch: step, epoch (of its first row), rows (their
    numbers), tokens, targets, chars; and for this rank: tasks (of each row, a list of task
    numbers, one a span).

    Args:
        folder: Folder of rows, or one that was opened.
        seed: Seed of the order.
        batch_size: Rows of a global batch.
        rank: Number of this process.
        world: Number of processes.
        start_step: First step to deliver.
        shape: Sizes of the batches if not those of the folder.
        verify: Check the folder's files before they are read.
        prefetch: Batches that are prepared ahead.
    """

    def __init__(
        self,
        folder: str | Path | RowFolder,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        shape: RowShape | None = None,
        verify: bool = True,
        prefetch: int = 4,
    ):
        self.folder = _opened(folder, verify)
        self.shape = _checked_shape(self.folder, shape)
        check_batch(batch_size, rank, world)
        self._seed, self._share = seed, Share(batch_size // world, rank, world)
        self._steps = _train_steps(self.folder, seed, batch_size, start_step)
        self._start(prefetch)

    def _start(self, prefetch: int) -> None:
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(max(1, prefetch))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rows", daemon=True)
        self._thread.start()

    def __iter__(self) -> RowStream:
        return self

    def __next__(self) -> Batch:
        while not self._stopped.is_set():
            try:
                item = self._queue.get(timeout=_GET_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the thread that prepares batches has ended") from None
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            return item
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; the stream gives nothing after that."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=30)

    def __enter__(self) -> RowStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _made(self) -> Iterator[Batch]:
        return _batches(self.folder, self._steps, self._share, self.shape, self._seed)

    def _work(self) -> None:
        try:
            for batch in self._made():
                if not self._put(batch):
                    return
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_GET_SECONDS)
                return True
            except queue.Full:
                continue
        return False


def eval_batches(
    folder: str | Path | RowFolder,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    max_rows: int = 0,
    shape: RowShape | None = None,
    verify: bool = True,
) -> Iterator[Batch]:
    """Every row once, in order; the last batch is filled with empty rows.

    The extension table is that of all rows, so that losses do not depend on the size of batches.

    Args:
        folder: Folder of rows, or one that was opened.
        batch_size: Rows of a global batch.
        rank: Number of this process.
        world: Number of processes.
        max_rows: Only so many rows, from the first on; 0: all.
        shape: Sizes of the batches if not those of the folder.
        verify: Check the folder's files before they are read.

    Returns:
        (columns, info) as from `RowStream`; epoch is 0.
    """
    opened = _opened(folder, verify)
    shape = _checked_shape(opened, shape)
    check_batch(batch_size, rank, world)
    number = min(max_rows, len(opened)) if max_rows else len(opened)
    share = Share(batch_size // world, rank, world)
    steps = _eval_steps(opened, number, batch_size)
    ext = merge_pairs(map(opened.index.pairs, range(number)))
    return _batches(opened, steps, share, shape, _EVAL_SEED, ext)


def stream_rows(num_rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Row numbers at `count` positions of the endless stream from `start` on."""
    parts = []
    while count > 0:
        epoch, first = divmod(start, num_rows)
        part = _permutation(num_rows, seed, epoch)[first : first + count]
        parts.append(part)
        start += len(part)
        count -= len(part)
    return np.concatenate(parts)


def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_rows)


def _train_steps(folder: RowFolder, seed: int, batch_size: int, start_step: int) -> Iterator[_Step]:
    # One long stretch at a time: a permutation is as long as the folder and drawn anew for each.
    stretch = max(1, len(folder) // batch_size)
    for first in itertools.count(start_step, stretch):
        rows = stream_rows(len(folder), seed, first * batch_size, stretch * batch_size)
        for step in range(first, first + stretch):
            part = rows[(step - first) * batch_size :][:batch_size]
            epochs = (step * batch_size + np.arange(batch_size)) // len(folder)
            yield _step(folder, step, part, epochs)


def _eval_steps(folder: RowFolder, number: int, batch_size: int) -> Iterator[_Step]:
    for step, first in enumerate(range(0, number, batch_size)):
        part = np.arange(first, min(first + batch_size, number))
        yield _step(folder, step, part, np.zeros(len(part), np.int64))


def _step(folder: RowFolder, step: int, rows: np.ndarray, epochs: np.ndarray) -> _Step:
    index = folder.index
    info = {
        "step": step,
        "epoch": int(epochs[0]),
        "rows": rows,
        "tokens": int(index.length[rows].sum()),
        "targets": int(index.num_targets[rows].sum()),
        "chars": int(index.num_chars[rows].sum()),
    }
    return _Step(info, rows, epochs)


def _batches(
    folder: RowFolder,
    steps: Iterator[_Step],
    share: Share,
    shape: RowShape,
    seed: int,
    ext: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Reads the rows of the steps ahead, many at once, and makes a batch of each step.

    The extension table is `ext`, or else that of the rows of a step. Where batches are drawn anew
    each time every rank makes the whole global batch, so that it knows the number of targets.
    """
    kind = folder.kind
    made = share.made(kind)
    while True:
        ahead: deque[_Step] = deque()
        wanted = 0
        for step in steps:
            ahead.append(step)
            wanted += len(step.rows[made])
            if wanted >= _READ_AHEAD_ROWS:
                break
        if not ahead:
            return
        reader = folder.read(np.concatenate([step.rows[made] for step in ahead]))
        for step in ahead:
            wanted_rows, epochs = step.rows[made], step.epochs[made]
            rows = list(itertools.islice(reader, len(wanted_rows)))
            if len(rows) < len(wanted_rows):
                raise DataError(f"{folder.path}: ended before row {wanted_rows[len(rows)]}")
            draws = Draws(
                ext or merge_pairs(map(folder.index.pairs, step.rows.tolist())),
                seed,
                list(zip(epochs.tolist(), wanted_rows.tolist())),
            )
            yield share.batch(kind, rows, step.info, shape=shape, marks=folder.marks, draws=draws)


def _opened(folder: str | Path | RowFolder, verify: bool) -> RowFolder:
    opened = folder if isinstance(folder, RowFolder) else open_folder(folder, verify=verify)
    if len(opened) == 0:
        raise DataError(f"{opened.path}: holds no rows")
    return opened


def _checked_shape(folder: RowFolder, shape: RowShape | None) -> RowShape:
    if shape is None:
        return folder.shape
    for name, own, wanted in zip(RowShape._fields, folder.shape, shape):
        if wanted < own:
            raise ConfigError(f"{name}={wanted}, expected at least {own} as in {folder.path}")
    return shape


def check_batch(batch_size: int, rank: int, world: int) -> None:
    """Refuses a batch that the ranks cannot share, or a rank that is none."""
    if batch_size < 1 or batch_size % world:
        raise ConfigError(f"batch_size={batch_size}, expected a multiple of the {world} processes")
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank}, expected 0 to {world - 1}")
