"""Chunks of files to documents: JSON lines, plain text, tables, records of binary data sets.

In a text file an empty line ends a document. Everywhere else a line, row or record is a document:
an object with a text under some key, or a record. What cannot be used is a `Problem`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

from mindplm.data import binary, indexed
from mindplm.data.chunks import BOM, Chunk
from mindplm.data.documents import Document, Item, Problem, json_lines, split_lines, text_lines
from mindplm.data.tables import SEPARATORS, table_rows
from mindplm.errors import DataError

MADE = "documents"
"""Kind of a chunk whose documents are made already."""
_LONGEST_TEXT = 200_000


def documents_of(chunk: Chunk) -> Iterator[tuple[int, Item]]:
    """The documents and problems of a chunk, with numbers that no other of the file has."""
    if chunk.kind == indexed.KIND:
        yield from _sentences(chunk)
        return
    data = chunk.content()
    if not data and chunk.first == 1 and chunk.kind != binary.KIND:
        yield 0, Problem(chunk.label, "empty file", "the file is empty")
        return
    if chunk.kind == MADE:  # pickled by this program itself
        yield from enumerate(pickle.loads(data), start=chunk.first)
        return
    if chunk.kind == binary.KIND:
        yield from _records(chunk, data)
        return
    if chunk.first == 1 and data.startswith(BOM):
        data = data[len(BOM) :]
    lines = enumerate(split_lines(data), start=chunk.first)
    if chunk.kind == "text":
        yield from _texts(chunk, lines)
    elif f".{chunk.kind}" in SEPARATORS:
        rows = table_rows(
            lines, chunk.label, separator=SEPARATORS[f".{chunk.kind}"], columns=chunk.header
        )
        yield from enumerate(rows, start=chunk.first)
    elif chunk.kind == "items":
        items = ((f"item {number}", line) for number, line in lines)
        yield from enumerate(json_lines(items, chunk.label), start=chunk.first)
    else:
        yield from enumerate(json_lines(lines, chunk.label), start=chunk.first)


def _texts(chunk: Chunk, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, Item]]:
    text: list[str] = []
    first = size = 0
    for number, item in enumerate(text_lines(lines, chunk.label), start=chunk.first):
        if isinstance(item, Problem):
            yield number, item
            continue
        line = item[1]
        if line.strip():
            first = first if text else number
            text.append(line)
            size += len(line) + 1
        if text and (size >= _LONGEST_TEXT or not line.strip()):
            yield first, Document(f"{chunk.label}:{first}", {"text": "\n".join(text)})
            text, size = [], 0
    if text:
        yield first, Document(f"{chunk.label}:{first}", {"text": "\n".join(text)})


def _sentences(chunk: Chunk) -> Iterator[tuple[int, Item]]:
    found = indexed.IndexedDataset(chunk.path)
    for number in range(chunk.start, chunk.end):
        place = f"{chunk.label}:document {number + 1}"
        sentences = [ids.tolist() for ids in found.document(number) if len(ids)]
        if sentences:
            yield number, Document(place, {indexed.SENTENCES: sentences})
        else:
            yield number, Problem(place, "empty document", "the document has no tokens")


def _records(chunk: Chunk, data: bytes) -> Iterator[tuple[int, Item]]:
    # The zero that ends a block stands for what follows the records of this chunk.
    for number, (payload, _) in enumerate(binary.records_of(data + b"\0"), start=chunk.first):
        place = f"{chunk.label}:record {number}"
        try:
            value = binary.load(payload, place)
        except DataError as error:
            message = str(error)[len(place) + 2 :]
            yield number, Problem(place, "broken record", message)
            continue
        if isinstance(value, str):
            value = {"text": value}
        if isinstance(value, dict):
            yield number, Document(place, value)
        else:
            kind = type(value).__name__
            message = f"the record is a value of type {kind}; expected an object"
            yield number, Problem(place, "wrong type", message)
