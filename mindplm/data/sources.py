"""Sources: the files that a path stands for, and their contents in chunks of bounded size.

A chunk is a piece of a file that one process reads and works on: whole lines of JSON lines, whole
documents of a text file, whole rows of a table, records of a binary data set. `readers` makes
documents of it; those of a source with a shape are made by `shapes` before. What cannot be used
comes out as a `Problem` with its place, so that the caller decides whether to go on.
"""

from __future__ import annotations

import glob
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mindplm.assets import corpus
from mindplm.config import SourceConfig
from mindplm.data import binary, indexed
from mindplm.data.chunks import CHUNK_BYTES, Chunk, chunks_of
from mindplm.data.cpm_bee import ANSWER
from mindplm.data.documents import Document, InputFile, Item, Problem, numbered_lines
from mindplm.data.readers import MADE, documents_of
from mindplm.data.shapes import balanced, label_counts, shaped
from mindplm.data.tables import SEPARATORS, column_names
from mindplm.errors import DataError

__all__ = ["Document", "InputFile", "Item", "Problem", "SourceReader", "find_files"]

EMBEDDED = "embedded:"
KINDS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conll": "tagged",
    ".bio": "tagged",
    indexed.SUFFIX: indexed.KIND,
}
"""Suffix -> what a file holds; tagged tokens need a shape, .idx a .bin beside it."""
PACKED = (".gz", ".zst")
RECORD = "record"
"""Task of a source whose documents are records already."""


def find_files(path: str) -> list[InputFile]:
    """The files that a source's path stands for, sorted.

    Raises:
        DataError: There is none, or one is of a kind that cannot be read.
    """
    if path.startswith(EMBEDDED):
        file = corpus(path[len(EMBEDDED) :])
        return [InputFile(path, file, _kind(file))]
    if binary.is_dataset(path):
        files = [InputFile(path, Path(path), binary.KIND)]
        for part in files[0].parts:
            _check_readable(str(part))
        return files
    if Path(path).is_dir():
        raise DataError(
            f"{path}: is a folder without {binary.META}; name a file, a pattern such as "
            f"{path}/*.jsonl, or the folder of a binary data set"
        )
    names = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
    names = [name for name in names if not Path(name).is_dir()]
    if not names:
        what = "no file matches" if glob.has_magic(path) else "no such file"
        raise DataError(f"{path}: {what}")
    for name in names:
        _check_readable(name)
    return [InputFile(name, Path(name), _kind(Path(name))) for name in names]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    packed = suffix in PACKED
    if packed:
        suffix = Path(path.stem).suffix.lower()
    if suffix not in KINDS or (packed and KINDS[suffix] in ("parquet", indexed.KIND)):
        raise DataError(
            f"{path}: unknown kind of file; expected {', '.join(KINDS)} (or these but .parquet "
            f"and .idx with {' or '.join(PACKED)})"
        )
    return KINDS[suffix]


def _check_readable(name: str) -> None:
    if not os.path.exists(name):
        raise DataError(f"{name}: no such file")
    if not os.access(name, os.R_OK):
        raise DataError(f"{name}: cannot be read: permission denied")


@dataclass(frozen=True)
class Wanted:
    """What the documents of a source must be.

    Attributes:
        text_field: Key of the text.
        needs_text: Whether texts are wanted.
        takes_records: Whether documents with an answer are taken as they are.
        changed: Whether a transform makes records of them: then any object will do.
        shaped: Whether they are records already, by a shape.
        tokens: Whether they are sentences of ids.
    """

    text_field: str
    needs_text: bool
    takes_records: bool
    changed: bool
    shaped: bool
    tokens: bool = False

    @classmethod
    def of(cls, source: SourceConfig) -> Wanted:
        """What a source says."""
        # Without tasks it is texts that are wanted, whatever will be made of them.
        texts = not source.tasks or any(w > 0 for t, w in source.tasks.items() if t != RECORD)
        records = source.tasks.get(RECORD, 0) > 0
        changed, shaped = source.transforms is not None, source.shape is not None
        tokens = indexed.is_indexed(source.path)
        return cls(source.text_field, texts, records, changed, shaped, tokens)

    def check(self, item: Item) -> Item:
        """The document with its text under "text", or why it cannot be used."""
        if isinstance(item, Problem) or self.changed or self.shaped or self.tokens:
            return item
        if ANSWER in item.fields and self.takes_records:
            return item
        keys = ", ".join(map(str, item.fields)) or "none"
        if not self.needs_text:
            return Problem(item.place, "no <ans>", f"record without {ANSWER} (keys: {keys})")
        text = item.fields.get(self.text_field)
        if text is None:
            message = f"no text under {self.text_field!r} (keys: {keys})"
            return Problem(item.place, "no text", message)
        if not isinstance(text, str):
            kind = type(text).__name__
            message = f"{self.text_field!r} holds a value of type {kind}; expected text"
            return Problem(item.place, "wrong type", message)
        if not text.strip():
            return Problem(item.place, "empty text", f"{self.text_field!r} holds no text")
        return Document(item.place, {**item.fields, "text": text})


class SourceReader:
    """The chunks and documents of one source, file by file.

    Attributes:
        files: The files of the source.
        wanted: What its documents must be.

    Raises:
        DataError: A file that cannot be read, or a table without the columns that are wanted.
    """

    def __init__(self, source: SourceConfig):
        self.files = find_files(source.path)
        self.wanted = Wanted.of(source)
        self._shape = source.shape
        self._columns: dict[int, tuple[str, ...]] = {}
        if self._shape is None:
            for number, file in enumerate(self.files):
                self._check_kind(number, file)
        balance = self._shape is not None and self._shape.balance
        items = (item for file in self.files for item in self._shaped(file))
        self._counts = label_counts(items) if balance else {}

    @property
    def total_bytes(self) -> int:
        """Size of the files."""
        return sum(file.num_bytes for file in self.files) or 1

    @property
    def max_weight(self) -> float:
        """Largest weight of a document."""
        counts = self._counts.values()
        return max(counts) / min(counts) if counts else 1.0

    def chunks(self, first_file: int = 0) -> Iterator[Chunk]:
        """The chunks of the files from one on; an empty file has one without data."""
        for number, file in enumerate(self.files[first_file:], start=first_file):
            if self._shape is not None:
                yield from self._shaped_chunks(number, file)
                continue
            for chunk in chunks_of(number, file.label, file.path, file.kind):
                names = self._columns.get(number, ()) if chunk.first > 1 else ()
                yield replace(chunk, header=names) if names else chunk

    def documents(self, chunk: Chunk) -> Iterator[tuple[int, Item]]:
        """The documents and problems of a chunk with their numbers in the source."""
        for number, item in documents_of(chunk):
            yield (chunk.file << 40) + number, self.wanted.check(item)

    def __iter__(self) -> Iterator[Item]:
        """All documents and problems."""
        for chunk in self.chunks():
            yield from (item for _, item in self.documents(chunk))

    def _check_kind(self, number: int, file: InputFile) -> None:
        """Refuses what only a shape makes sense of."""
        table = f".{file.kind}" in SEPARATORS
        if table:
            with open(file.path, "rb") as raw:
                lines = numbered_lines(raw, file)
                names = column_names(lines, file.label, SEPARATORS[f".{file.kind}"])
            self._columns[number] = tuple(names)
            wanted = {ANSWER, self.wanted.text_field}
            table = bool(names) and not self.wanted.changed and not wanted & set(names)
        if table or file.kind == "tagged":
            raise DataError(
                f"{file.label}: a table without a column {self.wanted.text_field!r}, or tagged "
                "text; say what its lines become with shape, such as shape: {kind: "
                "classification, columns: [text, label], labels: ...}"
            )

    def _shaped(self, file: InputFile) -> Iterator[Item]:
        assert self._shape is not None
        suffix = Path(file.path.stem if file.path.suffix in PACKED else file.path).suffix.lower()
        with open(file.path, "rb") as raw:
            yield from shaped(self._shape, numbered_lines(raw, file), file.label, suffix)

    def _shaped_chunks(self, number: int, file: InputFile) -> Iterator[Chunk]:
        """Chunks of the records that a shape makes, weighted if labels are balanced."""
        items: list[Item] = []
        first, size = 1, 0
        found = self._shaped(file)
        for item in balanced(found, self._counts) if self._counts else found:
            items.append(item)
            size += 200 + (len(str(item.fields)) if isinstance(item, Document) else 0)
            if size >= CHUNK_BYTES:
                yield _made(number, file, first, items, 0)
                first += len(items)
                items, size = [], 0
        if items or first == 1:
            yield _made(number, file, first, items, file.num_bytes)


def _made(number: int, file: InputFile, first: int, items: list[Item], read: int) -> Chunk:
    data = pickle.dumps(items) if items else b""
    return Chunk(number, file.label, MADE, first, read, file.path, data=data)
