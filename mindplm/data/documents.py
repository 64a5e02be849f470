"""What readers of files give: documents, and problems in the place of what cannot be used."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Union

from mindplm.errors import DataError

Lines = Iterable[tuple[int, bytes]]
"""Numbered lines of a file, with their ends."""


class InputFile(NamedTuple):
    """A file and what it is called in messages."""

    label: str
    path: Path


@dataclass(frozen=True)
class Document:
    """One document: `place` is file:line of its beginning.

    Attributes:
        fields: A text with what belongs to it, a record, or a row of a table.
        label: Its class, where there are classes.
        weight: How often it is used, relative to the others of its source.
        candidates: Values of `<ans>` to choose from.
        references: Accepted answers: one of the candidates; or plain texts, or (type, text) pairs.
    """

    place: str
    fields: dict[str, Any]
    label: str = ""
    weight: float = 1.0
    candidates: tuple[Any, ...] = ()
    references: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Why a piece of input cannot be used: a short reason to count by and a full message."""

    place: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


Item = Union[Document, Problem]


def numbered_lines(raw: IO[bytes], file: InputFile) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, unzipped, without the byte order mark."""
    number = 0
    content: Any = gzip.GzipFile(fileobj=raw) if file.path.suffix == ".gz" else raw
    try:
        for number, line in enumerate(content, start=1):
            yield number, line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        place = f"{file.label}:{number + 1}"
        raise DataError(f"{place}: damaged or cut-off gzip file: {error}") from None


def text_lines(lines: Lines, label: str) -> Iterator[tuple[str, str] | Problem]:
    """(place, text without line end) of each line."""
    for number, raw in lines:
        place = f"{label}:{number}"
        try:
            yield place, raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Problem(place, "not UTF-8", f"not UTF-8 (byte {error.start} of the line)")


def json_lines(lines: Lines, label: str) -> Iterator[Item]:
    """The objects of JSON lines."""
    for item in text_lines(lines, label):
        if isinstance(item, Problem):
            yield item
            continue
        place, text = item
        if not text.strip():
            yield Problem(place, "empty line", "the line is empty; expected a JSON object")
            continue
        try:
            value = json.loads(text)
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
