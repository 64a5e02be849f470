"""The zip container of PyTorch files: members stored plainly, found without unpacking anything.

Reading trusts nothing: the directory is parsed here, members must lie apart from each other inside
the file, and compressed or encrypted ones (which PyTorch never writes) are refused, so a file can
never grow while it is read.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from mindplm.errors import CheckpointError

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_MAX_DIRECTORY = 64 << 20
_ALIGNMENT = 64
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member are, and their CRC-32."""

    start: int
    size: int
    crc: int


def read_directory(path: Path) -> dict[str, Member]:
    """Lists the members of a zip file.

    Raises:
        CheckpointError: The file is damaged, or has members that PyTorch would not write.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        try:
            entries, end = _entries(file, size)
            members = {name: _locate(file, name, *entry, end) for name, entry in entries.items()}
        except struct.error:
            raise CheckpointError(f"{path} is damaged: its zip directory is cut") from None
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from None
    spans = sorted((item.start, item.start + item.size) for item in members.values())
    if any(left[1] > right[0] for left, right in zip(spans, spans[1:])):
        raise CheckpointError(f"{path} cannot be read: its zip members overlap")
    return members


def _entries(file: BinaryIO, size: int) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Name -> (place of the local header, size, CRC), and the place of the directory."""
    count, length, start = _directory_place(file, size)
    if length > _MAX_DIRECTORY or start + length > size:
        raise ValueError(f"a zip directory of {length:,} bytes at {start:,} of {size:,}")
    file.seek(start)
    data = file.read(length)
    entries: dict[str, tuple[int, int, int]] = {}
    at = 0
    while at < len(data):
        head = struct.unpack_from("<4s6H3I5H2I", data, at)
        signature, flags, method, crc, packed, plain = (head[i] for i in (0, 3, 4, 7, 8, 9))
        name_len, extra_len, comment_len = head[10:13]
        if signature != _ENTRY:
            raise ValueError("its zip directory is damaged")
        at += 46
        name = data[at : at + name_len].decode("utf-8")
        extra = data[at + name_len : at + name_len + extra_len]
        at += name_len + extra_len + comment_len
        packed, plain, place = _wide(extra, packed, plain, head[16])
        if method != 0 or packed != plain or flags & _ENCRYPTED:
            raise ValueError(f"its member {name[:80]!r} is compressed or encrypted")
        if name in entries:
            raise ValueError(f"its member {name[:80]!r} occurs twice")
        entries[name] = (place, plain, crc)
    if at != len(data) or len(entries) != count:
        raise ValueError(f"its zip directory holds {len(entries)} members instead of {count}")
    return entries, start


def _directory_place(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """(members, bytes, start) of the directory."""
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0:
        raise ValueError("the end of the zip directory is missing; the file is cut or no zip file")
    count, length, start = struct.unpack_from("<HII", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
        file.seek(struct.unpack_from("<Q", tail, at - 12)[0] % (1 << 62))
        wide = file.read(56)
        if wide[:4] != _END64:
            raise ValueError("its zip directory is damaged")
        count, length, start = struct.unpack_from("<QQQ", wide, 32)
    return count, length, start


def _wide(extra: bytes, packed: int, plain: int, place: int) -> tuple[int, int, int]:
    """Replaces numbers that did not fit into 32 bits by those in the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            full = 0xFFFFFFFF
            if sum(value == full for value in (packed, plain, place)) > len(numbers):
                raise ValueError("its zip directory is damaged")
            plain = numbers.pop(0) if plain == full else plain
            packed = numbers.pop(0) if packed == full else packed
            place = numbers.pop(0) if place == full else place
        at += 4 + length
    return packed, plain, place


def _locate(file: BinaryIO, name: str, place: int, size: int, crc: int, end: int) -> Member:
    """Finds the bytes of a member behind its local header."""
    if place + 30 > end:
        raise ValueError(f"its member {name[:80]!r} begins beyond the end")
    file.seek(place)
    head = file.read(30)
    name_len, extra_len = struct.unpack_from("<HH", head, 26)
    if head[:4] != _LOCAL or file.read(name_len) != name.encode():
        raise ValueError(f"its member {name[:80]!r} is damaged")
    start = place + 30 + name_len + extra_len
    if start + size > end:
        raise ValueError(f"its member {name[:80]!r} reaches beyond the end")
    return Member(start, size, crc)


# --- writing --------------------------------------------------------------------------------------

Chunk = Union[bytes, memoryview]


class _Sink(io.RawIOBase):
    """Takes what zipfile writes and hands it on; cannot go back."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Chunk) -> int:  # type: ignore[override]
        self.chunks.append(bytes(data))
        self.size += len(data)
        return len(data)

    def drain(self) -> list[bytes]:
        chunks, self.chunks = self.chunks, []
        return chunks


def zip_chunks(members: Iterable[tuple[str, int, Iterable[Chunk]]]) -> Iterator[bytes]:
    """The bytes of a zip file, part by part, with every member's bytes on a multiple of 64.

    Args:
        members: Name, size and parts of each.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:
        for name, size, parts in members:
            info = zipfile.ZipInfo(name)
            info.file_size = size
            wide = size >= zipfile.ZIP64_LIMIT
            header = 30 + len(name.encode()) + (20 if wide else 0) + 4
            padding = -(sink.size + header) % _ALIGNMENT
            info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with file.open(info, "w", force_zip64=wide) as member:
                for part in parts:
                    member.write(part)
                    yield from sink.drain()
            yield from sink.drain()
    yield from sink.drain()
