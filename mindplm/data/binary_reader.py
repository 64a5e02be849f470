"""Reads and rearranges binary data sets as the original does, its random streams included.

Blocks are taken from the end of a list, which is shuffled at the start and at each new pass by
Python's generator `random`; the records of a block come in order.
"""

from __future__ import annotations

import json
import random
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mindplm.data.binary import (
    BLOCK_BYTES,
    META,
    DatasetWriter,
    FileMeta,
    block_of,
    load,
    read_meta,
    records_of,
    write_meta,
)
from mindplm.errors import DataError

_BUCKET_BYTES = 1 << 30


class DatasetReader:
    """One rank's share of a data set, read again and again.

    Rank r of w has the blocks whose number is r modulo w.

    Args:
        folder: The data set.
        rank: Number of this process.
        world: Number of processes.
        shuffle: Shuffle the blocks of each pass with `random`.
        passes: After so many, `read` raises EOFError; None: never.
        raw: Give the bytes of records instead of their values.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        passes: int | None = None,
        raw: bool = False,
    ):
        self.folder = Path(folder)
        self._rank, self._world = rank, world
        self._shuffle, self._passes, self._raw = shuffle, passes, raw
        self._files: list[FileMeta] = []
        self._seen_ns = -1
        self._unused: list[int] = []
        self._block = -1
        self._offset = 0
        self._data = b""
        self._epoch = 0
        self._look()
        self._begin_pass()

    def __len__(self) -> int:
        """Records of all ranks together."""
        return sum(file.nlines for file in self._files if not file.mask)

    @property
    def nbytes(self) -> int:
        """Bytes of all records and their lengths."""
        return sum(file.nbytes for file in self._files if not file.mask)

    def read(self) -> Any:
        """The next record.

        Raises:
            EOFError: The last pass is over.
            DataError: A file is gone or damaged.
        """
        while True:
            if self._block < 0:
                self._next_block()
            found = next(records_of(self._data, self._offset, self._place()), None)
            if found is not None:
                payload, self._offset = found
                return payload if self._raw else load(payload, self._place())
            self._block, self._offset = -1, 0

    def __iter__(self) -> Iterator[Any]:
        """The records of one pass, from the next on."""
        try:
            while True:
                yield self.read()
        except EOFError:
            self._epoch = 0
            self._begin_pass()

    def state(self) -> dict[str, list[int]]:
        """What `load_state` goes on from."""
        block = [self._block, self._offset, len(self._unused), self._epoch]
        return {"states": list(self._unused), "block": block}

    def load_state(self, states: Sequence[Mapping[str, Sequence[int]]]) -> None:
        """Goes on from the states of all ranks, in their order.

        With another number of ranks the blocks that no rank had begun are dealt out anew, and the
        rest of those that were begun is not read in this pass.
        """
        if len(states) == self._world:
            own = states[self._rank]
            self._unused = list(own["states"])
            self._block, self._offset, _, self._epoch = own["block"]
            if self._block >= 0:
                self._data = block_of(self.folder, self._file_of(self._block), self._block)
            return
        pool = sorted({block for state in states for block in state["states"]})
        self._unused = [block for block in pool if block % self._world == self._rank]
        self._epoch = max(state["block"][3] for state in states)
        self._block, self._offset = -1, 0
        if self._shuffle:
            random.shuffle(self._unused)

    def _next_block(self) -> None:
        if self._look():
            used = {b for f in self._files for b in self._blocks(f)}
            self._unused = [b for b in self._unused if b in used]
        if not self._unused:
            self._begin_pass()
        self._block, self._offset = self._unused.pop(), 0
        self._data = block_of(self.folder, self._file_of(self._block), self._block)

    def _begin_pass(self) -> None:
        if self._passes is not None and self._epoch >= self._passes:
            raise EOFError(f"{self.folder}: all of {self._passes} pass(es) were read")
        self._epoch += 1
        self._unused = [block for file in self._files for block in self._blocks(file)]
        if not self._unused:
            raise DataError(f"{self.folder}: no blocks for rank {self._rank} of {self._world}")
        if self._shuffle:
            random.shuffle(self._unused)

    def _blocks(self, file: FileMeta) -> list[int]:
        if file.mask:
            return []
        numbers = range(file.block_begin, file.block_end)
        return [block for block in numbers if block % self._world == self._rank]

    def _look(self) -> bool:
        """Takes in files that were added; whether meta.bin changed since it was read."""
        path = self.folder / META
        time_ns = path.stat().st_mtime_ns if path.is_file() else 0
        if time_ns <= self._seen_ns:
            return False
        files = read_meta(self.folder)
        same = [_unmasked(file) for file in files[: len(self._files)]]
        if same != [_unmasked(file) for file in self._files]:
            raise DataError(f"{path}: was changed while it is read; files may only be added")
        added = files[len(self._files) :]
        again = self._seen_ns >= 0
        self._seen_ns, self._files = time_ns, files
        if again:
            self._unused += [block for file in added for block in self._blocks(file)]
            if self._shuffle:
                random.shuffle(self._unused)
        return again

    def _file_of(self, block: int) -> FileMeta:
        for file in self._files:
            if file.block_begin <= block < file.block_end:
                return file
        raise DataError(f"{self.folder}: has no block {block}")

    def _place(self) -> str:
        return f"{self.folder}, block {self._block}"


def _unmasked(file: FileMeta) -> str:
    return json.dumps([file.file_name, file.block_begin, file.block_end, file.block_size])


def shuffle_dataset(
    source: str | Path,
    target: str | Path,
    name: str,
    *,
    block_bytes: int = BLOCK_BYTES,
    bucket_bytes: int = _BUCKET_BYTES,
) -> None:
    """Writes the records of a data set into a file of another one, in random order.

    Each record goes to a random bucket on disk, then each bucket is shuffled in memory. All
    randomness is that of Python's `random`, drawn in the original's order.

    Args:
        source: The data set.
        target: The other one.
        name: Name of the new file in it.
        block_bytes: Size of its blocks.
        bucket_bytes: Bytes that fit into memory.
    """
    reader = DatasetReader(source, passes=1, raw=True)
    num = max(1, -(-reader.nbytes // bucket_bytes))
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder, ExitStack() as stack:
        names = ["".join(random.choices(string.ascii_uppercase, k=8)) for _ in range(num)]
        largest = max(file.block_size for file in read_meta(source))
        buckets = [
            stack.enter_context(
                DatasetWriter(Path(folder) / bucket, "data", block_bytes=largest, payload="raw")
            )
            for bucket in names
        ]
        try:
            while True:
                record = reader.read()
                buckets[int(random.random() * num)].write(record)
        except EOFError:
            stack.close()
        with DatasetWriter(target, name, block_bytes=block_bytes, payload="raw") as writer:
            for bucket in names:
                records = list(_in_order(Path(folder) / bucket))
                random.shuffle(records)
                for record in records:
                    writer.write(record)


def _in_order(folder: Path) -> Iterator[bytes]:
    """The bytes of all records, from the first block to the last."""
    for file in read_meta(folder):
        for block in range(file.block_begin, file.block_end):
            yield from (data for data, _ in records_of(block_of(folder, file, block)))


def mask_file(folder: str | Path, name: str, masked: bool = True) -> None:
    """Leaves a file of a data set out of reading, or takes it in again."""
    files = read_meta(folder)
    if name not in [file.file_name for file in files]:
        known = ", ".join(file.file_name for file in files)
        raise DataError(f"{folder}: has no file {name}; its files: {known}")
    write_meta(Path(folder), [
        FileMeta(**{**vars(file), "mask": masked}) if file.file_name == name else file
        for file in files
    ])  # fmt: skip


def compact(folder: str | Path) -> list[str]:
    """Forgets files that are gone, and numbers the blocks anew; returns their names."""
    kept: list[FileMeta] = []
    gone = []
    for file in read_meta(folder):
        if not (Path(folder) / file.file_name).is_file():
            gone.append(file.file_name)
            continue
        kept.append(_moved(file, kept, file.file_name))
    write_meta(Path(folder), kept)
    return gone


def merge(target: str | Path, source: str | Path) -> None:
    """Copies the files of one data set into another; a name that is taken gets _0, _1 ..."""
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    files = read_meta(folder) if (folder / META).is_file() else []
    for file in read_meta(source):
        name, number = file.file_name, 0
        while (folder / name).exists():
            name, number = f"{file.file_name}_{number}", number + 1
        shutil.copyfile(Path(source) / file.file_name, folder / name)
        files.append(_moved(file, files, name))
    write_meta(folder, files)


def _moved(file: FileMeta, before: Sequence[FileMeta], name: str) -> FileMeta:
    begin = before[-1].block_end if before else 0
    size = file.block_end - file.block_begin
    return FileMeta(
        **{**vars(file), "file_name": name, "block_begin": begin, "block_end": begin + size}
    )
