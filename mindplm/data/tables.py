"""Tables, tab- or comma-separated, as documents whose fields are the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Union

from mindplm.data.chunks import LARGEST_BYTES
from mindplm.data.documents import Document, Item, Lines, Problem, text_lines
from mindplm.errors import DataError

SEPARATORS = {".tsv": "\t", ".csv": ","}
"""Suffix of a file -> what stands between its columns."""

_BROKEN = re.compile("[\udc80-\udcff]")  # how bytes that are not UTF-8 are read
_Cells = Iterator[Union[tuple[str, list[str]], Problem]]


def table_rows(
    lines: Lines, label: str, *, separator: str, columns: Sequence[str] = ()
) -> Iterator[Item]:
    """The rows of a table.

    A tab-separated line is cut at its tabs and nothing in it has a meaning of its own; in a
    comma-separated file texts may be quoted and then hold commas and line feeds.

    Args:
        lines: Lines of the file.
        label: What the file is called in messages.
        separator: A tab or a comma.
        columns: Names of the columns; none: the first line names them.

    Raises:
        DataError: The first line cannot be the names of columns, or the quoting is broken.
    """
    names = list(columns)
    for item in _quoted(lines, label) if separator == "," else _plain(lines, label, separator):
        if isinstance(item, Problem):
            yield item
            continue
        place, values = item
        if not names:
            names = values
            _check_names(names, place)
        elif len(values) != len(names):
            message = f"{len(values)} columns, expected {len(names)}: {', '.join(names)}"
            yield Problem(place, "wrong number of columns", message)
        else:
            yield Document(place, dict(zip(names, values)))


def _plain(lines: Lines, label: str, separator: str) -> _Cells:
    for item in text_lines(lines, label):
        if isinstance(item, Problem):
            yield item
        elif item[1].strip():
            yield item[0], item[1].split(separator)
        else:
            yield Problem(item[0], "empty line", "the line is empty; expected a row")


def _quoted(lines: Lines, label: str) -> _Cells:
    csv.field_size_limit(LARGEST_BYTES)
    start: list[int] = []

    def texts() -> Iterator[str]:
        for number, raw in lines:
            if not start:
                start.append(int(number))
            yield raw.decode("utf-8", "surrogateescape") + ("" if raw.endswith(b"\n") else "\n")

    reader = csv.reader(texts(), strict=True)
    before = 0
    try:
        for values in reader:
            place, before = f"{label}:{start[0] + before}", reader.line_num
            if any(map(_BROKEN.search, values)):
                yield Problem(place, "not UTF-8", "not UTF-8")
            elif values:
                yield place, values
            else:
                yield Problem(place, "empty line", "the line is empty; expected a row")
    except csv.Error as error:
        place = f"{label}:{start[0] + before}"
        raise DataError(f"{place}: not a comma-separated table: {error}") from None


def column_names(lines: Lines, label: str, separator: str) -> list[str]:
    """The names of columns in the first line; none if there is no line."""
    cells = _quoted(lines, label) if separator == "," else _plain(lines, label, separator)
    for item in cells:
        if isinstance(item, Problem):
            return []
        _check_names(item[1], item[0])
        return item[1]
    return []


def _check_names(names: Sequence[str], place: str) -> None:
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError(
            f"{place}: the first line cannot be the names of columns (empty or repeated ones); "
            "name the columns of a file without header: shape.columns"
        )
