"""Texts and records to folders of packed rows: read, draw, convert, mix, pack, write, report.

First all instances are made, chunk by chunk, and dealt out at random to buckets on disk; then each
bucket is shuffled and packed. So rows are mixed over the whole corpus while memory holds a bucket.
The result depends on the sources, the vocabulary and the settings only, not on the number of
processes. What is done is noted in a work folder beside the target, so that an interrupted run
goes on there; it is removed when the rows are whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindplm import files
from mindplm.config import SourceConfig
from mindplm.data import row_writer
from mindplm.data.bee_rows import ROWS
from mindplm.data.chunks import Chunk
from mindplm.data.draw import task_names
from mindplm.data.fingerprint import fingerprint, source_names
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.pool import num_workers, ordered_map
from mindplm.data.report import Report
from mindplm.data.row_writer import NoSpaceError, RowWriter, check_target, written_at
from mindplm.data.sources import SourceReader
from mindplm.data.spool import BUCKET_BYTES, MOST_BUCKETS, Buckets
from mindplm.data.stages import BucketStage, ChunkStage, accepted
from mindplm.errors import DataError, UserError
from mindplm.files import FolderWriter
from mindplm.runtime import log

_SMALL_BYTES = 200_000
"""Inputs below this are worked on in one process: starting others would take longer."""
_SAVE_SECONDS = 15.0
_GROWTH = 1.2  # bytes of instances for a byte of text
_PACKED_GROWTH = 4.0


def preprocess(
    sources: Sequence[SourceConfig],
    tokenizer: Any,
    settings: RowSettings,
    folder: str | Path,
    *,
    kind: RowKind = ROWS,
    workers: int = 0,
    strict: bool = False,
    dedup: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads sources and writes a folder of packed rows, or goes on where that was interrupted.

    Args:
        sources: Where texts and records come from.
        tokenizer: Cuts them.
        settings: Sizes of rows, number of draws, seed.
        folder: Is made, or replaced if it is a folder of rows; appears only when it is complete.
        kind: What the rows are.
        workers: Processes; 0: one for each core.
        strict: Stop at the first thing that cannot be used, instead of counting it.
        dedup: Leave out documents that were met before, to the letter.
        progress: Show a progress bar.

    Returns:
        The report that is also written to report.json.

    Raises:
        DataError: Nothing could be used, a file cannot be read, the folder cannot be written.
    """
    target = Path(folder)
    sources = kind.sources(sources)
    readers = [SourceReader(source) for source in sources]
    check_target(target)
    mark = fingerprint(sources, tokenizer, settings, kind=kind, dedup=dedup)
    with written_at(target), files.work_folder(target, row_writer.MIN_FREE_BYTES) as work:
        job = _Job(work, mark, readers, sources, settings, kind)
        job.workers = 1 if job.total_bytes < _SMALL_BYTES else num_workers(workers)
        job.strict, job.show = strict, None if progress else True  # None: on a terminal only
        writer = RowWriter(
            target, job.builder, settings.shape, tokenizer, kind, parts=work / "parts"
        )
        with job.kept_or_removed(target):
            drawer = kind.drawer(sources, job.names, tokenizer, settings)
            draw = ChunkStage(
                sources, job.names, drawer, settings, num_buckets=job.num_buckets, dedup=dedup
            )
            job.draw(draw)
            labels = _labels(sources, job.names, kind)
            pack = BucketStage(
                work / "spool", kind, settings, job.names, labels=labels, dedup=dedup
            )
            job.pack(pack, writer)
            result = job.report.as_dict()
            keys = ("tokens", "characters", "targets", "target_characters")
            writer.finish(
                result,
                **{key: result[key] for key in keys},
                task_names=sorted(set(labels)),
                fingerprint=mark,
            )
            job.builder.finish()
            files.put_in_place(job.builder.folder, target)
    files.clean(target.parent)
    return result


def _labels(sources: Sequence[SourceConfig], names: Sequence[str], kind: RowKind) -> list[str]:
    """What losses are reported by, for each number of a task."""
    own = itertools.chain.from_iterable([s.task_name] * len(kind.tasks) for s in sources)
    return [group or name for group, name in zip(own, task_names(names, kind.tasks))]


class _Job:
    """What is done of the work, noted in its folder.

    Args:
        work: The folder.
        mark: What the rows depend on; work on something else is thrown away.
        readers: Of the sources.
        sources: The sources.
        settings: Of the rows.
        kind: What they are.
    """

    def __init__(
        self,
        work: Path,
        mark: dict[str, Any],
        readers: Sequence[SourceReader],
        sources: Sequence[SourceConfig],
        settings: RowSettings,
        kind: RowKind,
    ):
        self.work, self.readers = work, readers
        self.names = source_names(sources)
        self.report = Report(self.names, settings.shape.seq_len)
        self.workers, self.strict = 1, False
        self.show: bool | None = None
        self.total_bytes = sum(reader.total_bytes for reader in readers)
        self._sizes = [reader.total_bytes for reader in readers]
        self._max_ext = settings.shape.max_ext
        self.num_buckets = _num_buckets(readers, sources, settings)
        self._state: dict[str, Any] = {}
        self._begin(mark)
        for name in ("rows", "parts"):
            (work / name).mkdir(exist_ok=True)
        self.builder = FolderWriter(work / "rows")
        self._saved_s = time.perf_counter()

    def _begin(self, mark: dict[str, Any]) -> None:
        """Takes up the state of an interrupted run, if it did the same work."""
        job = json.dumps([mark, self.num_buckets], sort_keys=True)
        path = self.work / "job.json"
        if path.is_file() and path.read_text(encoding="utf-8") == job:
            state = self.work / "state.json"
            if state.is_file():
                self._state = json.loads(state.read_text(encoding="utf-8"))
                self.report.load_state(self._state["report"])
                log.info("%s: goes on with the work that was interrupted there", self.work)
            return
        for old in self.work.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != "lock":
                old.unlink()
        files.replace_file(path, job.encode("utf-8"))

    @contextlib.contextmanager
    def kept_or_removed(self, target: Path) -> Iterator[None]:
        """Removes the work when it is done or in vain; keeps what can be gone on with."""
        start = time.perf_counter() - self.report.seconds
        self._start = start
        try:
            yield
        except NoSpaceError as error:
            raise NoSpaceError(f"{error}; the same command then goes on") from None
        except UserError:
            shutil.rmtree(self.work)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpaceError(
                f"{target.parent}: no space left on device; free some space, the same command "
                "then goes on"
            ) from None
        else:
            shutil.rmtree(self.work)

    def _save(self, **state: Any) -> None:
        self.report.seconds = time.perf_counter() - self._start
        self._state = {**state, "report": self.report.state()}
        data = json.dumps(self._state).encode("utf-8")
        files.replace_file(self.work / "state.json", data)
        self._saved_s = time.perf_counter()

    # The first part: from chunks to buckets.

    def draw(self, stage: ChunkStage) -> None:
        """Makes all instances."""
        if self._state.get("stage") == "pack":
            return
        done = self._state.get("done", [0, 0, 0])
        sizes = {int(bucket): size for bucket, size in self._state.get("sizes", {}).items()}
        buckets = Buckets(self.work / "spool", sizes)
        read = sum(self._sizes[: done[0]])
        bar = tqdm(total=self.total_bytes, initial=read, unit="B", unit_scale=True,
                   disable=self.show, desc="read and draw")  # fmt: skip
        with bar:
            for result in ordered_map(stage, self._chunks(done), self.workers):
                chunk = result.chunk
                name = self.names[chunk.source]
                for bucket, data in accepted(
                    result, self.report, name, max_ext=self._max_ext, strict=self.strict
                ):
                    buckets.add(bucket, data)
                same = [chunk.source, chunk.file] == done[:2]
                done = [chunk.source, chunk.file, done[2] + 1 if same else 1]
                bar.update(chunk.read_bytes)
                if time.perf_counter() - self._saved_s >= _SAVE_SECONDS:
                    self._save(stage="draw", done=done, sizes=buckets.flush())
        self._save(stage="pack", sizes=buckets.flush(), bucket=0, rows=None)

    def _chunks(self, done: Sequence[int]) -> Iterator[Chunk]:
        """The chunks that are not done."""
        source, file, skip = done
        for number, reader in enumerate(self.readers[source:], start=source):
            chunks = reader.chunks(file if number == source else 0)
            if number == source:
                chunks = itertools.islice(chunks, skip, None)
            for chunk in chunks:
                yield dataclasses.replace(chunk, source=number)

    # The second part: from buckets to rows.

    def pack(self, stage: BucketStage, writer: RowWriter) -> None:
        """Packs and writes all buckets."""
        first = self._state["bucket"]
        if self._state["rows"] is not None:
            writer.load_state(self._state["rows"])
        else:
            for path in self.builder.folder.iterdir():
                path.unlink()
        bar = tqdm(total=self.num_buckets, initial=first, disable=self.show, desc="mix and pack")
        workers = min(self.workers, self.num_buckets - first)
        with bar:
            numbers = range(first, self.num_buckets)
            for bucket, result in zip(numbers, ordered_map(stage, numbers, workers)):
                self.report.merge(result.report)
                if result.block is not None and writer.add_block(result.block):
                    writer.end_file()
                    sizes = self._state["sizes"]
                    self._save(stage="pack", sizes=sizes, bucket=bucket + 1, rows=writer.state())
                bar.update()
        if not self.report.counts["rows"]:
            raise DataError(self._nothing())
        self.report.seconds = time.perf_counter() - self._start

    def _nothing(self) -> str:
        places = ", ".join(file.label for reader in self.readers for file in reader.files[:3])
        return f"{places}: nothing in it can be used; {self.report.first_problems()}"


def _num_buckets(
    readers: Sequence[SourceReader], sources: Sequence[SourceConfig], settings: RowSettings
) -> int:
    """So many that each fits into memory."""
    size = 0.0
    for reader, source in zip(readers, sources):
        for file in reader.files:
            packed = file.path.suffix in (".gz", ".zst", ".parquet")
            growth = _GROWTH * (_PACKED_GROWTH if packed else 1)
            size += file.num_bytes * growth * settings.repeat * source.weight
    return int(min(max(1, -(-size // BUCKET_BYTES)), MOST_BUCKETS))
