"""PyTorch's zip files of tensors, read and written without PyTorch and without executing anything.

A file holds a pickle (<prefix>/data.pkl) that describes the tensors, and one member per storage
(<prefix>/data/<key>) with its plain bytes. Tensors are read one by one when they are used.
Source: the file format of torch.save, PyTorch 1.6 and later.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.tensors import Array, LazyArray, array_in_file, pieces
from mindplm.weights.pickle_reader import (
    ORDERED_DICT,
    REBUILD,
    STORAGES,
    Storage,
    Tensor,
    read_pickle,
)
from mindplm.weights.zip_io import Member, read_directory, zip_chunks

_MAX_PICKLE = 16 << 20
_CHUNK = 1 << 22
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LIST_OF_NAMES = 6


# --- reading --------------------------------------------------------------------------------------


def open_torch(path: Path, inside: str = "") -> dict[str, LazyArray]:
    """Opens a PyTorch file that holds a flat dictionary of tensors.

    Args:
        path: A .bin or .pt file.
        inside: Key of the dictionary of tensors in a larger one, whose other entries are left out.

    Returns:
        Name to lazy array, in the file's order; bfloat16 as tensors.BF16. Tensors that share all
        of their memory are the same object.

    Raises:
        CheckpointError: It is damaged, of the old format, holds something else, or its pickle
            asks for anything but tensors; nothing of it is ever executed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    with open(path, "rb") as file:
        _refuse_other_formats(path, file.read(32))
    members = read_directory(path)
    prefix = _prefix(path, members)
    try:
        big = _is_big_endian(path, members.get(f"{prefix}byteorder"))
        tree = read_pickle(_bytes(path, members[f"{prefix}data.pkl"], _MAX_PICKLE))
        found = _flat(_inner(tree, inside))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    storages = _Storages(path, members, prefix, big)
    made: dict[Tensor, LazyArray] = {}
    return {
        name: made[item] if item in made else made.setdefault(item, storages.array(name, item))
        for name, item in found.items()
    }


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if head.startswith(_LEGACY):
        raise CheckpointError(
            f"{path} is in PyTorch's format from before version 1.6, which is not read; bring it "
            "into the present one with PyTorch: "
            "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    if not head.startswith(b"PK"):
        raise CheckpointError(f"{path} is no PyTorch file: expected a zip file of torch.save")


def _prefix(path: Path, members: Mapping[str, Member]) -> str:
    ends = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(ends) != 1:
        raise CheckpointError(f"{path} holds no data.pkl; expected a file written by torch.save")
    prefix = ends[0][: -len("data.pkl")]
    if f"{prefix}constants.pkl" in members:
        raise CheckpointError(
            f"{path} is a TorchScript program; expected a state dict written by torch.save"
        )
    return prefix


def _inner(tree: Any, key: str) -> Any:
    """The entry of a dictionary; the dictionary itself if no key is given."""
    if not key:
        return tree
    if type(tree) is not dict or key not in tree:
        raise CheckpointError(f"expected a dictionary with an entry {key!r}")
    return tree[key]


def _flat(tree: Any) -> dict[str, Tensor]:
    """The dictionary of tensors that a pickle has to be."""
    if type(tree) is not dict or not tree:
        raise CheckpointError(
            f"holds a {type(tree).__name__}, expected a dictionary of named tensors"
        )
    odd = [str(n)[:60] for n, v in tree.items() if type(n) is not str or type(v) is not Tensor]
    if odd:
        inner = [n for n, v in tree.items() if type(v) is dict]
        hint = f"; save its {str(inner[0])[:60]!r} alone" if inner else ""
        shown = ", ".join(odd[:_LIST_OF_NAMES])
        raise CheckpointError(f"{len(odd)} entries are no named tensors: {shown}{hint}")
    return tree


def _is_big_endian(path: Path, member: Member | None) -> bool:
    if member is None:  # older files have no record of it, and were written by little machines
        return False
    order = _bytes(path, member, 64)
    if order not in (b"little", b"big"):
        raise CheckpointError(f"byte order {order[:20]!r}, expected little or big")
    return order == b"big"


def _bytes(path: Path, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise CheckpointError(f"a member has {member.size:,} bytes, at most {limit:,} are accepted")
    with open(path, "rb") as file:
        file.seek(member.start)
        data = file.read(member.size)
    if zlib.crc32(data) != member.crc:
        raise CheckpointError("it is damaged: a member does not match its checksum")
    return data


class _Storages:
    """The storages of one file; each is compared with its checksum when it is first used."""

    def __init__(self, path: Path, members: Mapping[str, Member], prefix: str, big: bool):
        self._path, self._members, self._prefix, self._big = path, members, prefix, big
        self._good: set[str] = set()

    def array(self, name: str, tensor: Tensor) -> LazyArray:
        """The lazy array of a tensor."""
        storage = tensor.storage
        member = self._members.get(f"{self._prefix}data/{storage.key}")
        dtype = storage.dtype.newbyteorder(">" if self._big else "<")
        if member is None:
            raise CheckpointError(f"{self._path}: the values of {name[:200]} are missing")
        if member.size != storage.size * dtype.itemsize:
            raise CheckpointError(
                f"{self._path}: {name[:200]} has a storage of {member.size:,} bytes instead of "
                f"{storage.size:,} x {dtype.itemsize}"
            )
        if 0 in tensor.shape:
            return LazyArray(tensor.shape, dtype, lambda: np.empty(tensor.shape, dtype))
        if tensor.offset == 0 and tensor.strides == _plain_strides(tensor.shape):
            size = int(np.prod(tensor.shape, dtype=np.int64))
            if size == storage.size:
                check = lambda flat: self._compare(storage.key, zlib.crc32(flat))  # noqa: E731
                return array_in_file(self._path, member.start, dtype, tensor.shape, check)
        return LazyArray(tensor.shape, dtype, lambda: self._view(member, tensor, dtype))

    def _view(self, member: Member, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
        """Reads the stretch of a storage that a view covers."""
        self._check(tensor.storage, member)
        steps = zip(tensor.shape, tensor.strides)
        length = 1 + sum((size - 1) * step for size, step in steps)
        start = member.start + tensor.offset * dtype.itemsize
        flat = np.asarray(array_in_file(self._path, start, dtype, (length,)))
        strides = [step * dtype.itemsize for step in tensor.strides]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
        ).reshape(tensor.shape)

    def _check(self, storage: Storage, member: Member) -> None:
        if storage.key in self._good:
            return
        crc, left = 0, member.size
        with open(self._path, "rb") as file:
            file.seek(member.start)
            while left and (chunk := file.read(min(left, _CHUNK))):
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        self._compare(storage.key, crc)

    def _compare(self, key: str, crc: int) -> None:
        if crc != self._members[f"{self._prefix}data/{key}"].crc:
            raise CheckpointError(
                f"{self._path} is damaged: its storage {key[:40]} does not match its checksum"
            )
        self._good.add(key)


def _plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


# --- writing --------------------------------------------------------------------------------------

_CODES = {dtype: name for name, dtype in STORAGES.items()}


def torch_chunks(
    arrays: Mapping[str, Array], prefix: str = "archive", inside: str = ""
) -> Iterator[bytes]:
    """The bytes of a PyTorch file, part by part; names of one array object share its storage.

    Args:
        arrays: Name to array.
        prefix: Name of the folder inside the file, as torch.save gives it.
        inside: Key under which the dictionary of tensors is put into another one.
    """
    keys: dict[int, str] = {}
    storages: dict[str, Array] = {}
    for array in arrays.values():
        if id(array) not in keys:
            keys[id(array)] = str(len(keys))
            storages[keys[id(array)]] = array
    text = _pickle({name: (keys[id(array)], array) for name, array in arrays.items()}, inside)

    def members() -> Iterator[tuple[str, int, Iterator[bytes | memoryview]]]:
        yield f"{prefix}/data.pkl", len(text), iter([text])
        yield f"{prefix}/byteorder", 6, iter([b"little"])
        for key, array in storages.items():
            yield f"{prefix}/data/{key}", array.nbytes, _parts(array)
        yield f"{prefix}/version", 2, iter([b"3\n"])

    return zip_chunks(members())


def _parts(array: Array) -> Iterator[memoryview]:
    for piece in pieces(array):
        yield piece.view(np.uint8).data


def _pickle(arrays: Mapping[str, tuple[str, Array]], inside: str = "") -> bytes:
    """A pickle, protocol 2, of a dictionary of tensors as torch.save describes them."""
    out = [b"\x80\x02}", *([_text(inside), b"}"] if inside else [])]
    for name, (key, array) in arrays.items():
        dtype = array.dtype.newbyteorder("<")
        storage = _CODES.get(dtype)
        if storage is None:
            raise CheckpointError(f"{name} has dtype {dtype}, which PyTorch files do not hold")
        size = int(np.prod(array.shape, dtype=np.int64))
        out += [_text(name), _global(REBUILD), b"(("]
        out += [_text("storage"), _global(storage), _text(key), _text("cpu"), _int(size), b"tQ"]
        out += [_int(0), _ints(array.shape), _ints(_plain_strides(array.shape)), b"\x89"]
        out += [_global(ORDERED_DICT), b")RtRs"]
    return b"".join([*out, b"s." if inside else b"."])


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode()


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _ints(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"
