"""Tables, tab- or comma-separated, as documents whose fields are the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Union

from mindplm.data.documents import Document, Item, Lines, Problem, text_lines
from mindplm.errors import DataError

SEPARATORS = {".tsv": "\t", ".csv": ","}
"""Suffix of a file -> what stands between its columns."""

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
    first = 1
    reader = csv.reader((raw.decode("utf-8") for _, raw in lines), strict=True)
    try:
        for values in reader:
            place, first = f"{label}:{first}", reader.line_num + 1
            if values:
                yield place, values
            else:
                yield Problem(place, "empty line", "the line is empty; expected a row")
    except UnicodeDecodeError:
        raise DataError(f"{label}:{first}: not UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{label}:{first}: not a comma-separated table: {error}") from None


def _check_names(names: Sequence[str], place: str) -> None:
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError(
            f"{place}: the first line cannot be the names of columns (empty or repeated ones); "
            "name the columns of a file without header: shape.columns"
        )
