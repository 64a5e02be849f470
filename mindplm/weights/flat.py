"""Arrays laid end to end and cut into NumPy files, as GPT-1 was released.

A folder holds params_shapes.json, a list of shapes in order, and params_0.npy, params_1.npy ...,
flat pieces of the arrays end to end, cut anywhere. Names are not stored; the order gives them.
Source: openai/finetune-transformer-lm, how train.py reads its model folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.files import FolderWriter
from mindplm.tensors import Array, LazyArray, array_in_file, pieces

SHAPES = "params_shapes.json"
NUM_FILES = 10
"""Pieces of the published release."""
_NAME = re.compile(r"params_(\d+)\.npy")
_MAX_SHAPES = 1 << 20
_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True)
class _Part:
    """One file: where its values begin, and which of all values they are."""

    path: Path
    start: int
    first: int
    size: int


def open_flat(folder: Path) -> tuple[list[LazyArray], list[Path]]:
    """Opens the arrays of a folder in their order; values are read when they are used.

    Raises:
        CheckpointError: A file is missing or damaged, or the shapes do not fit the values.
    """
    shapes = _read_shapes(folder / SHAPES)
    found = {int(m[1]): path for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))}
    if sorted(found) != list(range(len(found))) or not found:
        shown = ", ".join(str(number) for number in sorted(found)) or "none"
        raise CheckpointError(f"{folder}: expected params_0.npy and so on without a gap: {shown}")
    parts: list[_Part] = []
    total, dtype = 0, np.dtype("<f4")
    for number in sorted(found):
        start, size, dtype = _read_head(found[number], dtype if number else None)
        parts.append(_Part(found[number], start, total, size))
        total += size
    wanted = sum(map(math.prod, shapes))
    if wanted != total:
        raise CheckpointError(
            f"{folder}: {SHAPES} wants {wanted:,} values, the {len(parts)} files params_*.npy "
            f"hold {total:,}; is one of them missing?"
        )
    arrays, first = [], 0
    for shape in shapes:
        arrays.append(_joined(parts, first, shape, dtype))
        first += math.prod(shape)
    return arrays, [folder / SHAPES, *(part.path for part in parts)]


def write_flat(writer: FolderWriter, arrays: Sequence[Array]) -> None:
    """Writes arrays of one dtype end to end into NUM_FILES files, and their shapes.

    Raises:
        CheckpointError: They are of several dtypes, or of one that NumPy lacks.
    """
    kinds = sorted({str(array.dtype) for array in arrays})
    dtype = arrays[0].dtype.newbyteorder("<")
    if len(kinds) > 1 or dtype.kind != "f":
        raise CheckpointError(
            f"NumPy files hold values of one float type, these are {', '.join(kinds)}; choose "
            "float32 (--dtype)"
        )
    shapes = [list(array.shape) for array in arrays]
    writer.write(SHAPES, [(json.dumps(shapes) + "\n").encode()])
    total = sum(map(math.prod, shapes))
    bounds = [total * i // NUM_FILES for i in range(NUM_FILES + 1)]
    values = _Values(arrays)
    for number, (first, last) in enumerate(zip(bounds, bounds[1:])):
        writer.write(f"params_{number}.npy", _npy(values, last - first, dtype))


def named(names: Sequence[str], arrays: Sequence[LazyArray], folder: Path) -> dict[str, LazyArray]:
    """The arrays by name.

    Raises:
        CheckpointError: There are more or less of them than names.
    """
    if len(names) != len(arrays):
        raise CheckpointError(
            f"{folder / SHAPES} lists {len(arrays)} arrays, expected {len(names)}"
        )
    return dict(zip(names, arrays))


def reshaped(array: Array, shape: tuple[int, ...]) -> LazyArray:
    """The same values in another shape, read when they are used."""

    def load() -> np.ndarray:
        return np.asarray(array).reshape(shape)

    return LazyArray(shape, array.dtype, load)


def in_order(arrays: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """The arrays in the order of names.

    Raises:
        CheckpointError: One is missing.
    """
    absent = [name for name in names if name not in arrays]
    if absent or len(names) != len(arrays):
        odd = ", ".join([*absent, *(name for name in arrays if name not in names)][:6])
        raise CheckpointError(f"the released files have another set of arrays: {odd}")
    return [arrays[name] for name in names]


# --- reading --------------------------------------------------------------------------------------


def _read_shapes(path: Path) -> list[tuple[int, ...]]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size > _MAX_SHAPES:
        raise CheckpointError(f"{path} is too large for a list of shapes")
    try:
        tree = json.loads(path.read_bytes())
        shapes = [tuple(shape) for shape in tree]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a list of shapes: {str(error)[:100]}") from None
    for shape in shapes:
        if not all(type(size) is int and 0 < size < 1 << 40 for size in shape) or len(shape) > 4:
            raise CheckpointError(f"{path}: {str(shape)[:80]} is no shape of an array")
    if not shapes:
        raise CheckpointError(f"{path} lists no shapes")
    return shapes


def _read_head(path: Path, wanted: np.dtype | None) -> tuple[int, int, np.dtype]:
    """Where the values of a NumPy file begin, how many there are, and their type."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(f"{path} is no NumPy file (of version 1.0)")
        try:
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {str(error)[:100]}") from None
        start = file.tell()
    if len(shape) != 1 or dtype.kind != "f" or (wanted is not None and dtype != wanted):
        raise CheckpointError(
            f"{path} holds {dtype} of shape {shape}, expected one row of "
            f"{wanted if wanted is not None else 'floats'}"
        )
    if path.stat().st_size != start + shape[0] * dtype.itemsize:
        raise CheckpointError(f"{path} is damaged: its size is not that of {shape[0]:,} values")
    return start, shape[0], dtype


def _joined(
    parts: Sequence[_Part], first: int, shape: tuple[int, ...], dtype: np.dtype
) -> LazyArray:
    """An array whose values lie in one file or in several neighbours."""
    last = first + math.prod(shape)
    lazy = []
    for part in parts:
        low, high = max(first, part.first), min(last, part.first + part.size)
        if low < high:
            start = part.start + (low - part.first) * dtype.itemsize
            lazy.append(array_in_file(part.path, start, dtype, (high - low,)))

    def load() -> np.ndarray:
        values = [np.asarray(array) for array in lazy]
        return (values[0] if len(values) == 1 else np.concatenate(values)).reshape(shape)

    return LazyArray(shape, dtype, load)


# --- writing --------------------------------------------------------------------------------------


class _Values:
    """The values of arrays end to end, given out in stretches of any length, once."""

    def __init__(self, arrays: Sequence[Array]):
        self._pieces = (piece for array in arrays for piece in pieces(array))
        self._left = np.zeros(0, np.uint8)

    def take(self, count: int) -> Iterator[np.ndarray]:
        """The next values."""
        while count:
            if not self._left.size:
                self._left = next(self._pieces)
            part, self._left = self._left[:count], self._left[count:]
            count -= part.size
            yield part


def _npy(values: _Values, count: int, dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """The bytes of a NumPy file of version 1.0."""
    head = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    room = -(len(_MAGIC) + 2 + len(head) + 1) % 64
    text = head.encode() + b" " * room + b"\n"
    yield _MAGIC + len(text).to_bytes(2, "little") + text
    for part in values.take(count):
        yield part.view(np.uint8).data
