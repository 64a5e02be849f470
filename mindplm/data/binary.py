"""The original's binary data sets: folders of files that are cut into blocks of records.

`meta.bin` has a JSON object a line for each file. A file is a row of blocks of `block_size` bytes;
a record in a block is 0x1F, its length (uint32), its bytes; zeros fill what is left of a block.
Blocks are numbered across the files of a folder.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mindplm.errors import CheckpointError, DataError
from mindplm.files import replace_file
from mindplm.weights.pickle_reader import read_pickle

META = "meta.bin"
KIND = "binary"
"""The kind of file that a data set counts as."""
BLOCK_BYTES = 16 << 20
_RECORD, _END = 0x1F, 0x00
_HEAD = struct.Struct("=BI")
_LENGTH_BYTES = 4

Payload = Literal["pickle", "json", "raw"]


@dataclass(frozen=True)
class FileMeta:
    """One line of meta.bin.

    Attributes:
        file_name: Name of the file in the folder.
        block_begin: Number of its first block.
        block_end: Number after that of its last block.
        nbytes: Bytes of the records and their lengths.
        nlines: Records.
        mask: Whether the file is left out.
        block_size: Bytes of a block.
    """

    file_name: str
    block_begin: int
    block_end: int
    nbytes: int
    nlines: int
    mask: bool = False
    block_size: int = BLOCK_BYTES


def is_dataset(path: str | Path) -> bool:
    """Whether a path is a folder with meta.bin."""
    return (Path(path) / META).is_file()


def read_meta(folder: str | Path) -> list[FileMeta]:
    """The files of a data set.

    Raises:
        DataError: There is no meta.bin, or it is not as it should be.
    """
    path = Path(folder) / META
    if not path.is_file():
        what = "no such folder" if not Path(folder).is_dir() else f"has no {META}"
        raise DataError(f"{folder}: {what}; expected the folder of a binary data set")
    files: list[FileMeta] = []
    names = {f.name for f in fields(FileMeta)}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            file = FileMeta(**{name: values[name] for name in names if name in values})
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}:{number}: not the description of a data file") from None
        begin = files[-1].block_end if files else 0
        if file.block_begin != begin or file.block_end <= begin or file.block_size < 1:
            raise DataError(f"{path}:{number}: blocks {file.block_begin} to {file.block_end}, "
                            f"expected them to begin at {begin}")  # fmt: skip
        files.append(file)
    return files


def write_meta(folder: Path, files: list[FileMeta]) -> None:
    """Replaces meta.bin."""
    lines = [json.dumps(asdict(file)) + "\n" for file in files]
    replace_file(folder / META, "".join(lines).encode("utf-8"))


def block_of(folder: Path, file: FileMeta, block: int) -> bytes:
    """The bytes of a block."""
    path = folder / file.file_name
    try:
        with open(path, "rb") as content:
            content.seek((block - file.block_begin) * file.block_size)
            data = content.read(file.block_size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, but {META} beside it names it") from None
    if len(data) < file.block_size:
        raise DataError(f"{path}: ends inside block {block}; it was cut off")
    return data


def records_of(data: bytes, offset: int = 0, place: str = "block") -> Iterator[tuple[bytes, int]]:
    """The records of a block from an offset on: their bytes, and the offset after each.

    Raises:
        DataError: The block is damaged.
    """
    while data[offset] != _END:
        end = offset + _HEAD.size
        if data[offset] != _RECORD or end > len(data):
            raise DataError(f"{place}: damaged at byte {offset} of the block")
        length = _HEAD.unpack_from(data, offset)[1]
        if end + length >= len(data):
            raise DataError(f"{place}: a record at byte {offset} leaves the block")
        offset = end + length
        yield data[end:offset], offset


def load(payload: bytes, place: str = "record") -> Any:
    """The value of a record's bytes: JSON, or a pickle of plain values; nothing is executed.

    Raises:
        DataError: It is neither.
    """
    try:
        if payload[:1] == b"\x80":
            return read_pickle(payload)
        return json.loads(payload.decode("utf-8"))
    except CheckpointError as error:
        raise DataError(f"{place}: {error}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{place}: holds neither JSON nor a pickle") from None


def dump(value: Any, payload: Payload) -> bytes:
    """The bytes of a value."""
    if payload == "raw":
        return value
    if payload == "json":
        return json.dumps(value, ensure_ascii=False).encode("utf-8")
    return pickle.dumps(value)


class DatasetWriter:
    """Adds a file to a data set; the file stays if the block ends without an error.

    Args:
        folder: The data set; is made if it is not there.
        name: Name of the new file.
        block_bytes: Size of its blocks.
        payload: How values become bytes.

    Raises:
        DataError: There is a file of that name, or a record does not fit into a block.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        *,
        block_bytes: int = BLOCK_BYTES,
        payload: Payload = "pickle",
    ):
        self._folder = Path(folder)
        self._path = self._folder / name
        self._block_bytes = block_bytes
        self._payload = payload
        self._offset = self._blocks = self._nbytes = self._nlines = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files = read_meta(self._folder) if is_dataset(self._folder) else []
        if name in [file.file_name for file in self._files]:
            raise DataError(f"{self._path}: the data set has a file of that name already")
        try:
            self._file = open(self._path, "xb")  # noqa: SIM115 - closed in __exit__
        except FileExistsError:
            raise DataError(f"{self._path}: exists already") from None

    def write(self, value: Any) -> None:
        """Adds a record."""
        data = dump(value, self._payload)
        need = _HEAD.size + 1 + len(data)
        if self._offset + need > self._block_bytes:
            if need > self._block_bytes:
                raise DataError(
                    f"{self._path}: a record of {len(data):,} bytes, a block has "
                    f"{self._block_bytes:,}"
                )
            self._fill()
        self._file.write(_HEAD.pack(_RECORD, len(data)) + data)
        self._offset += _HEAD.size + len(data)
        self._nbytes += _LENGTH_BYTES + len(data)
        self._nlines += 1

    def _fill(self) -> None:
        self._file.write(bytes(self._block_bytes - self._offset))
        self._blocks += 1
        self._offset = 0

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._fill()
        self._file.close()
        if error is not None:
            self._path.unlink()
            return
        begin = self._files[-1].block_end if self._files else 0
        own = FileMeta(
            self._path.name,
            begin,
            begin + self._blocks,
            self._nbytes,
            self._nlines,
            block_size=self._block_bytes,
        )
        write_meta(self._folder, [*self._files, own])
