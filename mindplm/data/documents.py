"""What readers of files give: documents, and problems in the place of what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Union

from mindplm.data import binary, indexed
from mindplm.data.chunks import BOM, line_pieces
from mindplm.data.cpm_bee import ANSWER

Lines = Iterable[tuple[Union[int, str], bytes]]
"""Lines of a file, with their ends, and what they are called: their numbers, or such as item 3."""


class InputFile(NamedTuple):
    """A file (or the folder of a binary data set), what it is called, and what it holds."""

    label: str
    path: Path
    kind: str = ""

    @property
    def parts(self) -> list[Path]:
        """The files on disk."""
        if self.kind == indexed.KIND:
            return list(indexed.files_of(self.path))
        if self.kind != binary.KIND:
            return [self.path]
        names = [file.file_name for file in binary.read_meta(self.path) if not file.mask]
        return [self.path / binary.META, *(self.path / name for name in names)]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.stat().st_size for part in self.parts)


@dataclass(frozen=True)
class Document:
    """One document: `place` is file:line of its beginning.

    Attributes:
        fields: A text with what belongs to it, a record, or a row of a table.
        label: Its class, where there are classes.
        weight: How often it is used, relative to the others of its source.
        candidates: Values to choose from.
        slot: The key that they are values of.
        references: Accepted answers: one of the candidates; or plain texts, or (type, text) pairs.
        tagged: Tokens with their tags, of a tagged sentence.
        start: Where the first reference begins in the text, if the file says so; else -1.
    """

    place: str
    fields: dict[str, Any]
    label: str = ""
    weight: float = 1.0
    candidates: tuple[Any, ...] = ()
    slot: str = ANSWER
    references: tuple[Any, ...] = ()
    tagged: tuple[tuple[str, str], ...] = ()
    start: int = -1


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
    """Numbered lines of a file, unpacked, without the byte order mark."""
    number = 1
    for piece in line_pieces(raw, file.label, file.path):
        lines = split_lines(piece[len(BOM) :] if number == 1 and piece.startswith(BOM) else piece)
        yield from enumerate(lines, start=number)
        number += len(lines)


def split_lines(data: bytes) -> list[bytes]:
    """The lines of a piece of a file; other line ends than a line feed do not count."""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


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
