"""Batches of a stream of rows: as those of prepared rows, but the rows are drawn on the way.

Rank 0 makes the segments, a little ahead of the run; all ranks read them. Row number t * batch_size
of the stream begins step t, whatever was resumed, on any number of ranks; the journal knows which
segment a row is in.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mindplm.data.kinds import Draws, RowKind
from mindplm.data.loader import Batch, Info, RowStream, Share, check_batch
from mindplm.data.packing import RowShape, merge_pairs
from mindplm.data.records import RowFolder, open_folder
from mindplm.data.segments import (
    LOCK,
    SegmentMaker,
    StreamPlan,
    read_header,
    read_journal,
    same_stream,
)
from mindplm.errors import ConfigError, DataError
from mindplm.files import only_process
from mindplm.runtime import log

_AHEAD = 2
_WAIT_SECONDS = 0.2
_PATIENCE_SECONDS = 3600.0


class StreamRows:
    """Stands for the rows of a stream where a run expects a folder of rows.

    Attributes:
        plan: What the stream is made of.
        path: Its folder.
        task_names: Names of the tasks by the numbers in the rows.
    """

    def __init__(self, plan: StreamPlan):
        self.plan, self.path = plan, plan.folder
        header, known = plan.header(), read_header(plan.folder)
        found = known if known is not None and same_stream(known, header) else header
        self.task_names: list[str] = found["task_names"]

    def __len__(self) -> int:
        raise ConfigError("data.stream=true has no end and so no epochs; give train.steps")

    @property
    def kind(self) -> RowKind:
        """What the rows are."""
        return self.plan.kind

    @property
    def shape(self) -> RowShape:
        """Sizes of the batches."""
        return self.plan.settings.shape


class _Segments:
    """The segments in turn, as one rank sees them.

    Args:
        rows: The stream.
        rank: Number of this process; rank 0 makes the segments.
        behind: Rows that another rank may be behind this one.
    """

    def __init__(self, rows: StreamRows, rank: int, behind: int):
        self._rows, self._rank, self._behind = rows, rank, behind
        self._stopped = threading.Event()
        self._lock = contextlib.ExitStack()
        self._current = self._made = 0
        self._error: BaseException | None = None
        self._maker: SegmentMaker | None = None
        self._thread: threading.Thread | None = None

    def start(self, first_row: int) -> tuple[int, int]:
        """Number of the segment that a row is in, and the number of its first row."""
        if self._rank == 0:
            self._lock.enter_context(only_process(self._rows.path / LOCK))
            self._maker = SegmentMaker(self._rows.plan)
            number, begin = self._find(first_row, self._maker.journal)
            while number is None:  # the rows before were made with other settings, or are gone
                self._maker.make(len(self._maker.journal))
                number, begin = self._find(first_row, self._maker.journal)
            self._current = number
            self._thread = threading.Thread(target=self._work, name="segments", daemon=True)
            self._thread.start()
            return number, begin
        for _ in self._waiting(f"the segment of row {first_row}"):
            if same_stream(read_header(self._rows.path), self._rows.plan.header()):
                number, begin = self._find(first_row, read_journal(self._rows.path))
                if number is not None:
                    return number, begin
        raise AssertionError

    def open(self, number: int) -> RowFolder:
        """The rows of a segment, when they are there."""
        self._current = max(self._current, number)
        folder, error = self._rows.path / str(number), ""
        for _ in self._waiting(f"segment {number}"):
            if self._error is not None:
                raise self._error
            if self._rank == 0 and number < self._made:
                return open_folder(folder, kind=self._rows.kind, verify=False)
            if self._rank and folder.is_dir() and len(read_journal(self._rows.path)) > number:
                try:
                    return open_folder(folder, kind=self._rows.kind)
                except DataError as problem:  # rank 0 makes what is gone or damaged again
                    if str(problem) != error:
                        error = str(problem)
                        log.info("waiting for rank 0 to mend this: %s", error)
        raise AssertionError

    def stop(self) -> None:
        """Ends the making of segments."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        self._lock.close()

    def _find(self, row: int, journal: list[dict[str, Any]]) -> tuple[int | None, int]:
        for line in journal:
            if line["first_row"] <= row < line["first_row"] + line["rows"]:
                return line["number"], line["first_row"]
        return None, 0

    def _work(self) -> None:
        assert self._maker is not None
        try:
            self._made = self._current
            while not self._stopped.is_set():
                if self._made <= self._current + _AHEAD:
                    self._maker.make(self._made)
                    self._made += 1
                    journal = self._maker.journal
                    first = journal[min(self._current, len(journal) - 1)]["first_row"]
                    last, _ = self._find(max(0, first - self._behind), journal)
                    self._maker.remove_before(last or 0)
                else:
                    self._stopped.wait(_WAIT_SECONDS)
        except BaseException as error:  # handed to whoever waits for a segment
            self._error = error

    def _waiting(self, what: str) -> Iterator[None]:
        """Gives a turn now and again until something is there."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            yield
            if self._stopped.wait(_WAIT_SECONDS):
                raise DataError(f"{self._rows.path}: closed before {what} was there")
        raise DataError(f"{self._rows.path}: waited an hour for {what}; is rank 0 alive?")


class _Numbered(NamedTuple):
    """A row of the stream: its number, itself if this rank needs it, and where it is."""

    number: int
    row: Any
    place: int
    folder: RowFolder


class StreamedRows(RowStream):
    """The training batches of one rank of a stream; see `RowStream`.

    Args:
        rows: The stream.
        seed: Of what is drawn anew each time that a row is used.
        batch_size: Rows of a global batch.
        rank: Number of this process.
        world: Number of processes.
        start_step: First step to deliver.
        prefetch: Batches that are prepared ahead.
    """

    def __init__(
        self,
        rows: StreamRows,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        prefetch: int = 4,
    ):
        check_batch(batch_size, rank, world)
        self.rows, self._seed = rows, seed
        self._share = Share(batch_size // world, rank, world)
        self._start_step = start_step
        self._segments = _Segments(rows, rank, behind=4 * (prefetch + 1) * batch_size)
        self._start(prefetch)

    def close(self) -> None:
        """Ends the threads; the stream gives nothing after that."""
        self._segments.stop()
        super().close()

    def _made(self) -> Iterator[Batch]:
        share, kind = self._share, self.rows.kind
        size = share.size * share.world
        pool = self._numbered(self._start_step * size)
        for step in itertools.count(self._start_step):
            group = list(itertools.islice(pool, size))
            yield self._batch(kind, step, group)

    def _numbered(self, row: int) -> Iterator[_Numbered]:
        """The rows from a number on."""
        number, first = self._segments.start(row)
        size = self._share.size * self._share.world
        mine = range(*self._share.part.indices(size))
        while True:
            folder = self._segments.open(number)
            order = np.arange(row - first, len(folder))
            own = order[[self.rows.kind.draws or (first + i) % size in mine for i in order]]
            reader = folder.read(own) if len(own) else iter(())
            wanted = set(own.tolist())
            for i in order.tolist():
                yield _Numbered(first + i, next(reader) if i in wanted else None, i, folder)
            first += len(folder)
            row, number = first, number + 1

    def _batch(self, kind: RowKind, step: int, group: list[_Numbered]) -> Batch:
        share = self._share
        info: Info = {"step": step, "epoch": 0, "rows": np.array([one.number for one in group])}
        for name, column in (("tokens", "length"), ("targets", "num_targets"),
                             ("chars", "num_chars")):  # fmt: skip
            info[name] = sum(int(getattr(one.folder.index, column)[one.place]) for one in group)
        made = group[share.made(kind)]
        ext = merge_pairs([one.folder.index.pairs(one.place) for one in group])
        draws = Draws(ext, self._seed, [(0, one.number) for one in made])
        return share.batch(
            kind,
            [one.row for one in made],
            info,
            shape=self.rows.shape,
            marks=made[0].folder.marks,
            draws=draws,
        )
