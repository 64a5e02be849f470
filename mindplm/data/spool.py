"""Instances on disk, dealt out to buckets at random: how a corpus is mixed that no memory holds.

Which bucket an instance goes to depends on the document that it was made of. Each bucket is small
enough to be shuffled in memory.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mindplm.files import flush_folder

BUCKET_BYTES = 1 << 23
MOST_BUCKETS = 1 << 14
_BUFFER_BYTES = 1 << 24
_HEAD = struct.Struct("<I16sQII?")


class Entry(NamedTuple):
    """One instance in a bucket.

    Attributes:
        key: What it was made of: equal keys, equal documents.
        number: Number of the document.
        source: Number of the source.
        draw: Number of the draw.
        is_record: Whether the document was a record.
        data: The instance, pickled.
    """

    key: bytes
    number: int
    source: int
    draw: int
    is_record: bool
    data: bytes

    def instance(self) -> Any:
        """The instance. Only what this program wrote itself is read in this way."""
        return pickle.loads(self.data)


def key_of(content: bytes) -> bytes:
    """Checksum by which documents are the same."""
    return hashlib.blake2b(content, digest_size=16).digest()


def bucket_of(key: bytes, draw: int, number: int) -> int:
    """The bucket, of `number`, of an instance that a draw made of a document."""
    digest = hashlib.blake2b(key, digest_size=8, salt=draw.to_bytes(4, "little")).digest()
    return int.from_bytes(digest, "little") % number


def packed(entry: Entry) -> bytes:
    """An entry as it stands in a file."""
    key, number, source, draw, is_record, data = entry
    return _HEAD.pack(len(data), key, number, source, draw, is_record) + data


class Buckets:
    """Files that grow at their ends; what is not flushed yet is in memory.

    Args:
        folder: Holds the files.
        sizes: Bytes of each file that count; the rest, of an interrupted run, is cut off.
    """

    def __init__(self, folder: Path, sizes: Mapping[int, int]):
        self._folder = folder
        self._sizes = dict(sizes)
        self._waiting: dict[int, list[bytes]] = {}
        self._bytes = 0
        self._unsynced: set[int] = set()
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            size = self._sizes.get(int(path.name), 0)
            os.truncate(path, size)

    def add(self, bucket: int, data: bytes) -> None:
        """Adds packed entries to a bucket."""
        self._waiting.setdefault(bucket, []).append(data)
        self._bytes += len(data)
        if self._bytes >= _BUFFER_BYTES:
            self._write()

    def flush(self) -> dict[int, int]:
        """Brings everything to the disk; returns the sizes of the files."""
        self._write()
        for bucket in self._unsynced:
            with open(self._folder / str(bucket), "rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        flush_folder(self._folder)
        return self._sizes

    def _write(self) -> None:
        for bucket, parts in self._waiting.items():
            data = b"".join(parts)
            with open(self._folder / str(bucket), "ab") as file:
                file.write(data)
            self._sizes[bucket] = self._sizes.get(bucket, 0) + len(data)
        self._unsynced.update(self._waiting)
        self._waiting, self._bytes = {}, 0


def unpacked(data: bytes, at: int = 0) -> Entry:
    """The entry that begins at a place of packed ones."""
    length, key, number, source, draw, is_record = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    return Entry(key, number, source, draw, is_record, data[at : at + length])


def read_bucket(path: Path) -> Iterator[Entry]:
    """The entries of a bucket in the order in which they were added."""
    data = path.read_bytes() if path.is_file() else b""
    at = 0
    while at < len(data):
        entry = unpacked(data, at)
        yield entry
        at += _HEAD.size + len(entry.data)
