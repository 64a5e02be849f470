"""Model-parallel checkpoints of Megatron's kind: one file of each rank, its tensors a cut of all.

<folder>/latest_checkpointed_iteration.txt holds a number; <folder>/<number>/ holds
mp_rank_00_model_states.pt and so on, each a dictionary whose entry "module" has the tensors. How a
tensor is cut follows from its name: by rows, by rows of each third (queries, keys and values that
stand above each other), by columns, or not at all, so that each rank has the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.files import FolderWriter
from mindplm.tensors import Array, LazyArray
from mindplm.weights.torch_io import open_torch, torch_chunks

LATEST = "latest_checkpointed_iteration.txt"
INSIDE = "module"
_NAME = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_MAX_TEXT = 64
Axes = Mapping[str, str]
"""Pattern of names -> rows, thirds or columns."""


def find_ranks(path: Path) -> list[Path]:
    """The files of all ranks below a folder, in order; none if it holds no such checkpoint.

    Raises:
        CheckpointError: A rank is missing, or what LATEST names is not there.
    """
    if not path.is_dir():
        return [path] if _NAME.fullmatch(path.name) and path.is_file() else []
    if (path / LATEST).is_file():
        text = (path / LATEST).read_bytes()[:_MAX_TEXT].decode("ascii", "replace").strip()
        if not re.fullmatch(r"\w+", text):
            raise CheckpointError(f"{path / LATEST} holds {text!r}, expected a number")
        if not (path / text).is_dir():
            raise CheckpointError(f"{path / LATEST} names {text}, but there is no such folder")
        path = path / text
    found = {int(m[1]): file for file in path.iterdir() if (m := _NAME.fullmatch(file.name))}
    if sorted(found) != list(range(len(found))):
        raise CheckpointError(
            f"{path}: ranks {', '.join(map(str, sorted(found)))} are there, expected all from 0 on"
        )
    return [found[rank] for rank in sorted(found)]


def open_ranks(paths: Sequence[Path], axes: Axes) -> dict[str, LazyArray]:
    """Opens the tensors of all ranks as those of one model; each is read when it is used.

    Raises:
        CheckpointError: Ranks differ in names or shapes, or a file is damaged or refused.
    """
    ranks = [open_torch(path, inside=INSIDE) for path in paths]
    first = ranks[0]
    for path, arrays in zip(paths[1:], ranks[1:]):
        odd = sorted(set(first) ^ set(arrays))
        if odd:
            raise CheckpointError(f"{path} and {paths[0]} differ in {', '.join(odd[:6])}")
    return {name: _merged(name, [r[name] for r in ranks], _axis(name, axes)) for name in first}


def write_ranks(
    writer: FolderWriter, arrays: Mapping[str, Array], axes: Axes, ranks: int, step: int = 0
) -> None:
    """Writes a checkpoint of so many ranks.

    Raises:
        CheckpointError: A tensor cannot be cut into so many parts.
    """
    for rank in range(ranks):
        own = {n: _share(n, array, _axis(n, axes), rank, ranks) for n, array in arrays.items()}
        name = f"{step}/mp_rank_{rank:02d}_model_states.pt"
        writer.write(name, torch_chunks(own, "archive", inside=INSIDE))
    writer.write(LATEST, [f"{step}\n".encode()])


def _axis(name: str, axes: Axes) -> str:
    found = [axis for pattern, axis in axes.items() if re.fullmatch(pattern, name)]
    return found[0] if found else "same"


# --- joining --------------------------------------------------------------------------------------


def _merged(name: str, parts: Sequence[LazyArray], axis: str) -> LazyArray:
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise CheckpointError(f"{name}: the ranks hold shapes {shapes}, expected equal ones")
    if axis == "same":
        return LazyArray(first.shape, first.dtype, lambda: _equal(name, parts))
    place = 1 if axis == "columns" else 0
    shape = list(first.shape)
    shape[place] *= len(parts)

    def load() -> np.ndarray:
        arrays = [np.asarray(part) for part in parts]
        if axis != "thirds":
            return np.concatenate(arrays, place)
        thirds = [np.split(array, 3) for array in arrays]
        return np.concatenate([cut[i] for i in range(3) for cut in thirds])

    return LazyArray(tuple(shape), first.dtype, load)


def _equal(name: str, parts: Sequence[LazyArray]) -> np.ndarray:
    """What all ranks hold alike."""
    array = np.asarray(parts[0])
    own = hashlib.sha256(array.tobytes()).digest()
    for rank, part in enumerate(parts[1:], start=1):
        if hashlib.sha256(np.asarray(part).tobytes()).digest() != own:
            raise CheckpointError(
                f"{name} differs between ranks 0 and {rank}, but it is not cut; the files do not "
                "belong together"
            )
    return array


# --- cutting --------------------------------------------------------------------------------------


def _share(name: str, array: Array, axis: str, rank: int, ranks: int) -> Array:
    if axis == "same" or ranks == 1:
        return array
    place = 1 if axis == "columns" else 0
    unit = ranks * (3 if axis == "thirds" else 1)
    shape = list(array.shape)
    if shape[place] % unit:
        raise CheckpointError(
            f"{name} has shape {tuple(shape)}, which {ranks} ranks cannot share equally"
        )
    shape[place] //= ranks

    def load() -> np.ndarray:
        whole = np.asarray(array)
        if axis != "thirds":
            return np.ascontiguousarray(np.split(whole, ranks, place)[rank])
        return np.concatenate([np.split(third, ranks)[rank] for third in np.split(whole, 3)])

    return LazyArray(tuple(shape), array.dtype, load)
