"""Documents from files: plain text and JSON lines, both also gzipped, and the embedded corpora.

In a text file a blank line ends a document. In JSON lines each line is a document: an object with
a text under some key, or a record. What cannot be used comes out as a `Problem` with its place,
so that the caller decides whether to go on.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Union

from mindplm.assets import corpus
from mindplm.config import SourceConfig
from mindplm.errors import DataError

EMBEDDED = "embedded:"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md")
RECORD = "record"
"""Task of a source whose lines are records already."""
ANSWER = "<ans>"
_LONGEST_TEXT = 200_000


class InputFile(NamedTuple):
    """A file and what it is called in messages."""

    label: str
    path: Path


@dataclass(frozen=True)
class Document:
    """One document: `place` is file:line of its beginning."""

    place: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a piece of input cannot be used: a short reason to count by and a full message."""

    place: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


Item = Union[Document, Problem]


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
        if _suffix(name) not in JSON_SUFFIXES + TEXT_SUFFIXES:
            known = ", ".join(JSON_SUFFIXES + TEXT_SUFFIXES)
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

    def rewind(self) -> None:
        """Forgets the position; the next iteration starts at the beginning in any case."""
        self._done = 0

    def __iter__(self) -> Iterator[Item]:
        self._done = 0
        for file in self.files:
            read = _json_lines if _suffix(file.label, file.path) in JSON_SUFFIXES else _texts
            empty = True
            with open(file.path, "rb") as self._raw:
                for item in read(_lines(self._raw, file), file.label):
                    empty = False
                    yield self._check(item)
            self._raw = None
            self._done += file.path.stat().st_size
            if empty:
                yield Problem(file.label, "empty file", "the file is empty")

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


def _lines(raw: IO[bytes], file: InputFile) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, without the byte order mark."""
    number = 0
    content: Any = gzip.GzipFile(fileobj=raw) if file.path.suffix == ".gz" else raw
    try:
        for number, line in enumerate(content, start=1):
            yield number, line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        place = f"{file.label}:{number + 1}"
        raise DataError(f"{place}: damaged or cut-off gzip file: {error}") from None


def _json_lines(lines: Iterator[tuple[int, bytes]], label: str) -> Iterator[Item]:
    for number, raw in lines:
        place = f"{label}:{number}"
        if not raw.strip():
            yield Problem(place, "empty line", "the line is empty; expected a JSON object")
            continue
        try:
            value = json.loads(raw.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            yield Problem(place, "not UTF-8", f"not UTF-8 (byte {error.start} of the line)")
        except json.JSONDecodeError as error:
            message = f"broken JSON at column {error.colno}: {error.msg}"
            yield Problem(place, "broken JSON", message)
        except (RecursionError, ValueError) as error:
            yield Problem(place, "broken JSON", f"JSON that cannot be read: {error}")
        else:
            if isinstance(value, dict):
                yield Document(place, value)
            else:
                kind = type(value).__name__
                message = f"the line holds a value of type {kind}; expected an object"
                yield Problem(place, "wrong type", message)


def _texts(lines: Iterator[tuple[int, bytes]], label: str) -> Iterator[Item]:
    text: list[str] = []
    first = size = 0
    for number, raw in lines:
        place = f"{label}:{number}"
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Problem(place, "not UTF-8", f"not UTF-8 (byte {error.start} of the line)")
            continue
        if line.strip():
            first = first if text else number
            text.append(line)
            size += len(line) + 1
        if text and (size >= _LONGEST_TEXT or not line.strip()):
            yield Document(f"{label}:{first}", {"text": "\n".join(text)})
            text, size = [], 0
    if text:
        yield Document(f"{label}:{first}", {"text": "\n".join(text)})
