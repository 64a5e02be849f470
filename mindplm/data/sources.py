"""Documents from files: plain text and JSON lines, both also gzipped, and the embedded corpora.

In a text file a blank line ends a document. In JSON lines each line is a document: an object with
a text under some key, or a record. What cannot be used comes out as a `Problem` with its place,
so that the caller decides whether to go on. A source with a shape is read by `shapes` instead.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mindplm.assets import corpus
from mindplm.config import SourceConfig
from mindplm.data.documents import Document as Document
from mindplm.data.documents import (
    InputFile,
    Item,
    Lines,
    Problem,
    json_lines,
    numbered_lines,
    text_lines,
)
from mindplm.data.shapes import balanced, label_counts, shaped
from mindplm.data.tables import SEPARATORS
from mindplm.errors import DataError

EMBEDDED = "embedded:"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md")
SHAPED_SUFFIXES = (*SEPARATORS, ".conll", ".bio")
"""Kinds of files that only a shape makes sense of."""
SUFFIXES = JSON_SUFFIXES + TEXT_SUFFIXES + SHAPED_SUFFIXES
RECORD = "record"
"""Task of a source whose lines are records already."""
ANSWER = "<ans>"
_LONGEST_TEXT = 200_000


def find_files(path: str) -> list[InputFile]:
    """The files that a source's path stands for, sorted.

    Raises:
        DataError: There is none, or one is of a kind that cannot be read.
    """
    if path.startswith(EMBEDDED):
        return [InputFile(path, corpus(path[len(EMBEDDED) :]))]
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; name a file or a pattern such as {path}/*.jsonl")
    names = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    names = [name for name in names if not Path(name).is_dir()]
    if not names:
        what = "no file matches" if glob.has_magic(path) else "no such file"
        raise DataError(f"{path}: {what}")
    for name in names:
        if _suffix(name) not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise DataError(f"{name}: unknown kind of file; expected {known} (or these with .gz)")
        if not os.access(name, os.R_OK):
            raise DataError(f"{name}: cannot be read: permission denied")
    return [InputFile(name, Path(name)) for name in names]


class SourceReader:
    """Iterates over the documents and problems of one source, file by file.

    Attributes:
        files: The files of the source.
    """

    def __init__(self, source: SourceConfig):
        self.files = find_files(source.path)
        self._text_field = source.text_field
        # Without tasks it is texts that are wanted, whatever will be made of them.
        self._needs_text = not source.tasks or any(
            w > 0 for task, w in source.tasks.items() if task != RECORD
        )
        self._takes_records = source.tasks.get(RECORD, 0) > 0
        self._total = sum(f.path.stat().st_size for f in self.files) or 1
        self._done = 0
        self._raw: IO[bytes] | None = None
        self._shape = source.shape
        if self._shape is None:
            self._check_suffixes()
        self._counts = label_counts(self._items()) if self._is_balanced else {}

    @property
    def total_bytes(self) -> int:
        """Size of the files."""
        return self._total

    @property
    def position(self) -> int:
        """Bytes of the files that were read."""
        return self._done + (self._raw.tell() if self._raw else 0)

    @property
    def fraction(self) -> float:
        """The part of the files that was read."""
        return self.position / self._total

    @property
    def max_weight(self) -> float:
        """Largest weight of a document."""
        counts = self._counts.values()
        return max(counts) / min(counts) if counts else 1.0

    def rewind(self) -> None:
        """Forgets the position; the next iteration starts at the beginning in any case."""
        self._done = 0

    def __iter__(self) -> Iterator[Item]:
        items = self._items()
        return balanced(items, self._counts) if self._is_balanced else items

    @property
    def _is_balanced(self) -> bool:
        return self._shape is not None and self._shape.balance

    def _items(self) -> Iterator[Item]:
        self._done = 0
        for file in self.files:
            empty = True
            with open(file.path, "rb") as self._raw:
                for item in self._read(numbered_lines(self._raw, file), file):
                    empty = False
                    yield item
            self._raw = None
            self._done += file.path.stat().st_size
            if empty:
                yield Problem(file.label, "empty file", "the file is empty")

    def _read(self, lines: Lines, file: InputFile) -> Iterator[Item]:
        suffix = _suffix(file.label, file.path)
        if self._shape is not None:
            return shaped(self._shape, lines, file.label, suffix)
        read = json_lines if suffix in JSON_SUFFIXES else _texts
        return map(self._check, read(lines, file.label))

    def _check_suffixes(self) -> None:
        for label, path in self.files:
            if _suffix(label, path) in SHAPED_SUFFIXES:
                raise DataError(
                    f"{label}: a table or tagged text; say what its lines become with shape, such "
                    "as shape: {kind: classification, columns: [text, label], labels: ...}"
                )

    def _check(self, item: Item) -> Item:
        if isinstance(item, Problem):
            return item
        if ANSWER in item.fields and self._takes_records:
            return item
        if not self._needs_text:
            keys = ", ".join(item.fields) or "none"
            return Problem(item.place, "no <ans>", f"record without {ANSWER} (keys: {keys})")
        text = item.fields.get(self._text_field)
        if text is None:
            keys = ", ".join(item.fields) or "none"
            message = f"no text under {self._text_field!r} (keys: {keys})"
            return Problem(item.place, "no text", message)
        if not isinstance(text, str):
            kind = type(text).__name__
            message = f"{self._text_field!r} holds a value of type {kind}; expected text"
            return Problem(item.place, "wrong type", message)
        if not text.strip():
            return Problem(item.place, "empty text", f"{self._text_field!r} holds no text")
        return Document(item.place, {**item.fields, "text": text})


def _suffix(name: str, path: Path | None = None) -> str:
    name = str(path) if path is not None else name
    return Path(name[:-3] if name.endswith(".gz") else name).suffix.lower()


def _texts(lines: Lines, label: str) -> Iterator[Item]:
    text: list[str] = []
    first, size = "", 0
    for item in text_lines(lines, label):
        if isinstance(item, Problem):
            yield item
            continue
        place, line = item
        if line.strip():
            first = first if text else place
            text.append(line)
            size += len(line) + 1
        if text and (size >= _LONGEST_TEXT or not line.strip()):
            yield Document(first, {"text": "\n".join(text)})
            text, size = [], 0
    if text:
        yield Document(first, {"text": "\n".join(text)})
