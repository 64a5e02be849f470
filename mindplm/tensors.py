"""Named arrays in safetensors files, in several above a size, with an index in HF's style.

Read and written array by array without a copy of the whole; the format is an 8-byte header length,
a JSON header and the bytes of the arrays. Source: the format description of the safetensors
project. A file is checked before any of its arrays is read; nothing in it is trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.files import FolderWriter

SHARD_BYTES = 4 << 30
BF16 = np.dtype([("bfloat16", "<u2")])
"""bfloat16, which NumPy lacks: the 16 bits under a name that survives slicing and joining."""
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()}
_DTYPES["BF16"] = BF16
_PIECE = 1 << 22
_MAX_HEADER = 16 << 20
_MAX_AXES = 16


# --- arrays that are read when needed -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that is read, and cast, each time it is asked for.

    Attributes:
        shape: Its shape.
        dtype: What the values are cast to.
        load: Reads the values, in any dtype that `cast` takes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def astype(self, dtype: np.dtype) -> LazyArray:
        """The same array, cast when it is read."""
        return LazyArray(self.shape, dtype, self.load)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        values = cast(self.load(), self.dtype)
        return values if dtype is None else values.astype(dtype, copy=False)


Array = Union[np.ndarray, LazyArray]


def pieces(array: Array) -> Iterator[np.ndarray]:
    """The values in order, little-endian, in parts of a few megabytes that are cast one by one."""
    dtype = array.dtype.newbyteorder("<")
    values = array.load() if isinstance(array, LazyArray) else array
    flat = np.asarray(values, order="C").reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield cast(flat[start : start + _PIECE], dtype)


def with_rows(
    arrays: Mapping[str, LazyArray], name: str, count: int, std: float = 0.02
) -> dict[str, LazyArray]:
    """The arrays, one of them with rows of small random values at its end, always the same.

    Args:
        arrays: Arrays by name.
        name: The one.
        count: New rows; if negative, so many of the last rows are taken away.
        std: Standard deviation of the values.
    """
    array = arrays[name]
    rows, width = array.shape

    def load() -> np.ndarray:
        values = np.asarray(array)
        if count < 0:
            return values[:count]
        new = np.random.default_rng(0).normal(0, std, (count, width)).astype(np.float32)
        return np.concatenate([values, cast(new, array.dtype)])

    return {**arrays, name: LazyArray((rows + count, width), array.dtype, load)}


def is_bf16(dtype: np.dtype) -> bool:
    """Whether it is bfloat16, in either order of bytes."""
    return dtype.names == BF16.names


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts values; from and to BF16 as well.

    Raises:
        CheckpointError: A finite value lies beyond the range of a narrower float type.
    """
    if array.dtype == dtype:
        return array
    if is_bf16(array.dtype):
        bits = array["bfloat16"].astype("<u4")
        bits <<= 16
        array = bits.view("<f4")
    if is_bf16(dtype):
        return _round_to_bf16(array).view(BF16).astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    if dtype.kind == "f" and dtype.itemsize < array.dtype.itemsize:
        _refuse_overflow(array, np.isinf(result), dtype.name)
    return result


def _round_to_bf16(array: np.ndarray) -> np.ndarray:
    """The upper 16 bits of the fp32 values, rounded to the nearest, ties to even."""
    bits = np.asarray(array, "<f4").view("<u4")
    upper = bits >> 16
    rounded = ((bits + (0x7FFF + (upper & 1)).astype("<u4")) >> 16).astype("<u2")
    _refuse_overflow(array, (rounded & 0x7FFF) == 0x7F80, "bfloat16")
    quiet = np.where(upper & 0x7F, upper, upper | 0x40).astype("<u2")
    return np.where(np.isnan(array), quiet, rounded)


def _refuse_overflow(array: np.ndarray, infinite: np.ndarray, name: str) -> None:
    if infinite.any() and (infinite & np.isfinite(array)).any():
        raise CheckpointError(
            f"values up to {np.abs(array[np.isfinite(array)]).max():.3g} do not fit into {name}; "
            "choose another dtype"
        )


def num_bytes(arrays: Mapping[str, Array]) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())


# --- writing --------------------------------------------------------------------------------------


def write_arrays(
    writer: FolderWriter,
    stem: str,
    arrays: Mapping[str, Array],
    shard_bytes: int,
    *,
    reader: str = "np",
) -> None:
    """Writes <stem>.safetensors, or numbered shards and <stem>.safetensors.index.json.

    `reader` is the mark in the file of what it is meant for; some loaders insist on "pt".
    """
    shards = cut(arrays, shard_bytes)
    if len(shards) == 1:
        writer.write(f"{stem}.safetensors", _chunks(shards[0], reader))
        return
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        writer.write(name, _chunks(shard, reader))
        place.update(dict.fromkeys(shard, Path(name).name))
    writer.write(f"{stem}.safetensors.index.json", [index_text(arrays, place)])


def index_text(arrays: Mapping[str, Array], place: Mapping[str, str]) -> bytes:
    """The index of a set in several files; `place` is array name -> file name."""
    index = {"metadata": {"total_size": num_bytes(arrays)}, "weight_map": dict(place)}
    return (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode()


def cut(arrays: Mapping[str, Array], limit: int) -> list[dict[str, Array]]:
    """Cuts a set in its order; a part holds at most `limit` bytes or one array."""
    shards: list[dict[str, Array]] = [{}]
    used = 0
    for name, array in arrays.items():
        if shards[-1] and used + array.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = array
        used += array.nbytes
    return shards


def _chunks(arrays: Mapping[str, Array], reader: str) -> Iterator[bytes | memoryview]:
    """The bytes of one safetensors file, part by part."""
    # Wide types first keeps every array aligned to its type, as readers that map files expect.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": reader}}
    end = 0
    for name in order:
        array = arrays[name]
        code = "BF16" if is_bf16(array.dtype) else _CODES.get(array.dtype.name)
        if code is None:
            raise CheckpointError(f"{name} has dtype {array.dtype}, which is not stored")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        try:
            for piece in pieces(arrays[name]):
                yield piece.view(np.uint8).data
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error


# --- reading --------------------------------------------------------------------------------------


def read_arrays(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote; bfloat16 comes as fp32 of the same values.

    Raises:
        CheckpointError: A file is missing or cannot be read, or an index names what is not there.
    """
    return {name: np.asarray(item) for name, item in open_arrays(folder, stem, widen=True).items()}


def open_arrays(folder: Path, stem: str, *, widen: bool) -> dict[str, LazyArray]:
    """Like `read_arrays`, but each array is read when it is used.

    With `widen` bfloat16 comes as fp32 of the same values, else as BF16.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        arrays = open_indexed(index, open_file)
    else:
        arrays = open_file(folder / f"{stem}.safetensors")
    return widened(arrays) if widen else arrays


def widened(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The arrays with bfloat16, which NumPy lacks, as fp32 of the same values."""
    wide = np.dtype("<f4")
    return {n: a.astype(wide) if is_bf16(a.dtype) else a for n, a in arrays.items()}


def open_indexed(
    index: Path, open_one: Callable[[Path], dict[str, LazyArray]]
) -> dict[str, LazyArray]:
    """Opens the files that an index in HF's style names; they lie beside it.

    Raises:
        CheckpointError: The index is damaged, names files elsewhere or that are not there, or it
            and the files differ in their arrays.
    """
    place = _read_index(index)
    names = list(dict.fromkeys(place.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        shown = ", ".join(absent[:8])
        raise CheckpointError(f"{index}: {len(absent)} of its files are missing: {shown}")
    result: dict[str, LazyArray] = {}
    for file in names:
        arrays = open_one(index.parent / file)
        wanted = {name for name, where in place.items() if where == file}
        if wanted != set(arrays):
            odd = ", ".join(sorted(wanted ^ set(arrays))[:8])
            raise CheckpointError(f"{index} and {file} differ in {odd}")
        result.update(arrays)
    return {name: result[name] for name in place}


def _read_index(path: Path) -> dict[str, str]:
    if path.stat().st_size > _MAX_HEADER:
        raise CheckpointError(f"{path} is too large for an index")
    tree = _parse(path.read_bytes(), path)
    place = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(place, dict) or not place:
        raise CheckpointError(f"{path}: expected a weight_map of array names to file names")
    for name, file in place.items():
        plain = isinstance(file, str) and file not in ("", ".", "..")
        if not plain or any(mark in file for mark in ("/", "\\", ":", "\0")):
            raise CheckpointError(
                f"{path}: {name[:80]!r} is in {str(file)[:80]!r}, expected the name of a file "
                "beside the index"
            )
    return place


def open_file(path: Path) -> dict[str, LazyArray]:
    """Opens one safetensors file after checking all of its header.

    Raises:
        CheckpointError: It is missing, truncated or not of this format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{path} is damaged: {size:,} bytes, a header of {length:,}")
        header = _parse(file.read(length), path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is no mapping")
    header.pop("__metadata__", None)
    spans, arrays = [(0, 0)], {}
    for name, entry in header.items():
        try:
            dtype, shape, (start, end) = _entry(entry)
        except (KeyError, TypeError, ValueError):
            text = f"{path} is damaged: the entry of {name[:80]!r} is {str(entry)[:120]}"
            raise CheckpointError(text) from None
        spans.append((start, end))
        arrays[name] = array_in_file(path, 8 + length + start, dtype, shape)
    spans.sort()
    gaps = any(left[1] != right[0] for left, right in zip(spans, spans[1:]))
    if gaps or spans[-1][1] != size - 8 - length:
        raise CheckpointError(f"{path} is damaged: its arrays do not fill the file exactly")
    return arrays


def _parse(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error)[:120]}") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    dtype, shape, (start, end) = (
        _DTYPES[entry["dtype"]],
        tuple(entry["shape"]),
        entry["data_offsets"],
    )
    whole = all(type(value) is int and 0 <= value < 1 << 60 for value in (*shape, start, end))
    if not whole or len(shape) > _MAX_AXES or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return dtype, shape, (start, end)


def array_in_file(
    path: Path,
    start: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    check: Callable[[np.ndarray], None] | None = None,
) -> LazyArray:
    """An array whose bytes lie in a file; `check` gets them, flat, after they are read."""

    def load() -> np.ndarray:
        values = np.empty(shape, dtype)
        flat = values.reshape(-1).view(np.uint8)
        with open(path, "rb") as file:
            file.seek(start)
            if file.readinto(flat.data) != flat.size:
                raise CheckpointError(f"{path} became shorter while it was read")
        if check is not None:
            check(flat)
        return values

    return LazyArray(shape, dtype, load)
