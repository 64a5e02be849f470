"""Training rows that are drawn while a run goes on, in segments: folders of rows, one by one.

A segment takes a stretch of each source: of the chunks of its files in a random order, anew in
each pass. Longer stretches for larger weights; so a document of weight 2 is drawn from twice as
often as one of weight 1, and every document once in each pass. The journal has a line for each
segment: what the mixture said, and where each source began. So a segment that is gone can be made
again, and a run that is resumed finds the same rows; a changed mixture counts from the next
segment on.

  stream.json      settings of the stream, names of the tasks
  journal.jsonl    the segments
  lock             is held by the run that makes them
  0, 1, ...        folders of rows; those behind a run are removed
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data.bee_rows import ROWS
from mindplm.data.chunks import Chunk
from mindplm.data.draw import task_names
from mindplm.data.fingerprint import source_names
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.pool import num_workers, ordered_map
from mindplm.data.records import FORMAT, RowFolder, open_folder
from mindplm.data.report import Report
from mindplm.data.row_writer import RowBlock, new_rows
from mindplm.data.sources import SourceReader
from mindplm.data.spool import Entry, unpacked
from mindplm.data.stages import BucketStage, ChunkStage, accepted
from mindplm.data.tasks import generator
from mindplm.errors import ConfigError, DataError
from mindplm.files import replace_file, sha256_of
from mindplm.runtime import log
from mindplm.strict import Source, build, to_plain

HEADER, JOURNAL, LOCK = "stream.json", "journal.jsonl", "lock"
LATER = "later tasks"
"""Name of tasks that came into the mixture after the stream began."""
SEGMENT_BYTES = 1 << 24
_LARGEST_PACKED = 1 << 26
_SMALL_BYTES = 1 << 18
_UNIT = 1 << 20
"""Positions count in this part of a chunk."""


@dataclass(frozen=True)
class StreamPlan:
    """What a stream of rows depends on.

    Attributes:
        folder: Where segments and journal are.
        sources: Gives the sources as they are now.
        tokenizer: Cuts their texts.
        settings: Of the rows.
        kind: What the rows are.
        workers: Processes; 0: one for each core.
        strict: Stop at the first document that cannot be used.
    """

    folder: Path
    sources: Callable[[], list[SourceConfig]]
    tokenizer: Any
    settings: RowSettings
    kind: RowKind = ROWS
    workers: int = 0
    strict: bool = False

    def labels(self, sources: Sequence[SourceConfig]) -> list[str]:
        """What losses are reported by, for each number of a task."""
        names = task_names(source_names(sources), self.kind.tasks)
        groups = [s.task_name for s in sources for _ in self.kind.tasks]
        return [group or name for group, name in zip(groups, names)]

    def header(self) -> dict[str, Any]:
        """What stays the same for the whole stream; the names of the tasks as they are now."""
        settings = to_plain(replace(self.settings, repeat=1))
        return {
            "format": FORMAT,
            "kind": self.kind.name,
            "tokenizer": self.tokenizer.fingerprint,
            "settings": {**settings, "shape": self.settings.shape._asdict()},
            "task_names": [*sorted(set(self.labels(self.sources()))), LATER],
        }


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The segments that were made; a line that was not finished does not count."""
    path = folder / JOURNAL
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header of a stream, None if there is none yet."""
    path = folder / HEADER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def same_stream(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    """Whether two headers are of the same stream, whatever tasks came in."""
    names = {"task_names": None}
    return one is not None and {**one, **names} == {**other, **names}


class SegmentMaker:
    """Makes the segments of a stream, in their order, and again those that are gone.

    Args:
        plan: What they are made of. Segments that were made with other settings are removed.
    """

    def __init__(self, plan: StreamPlan):
        self._plan, self._folder = plan, plan.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._chunks: dict[str, list[Chunk]] = {}
        header, known = plan.header(), read_header(self._folder)
        if not same_stream(known, header):
            if known is not None:
                log.warning("%s: the settings changed, so its rows are drawn anew", self._folder)
            for path in self._folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            replace_file(self._folder / HEADER, json.dumps(header).encode("utf-8"))
            known = header
        assert known is not None
        self._names = known["task_names"]
        self.journal = read_journal(self._folder)
        self._cut_off()

    def make(self, number: int) -> RowFolder:
        """The rows of a segment; they are made if they are not there.

        Raises:
            DataError: A source cannot be read, nothing in a segment can be used, or one that is
                gone cannot be drawn again because its sources changed.
        """
        while len(self.journal) <= number:
            self._make_next()
        folder = self._folder / str(number)
        if folder.is_dir():
            try:
                return open_folder(folder, kind=self._plan.kind)
            except DataError as error:
                log.warning("%s; its rows are drawn again", str(error).partition(";")[0])
        self._make_again(number)
        return open_folder(folder, kind=self._plan.kind)

    def _make_again(self, number: int) -> None:
        """Makes a segment of the journal as it was."""
        line = self.journal[number]
        sources = [build(SourceConfig, s, "", Source(JOURNAL)) for s in line["sources"]]
        for path, before in line["scripts"].items():
            if _script_sums(sources).get(path) != before:
                log.warning("%s: changed since segment %d was made first", path, number)
        for name, source in zip(source_names(sources), sources):
            if len(self._chunks_of(source)) != line["begin"][name][2]:
                raise self._changed(number, source.path)
        block, _ = self._build(number, sources, line["begin"], line["subs"])
        if len(block) != line["rows"]:
            raise self._changed(number, ", ".join(source.path for source in sources))
        self._write(number, block)

    def _changed(self, number: int, what: str) -> DataError:
        return DataError(
            f"{self._folder}: segment {number} is gone and cannot be drawn again as it was, since "
            f"{what} changed; go on from a later checkpoint, or remove the folder to draw anew"
        )

    def remove_before(self, number: int) -> None:
        """Removes the segments before one."""
        for path in self._folder.iterdir():
            if path.is_dir() and path.name.isdecimal() and int(path.name) < number:
                shutil.rmtree(path)

    def _cut_off(self) -> None:
        """Removes a line of the journal that an interrupted run did not finish."""
        path = self._folder / JOURNAL
        if path.is_file():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    def _make_next(self) -> None:
        number = len(self.journal)
        sources = self._plan.sources()
        last = self.journal[-1] if self.journal else {"end": {}, "subs_end": []}
        begin = self._positions(sources, last["end"])
        block, line = self._build(number, sources, begin, last["subs_end"])
        self._write(number, block)
        line |= {"sources": to_plain(sources), "scripts": _script_sums(sources)}
        data = json.dumps(line, ensure_ascii=False) + "\n"
        with open(self._folder / JOURNAL, "ab") as file:
            file.write(data.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.journal.append(line)

    def _positions(
        self, sources: Sequence[SourceConfig], last: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        """(pass, place, chunks) of each source; a pass begins anew where the files changed."""
        begin = {}
        for name, source in zip(source_names(sources), sources):
            num = len(self._chunks_of(source))
            draw, at, before = last.get(name, [0, 0, num])
            if before != num:
                log.warning("%s: its files changed, so a pass begins anew", source.path)
                draw, at = draw + 1, 0
            begin[name] = [draw, at, num]
        return begin

    def _chunks_of(self, source: SourceConfig) -> list[Chunk]:
        """Places of a source's chunks; its files are looked through when they change."""
        reader = SourceReader(source)
        state = [(str(p), p.stat().st_mtime_ns) for file in reader.files for p in file.parts]
        key = json.dumps([to_plain(source), state], sort_keys=True)
        if key not in self._chunks:
            chunks, size = [], 0
            for chunk in reader.chunks():
                size += len(chunk.data or b"")
                if size > _LARGEST_PACKED:
                    raise ConfigError(
                        f"{source.path}: a stream reads plain files and binary data sets at any "
                        "place; unpack it, or prepare its rows (data.stream=false)"
                    )
                chunks.append(chunk)
            if not chunks:
                raise DataError(f"{source.path}: there is nothing in it")
            self._chunks[key] = chunks
        return self._chunks[key]

    def _build(
        self,
        number: int,
        sources: list[SourceConfig],
        begin: dict[str, list[int]],
        subs: list[list[int]],
    ) -> tuple[RowBlock, dict[str, Any]]:
        """The rows of a segment, and its line in the journal."""
        plan, names = self._plan, source_names(sources)
        end, chunks = self._stretches(sources, names, begin)
        report = Report(names, plan.settings.shape.seq_len)
        report.largest_subs = {int(base): int(sub) for base, sub in subs}
        drawer = plan.kind.drawer(sources, names, plan.tokenizer, plan.settings)
        stage = ChunkStage(sources, names, drawer, plan.settings, num_buckets=1, dedup=False)
        size = sum(chunk.read_bytes for chunk in chunks)
        workers = 1 if size < _SMALL_BYTES else num_workers(plan.workers)
        entries: list[Entry] = []
        for result in ordered_map(stage, chunks, workers):
            name = names[result.chunk.source]
            max_ext = plan.settings.shape.max_ext
            kept = accepted(result, report, name, max_ext=max_ext, strict=plan.strict)
            entries += [unpacked(data) for _, data in kept]
        labels = self._plan.labels(sources)
        pack = BucketStage(
            self._folder, plan.kind, plan.settings, names, labels=labels, order=self._names
        )
        packed = pack.pack(entries, generator(plan.settings.seed, "order of a segment", number, 0))
        if packed.block is None:
            raise DataError(f"{self._folder}: nothing can be used; {report.first_problems()}")
        report.merge(packed.report)
        first = sum(line["rows"] for line in self.journal[:number])
        counts = {name: report.counts[name] for name in ("documents", "instances", "tokens")}
        line = {"number": number, "first_row": first, "rows": len(packed.block), "begin": begin,
                "end": end, "subs": subs, "subs_end": list(report.largest_subs.items()),
                **counts}  # fmt: skip
        invalid = {reason: entry["count"] for reason, entry in report.invalid.items()}
        log.info("segment %d: %s, not used: %s", number, counts, invalid or "nothing")
        return packed.block, line

    def _stretches(
        self, sources: list[SourceConfig], names: list[str], begin: dict[str, list[int]]
    ) -> tuple[dict[str, list[int]], list[Chunk]]:
        """Where each source goes on after the segment, and the parts of chunks until there."""
        every = [self._chunks_of(source) for source in sources]
        sizes = [sum(max(c.read_bytes, len(c.data or b"")) for c in chunks) for chunks in every]
        whole = sum(source.weight * size for source, size in zip(sources, sizes))
        share = min(1.0, SEGMENT_BYTES / max(whole, 1))
        end, taken = {}, []
        for i, (name, source, chunks) in enumerate(zip(names, sources, every)):
            draw, at, _ = begin[name]
            left = max(1, round(share * source.weight * len(chunks) * _UNIT))
            order = self._order(name, draw, len(chunks))
            while left > 0:
                place, offset = divmod(at, _UNIT)
                step = min(left, _UNIT - offset)
                part = (offset / _UNIT, (offset + step) / _UNIT, draw)
                taken.append(replace(chunks[order[place]], source=i, part=part))
                at, left = at + step, left - step
                if at == len(chunks) * _UNIT:
                    draw, at = draw + 1, 0
                    order = self._order(name, draw, len(chunks))
            end[name] = [draw, at, len(chunks)]
        return end, taken

    def _order(self, name: str, draw: int, num_chunks: int) -> np.ndarray:
        """The chunks of a source as one pass takes them."""
        rng = generator(self._plan.settings.seed, f"{name} order", draw, 0)
        return rng.permutation(num_chunks)

    def _write(self, number: int, block: RowBlock) -> None:
        plan, folder = self._plan, self._folder / str(number)
        with new_rows(folder, plan.settings.shape, plan.tokenizer, plan.kind) as writer:
            writer.add_block(block)
            writer.finish({}, task_names=self._names)


def _script_sums(sources: Sequence[SourceConfig]) -> dict[str, str]:
    """Checksums of the transform scripts."""
    paths = [Path(s.transforms) for s in sources if isinstance(s.transforms, str)]
    return {str(path): sha256_of(path) for path in paths if path.is_file()}
