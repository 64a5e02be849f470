"""Texts and records to folders of packed rows: read, draw, convert, pack, write, report.

The result depends on the sources, the vocabulary and the settings only, not on the number of
processes. Memory does not grow with the corpus: documents are mixed in a buffer of fixed size.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindplm.config import SourceConfig
from mindplm.data.bee_rows import ROWS
from mindplm.data.draw import Drawn, Work, task_names
from mindplm.data.fingerprint import fingerprint, source_names
from mindplm.data.instances import Instance
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.pool import num_workers, ordered_map
from mindplm.data.records import RowWriter, new_rows
from mindplm.data.sources import Document, Item, Problem, SourceReader
from mindplm.data.tasks import generator
from mindplm.errors import DataError

_OPEN_ROWS = 128
_BUFFER_DOCUMENTS = 20_000
_BUFFER_CHARS = 8_000_000
_CHUNK_DOCUMENTS = 256
_CHUNK_CHARS = 100_000
_SMALL_BYTES = 200_000
"""Inputs below this are worked on in one process: starting others would take longer."""
_EXAMPLES = 5


class Report:
    """Counts of what was read and what became of it."""

    def __init__(self, names: Sequence[str], seq_len: int, tasks: Sequence[str]):
        self.seq_len = seq_len
        self.counts: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.tasks: Counter[str] = Counter()
        self._task_names = task_names(names, tasks)
        self.invalid: dict[str, dict[str, Any]] = {}
        self.largest_subs: dict[int, int] = {}
        self.seconds = 0.0

    def problem(self, problem: Problem) -> None:
        """Counts something that could not be used and keeps the first examples."""
        entry = self.invalid.setdefault(problem.reason, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _EXAMPLES:
            entry["first"].append(str(problem))

    def drawn(self, drawn: Drawn, source: str) -> None:
        """Counts what came of one draw."""
        of_source = self.sources[source]
        for name, number in (
            ("draws", 1),
            ("pieces", 0 if drawn.is_record else len(drawn.instances)),
            ("instances", len(drawn.instances)),
            ("tokens", sum(map(len, drawn.instances))),
            ("targets", sum(i.num_targets for i in drawn.instances)),
        ):
            self.counts[name] += number
            of_source[name] += number
        self.tasks.update(self._task_names[i.task] for i in drawn.instances)
        self.counts["target_characters"] += sum(i.num_chars for i in drawn.instances)
        if drawn.draw == 0:
            self.counts["characters"] += drawn.num_chars
            of_source["characters"] += drawn.num_chars

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        counts = self.counts
        room = counts["rows"] * self.seq_len
        order = ("documents", "characters", "draws", "pieces", "instances", "rows", "tokens",
                 "targets", "target_characters")  # fmt: skip
        invalid = {r: self.invalid[r] for r in sorted(self.invalid)}
        return {
            **{name: counts[name] for name in order},
            "fill": round(counts["written_tokens"] / room, 4) if room else 0.0,
            "too_long": invalid.get("too long", {"count": 0})["count"],
            "num_invalid": sum(entry["count"] for entry in invalid.values()),
            "invalid": invalid,
            "tasks": {name: self.tasks[name] for name in sorted(self.tasks)},
            "sources": {name: dict(counter) for name, counter in self.sources.items()},
            "seconds": round(self.seconds, 2),
        }


def preprocess(
    sources: Sequence[SourceConfig],
    tokenizer: Any,
    settings: RowSettings,
    folder: str | Path,
    *,
    kind: RowKind = ROWS,
    workers: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads sources and writes a folder of packed rows.

    Args:
        sources: Where texts and records come from.
        tokenizer: Cuts them.
        settings: Sizes of rows, number of draws, seed.
        folder: Is made, or replaced if it is a folder of rows; appears only when it is complete.
        kind: What the rows are.
        workers: Processes; 0: one for each core.
        strict: Stop at the first thing that cannot be used, instead of counting it.
        progress: Show a progress bar.

    Returns:
        The report that is also written to report.json.

    Raises:
        DataError: Nothing could be used, a file cannot be read, the folder cannot be written.
    """
    start = time.perf_counter()
    sources = kind.sources(sources)
    names = source_names(sources)
    readers = [SourceReader(source) for source in sources]
    report = Report(names, settings.shape.seq_len, kind.tasks)
    drawer = kind.drawer(sources, names, tokenizer, settings)
    small = sum(reader.total_bytes for reader in readers) < _SMALL_BYTES
    workers = 1 if small else num_workers(workers)
    mark = fingerprint(sources, tokenizer, settings, kind=kind)
    packer = kind.packer(_OPEN_ROWS, settings.shape)
    passes = _Passes(readers, sources, names, settings, report, strict)
    show = None if progress else True  # None: on a terminal only
    bar = tqdm(total=0, unit="doc", disable=show, desc=f"preprocess {Path(folder).name}")
    with bar, new_rows(folder, settings.shape, tokenizer, kind) as writer:
        for chunk in ordered_map(drawer.many, _chunks(passes.works()), workers):
            for drawn in chunk:
                for instance in _usable(drawn, names, report, settings, strict):
                    _write(writer, packer.add(instance), report)
            bar.total = passes.expected
            bar.update(len(chunk))
        _write(writer, packer.flush(), report)
        if not report.counts["rows"]:
            raise DataError(_nothing(sources, report))
        report.seconds = time.perf_counter() - start
        result = report.as_dict()
        keys = ("tokens", "characters", "targets", "target_characters")
        writer.finish(
            result,
            **{key: result[key] for key in keys},
            task_names=task_names(names, kind.tasks),
            fingerprint=mark,
        )
    return result


def _usable(
    drawn: Drawn, names: Sequence[str], report: Report, settings: RowSettings, strict: bool
) -> list[Instance]:
    """Counts a draw and returns its instances, without those that would burst the ext table."""
    if not drawn.is_record or drawn.draw == 0:
        for problem in drawn.problems:
            _refuse(problem, report, strict)
    kept = []
    for instance in drawn.instances:
        merged = dict(report.largest_subs)
        for base, sub in instance.largest_subs.items():
            merged[base] = max(sub, merged.get(base, 0))
        need = sum(merged.values())
        if need > settings.shape.max_ext:
            message = (
                f"record of {instance.num_ext} numbered or unknown tokens; with those of the "
                f"other records a batch may need {need}, max_ext is {settings.shape.max_ext}"
            )
            problem = Problem(drawn.place, "too many indexed tokens", message)
            _refuse(problem, report, strict)
            continue
        report.largest_subs = merged
        kept.append(instance)
    drawn.instances = kept
    report.drawn(drawn, names[drawn.source])
    return kept


def _write(writer: RowWriter, rows: Sequence[Any], report: Report) -> None:
    for row in rows:
        writer.add(row)
        report.counts["rows"] += 1
        report.counts["written_tokens"] += len(row)


def _refuse(problem: Problem, report: Report, strict: bool) -> None:
    if strict:
        raise DataError(str(problem))
    report.problem(problem)


def _nothing(sources: Sequence[SourceConfig], report: Report) -> str:
    places = ", ".join(source.path for source in sources)
    first = [entry["first"][0] for entry in report.invalid.values()]
    return f"{places}: nothing in it can be used; {'; '.join(first) or 'no documents'}"


class _Passes:
    """Goes over the sources once for each draw and hands out the work in mixed order."""

    def __init__(
        self,
        readers: Sequence[SourceReader],
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        settings: RowSettings,
        report: Report,
        strict: bool,
    ):
        self._readers = readers
        self._names = names
        self._settings = settings
        self._report = report
        self._strict = strict
        self._draws = [settings.repeat * source.weight for source in sources]
        most = [draws * reader.max_weight for draws, reader in zip(self._draws, readers)]
        self._num = max(int(np.ceil(draws)) for draws in most)
        self._bytes = sum(reader.total_bytes for reader in readers)
        self._finished = 0
        self._handed_out = 0

    @property
    def expected(self) -> int:
        """How many draws there will be, guessed from the part of the files that was read."""
        done = self._finished + sum(reader.position for reader in self._readers) / self._bytes
        return max(self._handed_out, int(self._handed_out * self._num / max(done, 1e-9)))

    def works(self) -> Iterator[Work]:
        """All draws from all documents."""
        for draw in range(self._num):
            rng = generator(self._settings.seed, "order of documents", 0, draw)
            yield from _shuffled(self._pass(draw), rng)

    def _pass(self, draw: int) -> Iterator[Work]:
        """One draw from each document; the sources advance side by side."""
        for reader in self._readers:
            reader.rewind()
        self._finished = draw
        running = {i: self._documents(i, draw) for i in range(len(self._readers))}
        while running:
            source = min(running, key=lambda i: (self._readers[i].fraction, i))
            work = next(running[source], None)
            if work is None:
                del running[source]
            else:
                self._handed_out += 1
                yield work

    def _documents(self, source: int, draw: int) -> Iterator[Work]:
        for number, item in enumerate(self._items(source, draw)):
            wanted = self._draws[source] * item.weight
            if wanted % 1:  # a part of a draw: some documents get one more
                name = self._names[source]
                rng = generator(self._settings.seed, f"{name} number of draws", number, 0)
                wanted = int(wanted) + (rng.random() < wanted % 1)
            if draw < wanted:
                yield Work(source, number, draw, item)

    def _items(self, source: int, draw: int) -> Iterator[Document]:
        for item in self._readers[source]:
            if draw == 0:
                self._count(item, source)
            if isinstance(item, Document):
                yield item

    def _count(self, item: Item, source: int) -> None:
        if isinstance(item, Problem):
            _refuse(item, self._report, self._strict)
        else:
            self._report.counts["documents"] += 1
            self._report.sources[self._names[source]]["documents"] += 1


def _size(work: Work) -> int:
    return sum(len(v) for v in work.document.fields.values() if isinstance(v, str)) + 100


def _shuffled(works: Iterable[Work], rng: np.random.Generator) -> Iterator[Work]:
    """Mixes within a buffer of bounded size."""
    buffer: list[Work] = []
    size = 0
    for work in works:
        buffer.append(work)
        size += _size(work)
        if len(buffer) >= _BUFFER_DOCUMENTS or size >= _BUFFER_CHARS:
            yield from (buffer[i] for i in rng.permutation(len(buffer)))
            buffer, size = [], 0
    yield from (buffer[i] for i in rng.permutation(len(buffer)))


def _chunks(works: Iterable[Work]) -> Iterator[list[Work]]:
    chunk: list[Work] = []
    size = 0
    for work in works:
        chunk.append(work)
        size += _size(work)
        if len(chunk) >= _CHUNK_DOCUMENTS or size >= _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
