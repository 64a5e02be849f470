"""Files cut into chunks of bounded size, at places where documents end; packed ones are unpacked.

What is read does not grow with a file: chunks of plain files are only places in them, which the
process that works on a chunk reads by itself.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mindplm.data import binary, indexed
from mindplm.errors import DataError

CHUNK_BYTES = 1 << 18
LARGEST_BYTES = 1 << 26
"""A line, or a document of a text file, is not longer than this."""
_TEXT_BYTES = 1 << 20
_BLANK = re.compile(rb"\n[ \t\r\f\v]*\n")
BOM = b"\xef\xbb\xbf"
"""What some programs put before UTF-8."""
_PACKED_BYTES = 1 << 15
_OPENING = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*|(?=\]))")


@dataclass(frozen=True)
class Chunk:
    """A piece of a file.

    Attributes:
        file: Number of the file in its source.
        label: What the file is called in messages.
        kind: json lines, text, csv, tsv, items, binary, indexed, documents.
        first: Number of its first line, record or item in the file, from 1 on.
        read_bytes: Bytes of the file that were read for it, to show progress.
        path: The file (for a binary data set, one of its files).
        start: Where it begins in the file; of an indexed one, its first document from 0 on.
        end: Where it ends.
        data: Its contents, if they were unpacked; else they are read from the file.
        header: Names of the columns of a table.
        source: Number of the source; set by who spreads the work.
        part: Only the documents at random places from one bound on to below another are drawn
            from, and the number of that draw; None: all, as often as the source says.
    """

    file: int
    label: str
    kind: str
    first: int
    read_bytes: int
    path: Path
    start: int = 0
    end: int = 0
    data: bytes | None = field(default=None, repr=False)
    header: tuple[str, ...] = ()
    source: int = 0
    part: tuple[float, float, int] | None = None

    def content(self) -> bytes:
        """The bytes of the chunk."""
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as content:
            content.seek(self.start)
            return content.read(self.end - self.start)


def chunks_of(number: int, label: str, path: Path, kind: str) -> Iterator[Chunk]:
    """The chunks of a file.

    Args:
        number: Number of the file in its source.
        label: What it is called in messages.
        path: The file, or the folder of a binary data set.
        kind: One of the kinds of `sources`.

    Raises:
        DataError: It is damaged, or what it is packed with is not installed.
    """
    if kind == binary.KIND:
        yield from _binary_chunks(number, label, path)
        return
    if kind == indexed.KIND:
        yield from _sentence_chunks(number, label, path)
        return
    if kind == "parquet":
        yield from _item_chunks(number, label, path, _parquet(path))
        return
    with open(path, "rb") as raw:
        content = _unpacked(raw, label, path)
        if kind == "json":
            if content.first_character() == b"[":
                yield from _item_chunks(number, label, path, _array(content, label), raw)
                return
            kind = "json lines"
        yield from _line_chunks(number, label, path, kind, content)


def _line_chunks(
    number: int, label: str, path: Path, kind: str, content: _Plain
) -> Iterator[Chunk]:
    cut = {"text": _text_cut, "csv": _table_cut}.get(kind, _line_cut)
    line, start, told = 1, 0, 0
    for data in _pieces(content, cut, label):
        end = start + len(data)
        step, told = content.position - told, content.position
        own = None if type(content) is _Plain else data
        yield Chunk(number, label, kind, line, step, path, start, end, own)
        start = end
        line += data.count(b"\n")
    if start == 0:
        yield Chunk(number, label, kind, 1, 0, path, data=b"")


def _sentence_chunks(number: int, label: str, path: Path) -> Iterator[Chunk]:
    found = indexed.IndexedDataset(path)
    first = size = 0
    for document in range(found.num_documents):
        own = slice(*found.document_starts[document : document + 2].tolist())
        size += int(found.sizes[own].sum()) * found.dtype.itemsize
        last = document == found.num_documents - 1
        if size >= CHUNK_BYTES or last:
            yield Chunk(number, label, indexed.KIND, first + 1, size, path, first, document + 1)
            first, size = document + 1, 0


def line_pieces(raw: IO[bytes], label: str, path: Path) -> Iterator[bytes]:
    """The contents of an open file in pieces of whole lines."""
    yield from _pieces(_unpacked(raw, label, path), _line_cut, label)


# --- places to cut --------------------------------------------------------------------------------


def _pieces(content: _Plain, cut: Callable[[bytes, bool], int], label: str) -> Iterator[bytes]:
    """Parts of a file that end where `cut` allows."""
    rest = b""
    while True:
        more = content.read(CHUNK_BYTES)
        data = rest + more
        if not more:
            if data:
                yield data
            return
        at = cut(data, len(data) >= _TEXT_BYTES)
        if at == 0 and len(data) > LARGEST_BYTES:
            raise DataError(
                f"{label}: no place to cut within {LARGEST_BYTES >> 20} MB; is it a file of lines?"
            )
        if at:
            yield data[:at]
        rest = data[at:]


def _line_cut(data: bytes, _long: bool) -> int:
    return data.rfind(b"\n") + 1


def _text_cut(data: bytes, long: bool) -> int:
    """After the last empty line; in a long text after the last line."""
    end = len(data)
    while (at := data.rfind(b"\n", 0, end)) >= 0:
        before = data.rfind(b"\n", 0, at)
        if before >= 0 and _BLANK.fullmatch(data, before, at + 1):
            return at + 1
        end = at
    return data.rfind(b"\n") + 1 if long else 0


def _table_cut(data: bytes, _long: bool) -> int:
    """After the last line that does not end inside quotes."""
    at = len(data)
    while (at := data.rfind(b"\n", 0, at)) >= 0:
        if data.count(b'"', 0, at) % 2 == 0:
            return at + 1
    return 0


# --- packed files ---------------------------------------------------------------------------------


class _Plain:
    """A file as it is."""

    def __init__(self, raw: IO[bytes], label: str):
        self._raw, self._label = raw, label
        self._head = b""

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        return self._raw.tell() - len(self._head)

    def read(self, size: int) -> bytes:
        """About so many bytes; none at the end."""
        head, self._head = self._head, b""
        return head or self._raw.read(size)

    def first_character(self) -> bytes:
        """The first character that is no space; the position stays."""
        self._head = head = self.read(CHUNK_BYTES)
        return head[len(BOM) * head.startswith(BOM) :].lstrip()[:1]


class _Gzip(_Plain):
    """The contents of a .gz file."""

    def __init__(self, raw: IO[bytes], label: str):
        super().__init__(raw, label)
        self._content = gzip.GzipFile(fileobj=raw)
        self._lines = 0

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        try:
            data = head or self._more(size)
        except self.errors() as error:
            raise DataError(
                f"{self._label}:{self._lines + 1}: damaged or cut-off "
                f"{type(self).__name__[1:].lower()} file: {error}"
            ) from None
        self._lines += 0 if head else data.count(b"\n")
        return data

    def _more(self, size: int) -> bytes:
        return self._content.read(size)

    def errors(self) -> tuple[type[Exception], ...]:
        """What damage raises."""
        return (EOFError, gzip.BadGzipFile, zlib.error)


class _Zstd(_Gzip):
    """The contents of a .zst file; one that ends inside a frame is refused."""

    def __init__(self, raw: IO[bytes], label: str):
        _Plain.__init__(self, raw, label)
        self._package = _optional("zstandard", "zstd", label)
        self._frame: Any = None
        self._rest = b""
        self._lines = 0

    def _more(self, size: int) -> bytes:
        while True:
            packed = self._rest or self._raw.read(_PACKED_BYTES)
            self._rest = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends too early")
                return b""
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor().decompressobj()
            data = self._frame.decompress(packed)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
            if data:
                return data

    def errors(self) -> tuple[type[Exception], ...]:
        return (EOFError, self._package.ZstdError)


def _unpacked(raw: IO[bytes], label: str, path: Path) -> _Plain:
    """The contents of a file whose name may end in .gz or .zst."""
    kinds = {".gz": _Gzip, ".zst": _Zstd}
    return kinds.get(path.suffix.lower(), _Plain)(raw, label)


def _optional(module: str, extra: str, label: str) -> Any:
    """Imports a package that only some files need."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise DataError(
            f"{label}: needs the package {module.split('.')[0]}; install it with "
            f"pip install 'mindplm[{extra}]'"
        ) from None


# --- items: JSON arrays and Parquet ---------------------------------------------------------------


def _item_chunks(
    number: int, label: str, path: Path, items: Iterator[str], raw: IO[bytes] | None = None
) -> Iterator[Chunk]:
    """Chunks of JSON values, one on a line."""
    lines: list[str] = []
    size, first, told = 0, 1, 0
    total = path.stat().st_size
    for item in items:
        lines.append(item)
        size += len(item)
        if size >= CHUNK_BYTES:
            step, told = (raw.tell() - told, raw.tell()) if raw else (0, 0)
            data = "\n".join(lines).encode("utf-8", "surrogatepass")
            yield Chunk(number, label, "items", first, step, path, data=data)
            first += len(lines)
            lines, size = [], 0
    if lines or first == 1:
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        yield Chunk(number, label, "items", first, total - told, path, data=data)


def _array(content: _Plain, label: str) -> Iterator[str]:
    """The values of a JSON array, one after the other, as text without line breaks."""
    decoder = json.JSONDecoder()
    text, pending, count = "", b"", 0
    skip = _OPENING
    while True:
        more = content.read(CHUNK_BYTES)
        pending += more
        good = _whole_characters(pending) if more else len(pending)
        try:
            text += pending[:good].decode("utf-8" if count else "utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{label}: not UTF-8 after item {count}") from None
        pending, at = pending[good:], 0
        while True:
            begin = skip.match(text, at)
            if begin is None and text[at:].strip():
                raise DataError(f"{label}: broken JSON after item {count}: no comma follows it")
            if begin is None or begin.end() == len(text):
                break
            if text[begin.end()] == "]":
                return
            try:
                value, at = decoder.raw_decode(text, begin.end())
            except ValueError as error:
                if not more or len(text) - at > LARGEST_BYTES:
                    raise DataError(f"{label}: broken JSON after item {count}: {error}") from None
                break
            yield json.dumps(value, ensure_ascii=False)
            count += 1
            skip = _BETWEEN
        text = text[at:]
        if not more:
            raise DataError(f"{label}: broken JSON after item {count}: the array does not end")


def _whole_characters(data: bytes) -> int:
    """The length of the part that ends with a whole UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:  # the beginning of the last character
            width = 1 + sum(data[-back] >= limit for limit in (0xC0, 0xE0, 0xF0))
            return len(data) if width <= back else len(data) - back
    return len(data)


def _parquet(path: Path) -> Iterator[str]:
    parquet = _optional("pyarrow.parquet", "parquet", str(path))
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield json.dumps(row, ensure_ascii=False, default=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged Parquet file: {' '.join(str(error).split())}") from None


# --- binary data sets -----------------------------------------------------------------------------


def _binary_chunks(number: int, label: str, folder: Path) -> Iterator[Chunk]:
    """Some records of a block each; `first` counts the records of the data set."""
    first = 1
    for file in binary.read_meta(folder):
        if file.mask:
            continue
        for block in range(file.block_begin, file.block_end):
            place = f"{label}, block {block}"
            base = (block - file.block_begin) * file.block_size
            start = offset = count = 0
            data = binary.block_of(folder, file, block)
            for _, offset in binary.records_of(data, 0, place):
                count += 1
                if offset - start >= CHUNK_BYTES:
                    yield Chunk(number, label, binary.KIND, first, offset - start,
                                folder / file.file_name, base + start, base + offset)  # fmt: skip
                    first, start, count = first + count, offset, 0
            yield Chunk(number, label, binary.KIND, first, file.block_size - start,
                        folder / file.file_name, base + start, base + offset)  # fmt: skip
            first += count
