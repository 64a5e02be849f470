"""The two parts of preparing rows that are done in many processes at once.

First each chunk of the input becomes instances, dealt out to buckets; then each bucket is shuffled
and packed into rows. What comes of a chunk or a bucket depends on nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data.chunks import Chunk
from mindplm.data.documents import Document, Problem
from mindplm.data.draw import Drawn, Work
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.readers import documents_of
from mindplm.data.report import EXAMPLES, Report
from mindplm.data.row_writer import RowBlock
from mindplm.data.sources import Wanted
from mindplm.data.spool import Entry, bucket_of, key_of, packed, read_bucket
from mindplm.data.tasks import generator
from mindplm.errors import DataError

_OPEN_ROWS = 128
_COUNTED = ("pieces", "instances", "tokens", "targets", "target_characters")


@dataclass
class ChunkResult:
    """What came of a chunk.

    Attributes:
        chunk: The chunk, without its data.
        entries: Bucket and packed entry of each instance.
        subs: Of the instances with subs: number among the entries, largest subs, place.
        numbers: Documents, characters, draws.
        notes: What else was counted.
        problems: By reason: how many, and the first of them.
    """

    chunk: Chunk
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    subs: list[tuple[int, dict[int, int], str]] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: dict[str, tuple[int, list[Problem]]] = field(default_factory=dict)

    def problem(self, problem: Problem) -> None:
        """Counts something that could not be used."""
        count, first = self.problems.get(problem.reason, (0, []))
        self.problems[problem.reason] = (count + 1, (first + [problem])[:EXAMPLES])


def accepted(
    result: ChunkResult, report: Report, name: str, *, max_ext: int, strict: bool
) -> list[tuple[int, bytes]]:
    """Counts what came of a chunk; returns the entries that burst no extension table.

    Args:
        result: What came of it.
        report: The counts.
        name: Name of the source.
        max_ext: Most extra classes of a batch, whichever rows are in it.
        strict: Stop at the first thing that cannot be used.

    Raises:
        DataError: Something cannot be used, and `strict` is set.
    """
    report.count(name, result.numbers)
    report.notes.update(result.notes)
    for count, first in result.problems.values():
        if strict:
            raise DataError(str(first[0]))
        for problem in first:
            report.problem(problem)
        report.invalid[first[0].reason]["count"] += count - len(first)
    left = set()
    for number, subs, place in result.subs:
        merged = report.room(subs)
        need = sum(merged.values())
        if need <= max_ext:
            report.largest_subs = merged
            continue
        message = (
            f"record of {sum(subs.values())} numbered or unknown tokens; with those of the other "
            f"records a batch may need {need}, max_ext is {max_ext}"
        )
        problem = Problem(place, "too many indexed tokens", message)
        if strict:
            raise DataError(str(problem))
        report.problem(problem)
        left.add(number)
    return [entry for number, entry in enumerate(result.entries) if number not in left]


class ChunkStage:
    """Makes instances of a chunk.

    Args:
        sources: All sources.
        names: Their names.
        drawer: The family's.
        settings: Repeat and seed are used.
        num_buckets: Instances are dealt out to so many.
        dedup: Whether equal documents must come into the same bucket.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        drawer: Any,
        settings: RowSettings,
        *,
        num_buckets: int,
        dedup: bool,
    ):
        self._wanted = [Wanted.of(source) for source in sources]
        shows = getattr(drawer, "uses_others", False)
        self._shows = [shows or len(source.incontext_weight) > 1 for source in sources]
        self._draws = [settings.repeat * source.weight for source in sources]
        self._names, self._seed = list(names), settings.seed
        self._drawer = drawer
        self._num_buckets, self._dedup = num_buckets, dedup

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """The instances of a chunk."""
        result = ChunkResult(dataclasses.replace(chunk, data=None))
        wanted, source = self._wanted[chunk.source], chunk.source
        items = [(number, wanted.check(item)) for number, item in documents_of(chunk)]
        good = [(number, item) for number, item in items if isinstance(item, Document)]
        others = [item for _, item in good] if self._shows[source] else []
        first = chunk.part is None or chunk.part[::2] == (0.0, 0)
        for _, item in items:
            if first and isinstance(item, Problem):
                result.problem(item)
        for number, document in good:
            number += chunk.file << 40
            draws = self._wanted_draws(chunk, number, document.weight)
            result.numbers["documents"] += bool(draws) or chunk.part is None
            works = [Work(source, number, draw, document, others) for draw in draws]
            for work, drawn in zip(works, self._drawer.many(works)):
                self._take(work, drawn, result)
        return result

    def _wanted_draws(self, chunk: Chunk, number: int, weight: float) -> Sequence[int]:
        """Numbers of the draws from a document."""
        if chunk.part is None:
            return range(self._num_draws(chunk.source, number, weight))
        name, (low, high, draw) = self._names[chunk.source], chunk.part
        place = generator(self._seed, f"{name} place in a chunk", number, draw).random()
        return [draw] if low <= place < high else []

    def _num_draws(self, source: int, number: int, weight: float) -> int:
        wanted = self._draws[source] * weight
        if wanted % 1:  # a part of a draw: some documents get one more
            rng = generator(self._seed, f"{self._names[source]} number of draws", number, 0)
            return int(wanted) + (rng.random() < wanted % 1)
        return int(wanted)

    def _take(self, work: Work, drawn: Drawn, result: ChunkResult) -> None:
        if not drawn.is_record or drawn.draw == 0:
            for problem in drawn.problems:
                result.problem(problem)
        result.numbers["draws"] += 1
        if drawn.draw == 0:
            result.numbers["characters"] += drawn.num_chars
        result.notes.update(getattr(drawn, "counts", {}))
        key = self._key(work, drawn.is_record)
        bucket = bucket_of(key, work.draw, self._num_buckets)
        for instance in drawn.instances:
            if instance.largest_subs:
                result.subs.append((len(result.entries), instance.largest_subs, drawn.place))
            data = pickle.dumps(instance, protocol=4)
            entry = Entry(key, work.number, work.source, work.draw, drawn.is_record, data)
            result.entries.append((bucket, packed(entry)))

    def _key(self, work: Work, is_record: bool) -> bytes:
        if not self._dedup:
            return key_of(f"{self._seed} {work.source} {work.number}".encode())
        fields = work.document.fields
        text = fields.get("text")
        if is_record or not isinstance(text, str):
            text = json.dumps(fields, sort_keys=True, default=str)
        return key_of(text.encode("utf-8", "surrogatepass"))


@dataclass
class BucketResult:
    """What came of a bucket.

    Attributes:
        block: Its rows; None if there are none.
        report: What was counted.
    """

    block: RowBlock | None
    report: Report


class BucketStage:
    """Shuffles a bucket and packs it into rows.

    Args:
        folder: Holds the buckets.
        kind: What the rows are.
        settings: Shape and seed are used.
        names: Names of the sources.
        labels: Names of the tasks by the numbers that instances have.
        order: The names by the numbers that rows get, a label that is not among them the last
            number; None: all labels, sorted.
        dedup: Whether to leave out documents that the bucket has already.
    """

    def __init__(
        self,
        folder: Path,
        kind: RowKind,
        settings: RowSettings,
        names: Sequence[str],
        *,
        labels: Sequence[str],
        order: Sequence[str] | None = None,
        dedup: bool = False,
    ):
        self._folder, self._kind, self._settings = folder, kind, settings
        self._names, self._labels, self._dedup = list(names), list(labels), dedup
        order = sorted(set(labels)) if order is None else order
        places = {label: number for number, label in enumerate(order)}
        last = len(order) - 1
        self._places = np.array([places.get(label, last) for label in labels], np.int32)

    def __call__(self, bucket: int) -> BucketResult:
        """The rows of a bucket."""
        entries = list(read_bucket(self._folder / str(bucket)))
        return self.pack(entries, generator(self._settings.seed, "order of a bucket", bucket, 0))

    def pack(self, entries: list[Entry], rng: np.random.Generator) -> BucketResult:
        """The rows of instances that a generator shuffles."""
        report = Report(self._names, self._settings.shape.seq_len)
        entries = self._different(entries, report)
        packer = self._kind.packer(_OPEN_ROWS, self._settings.shape)
        rows: list[Any] = []
        made: list[tuple[int, ...]] = []
        for place in rng.permutation(len(entries)).tolist():
            entry = entries[place]
            instance = entry.instance()
            made.append(
                (entry.source, instance.task, not entry.is_record, 1, len(instance),
                 instance.num_targets, instance.num_chars)
            )  # fmt: skip
            rows += packer.add(instance)
        self._count(np.array(made, np.int64).reshape(-1, 2 + len(_COUNTED)), report)
        rows += packer.flush()
        for row in rows:
            row.task_ids = self._places[row.task_ids]
        report.counts["rows"] += len(rows)
        return BucketResult(RowBlock.of(rows, self._kind.stored) if rows else None, report)

    def _different(self, entries: list[Entry], report: Report) -> list[Entry]:
        """The entries without those of documents that equal an earlier one."""
        if not self._dedup:
            return entries
        owners: dict[tuple[bytes, int], tuple[int, int]] = {}
        kept, left = [], set()
        for entry in entries:
            own = (entry.source, entry.number)
            if owners.setdefault((entry.key, entry.draw), own) == own:
                kept.append(entry)
            elif entry.draw == 0:
                left.add(own)
        for source, _ in left:
            report.count(self._names[source], {"duplicates": 1})
        return kept

    def _count(self, made: np.ndarray, report: Report) -> None:
        """Counts instances: rows of source, task and _COUNTED."""
        for source in np.unique(made[:, 0]).tolist():
            sums = made[made[:, 0] == source, 2:].sum(axis=0).tolist()
            report.count(self._names[source], dict(zip(_COUNTED, sums)))
        for task, count in enumerate(np.bincount(made[:, 1]).tolist()):
            if count:
                report.tasks[self._labels[task]] += count
        report.add_lengths(made[:, 2 + _COUNTED.index("tokens")])
