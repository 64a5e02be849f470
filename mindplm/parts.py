"""The parts of weights and moments that the processes of a cut run keep, in its checkpoints.

parts/layout.json             shapes of the whole arrays, and where each process's parts lie
parts/rank_<n>.safetensors    weights under their names, moments with one of `MOMENTS` before them

Each number is written once, by the first process that holds it. What is read may be cut in any
other way than what was written: for another layout, or not at all.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import files, tensors
from mindplm.errors import CheckpointError
from mindplm.slices import Place, inside, overlap, padded, seen_from, size_of, unify

MOMENTS = ("adam_m.", "adam_v.")
_LAYOUT = "parts/layout.json"
_PAUSE_S = 0.2


def _stem(rank: int) -> str:
    return f"parts/rank_{rank}"


@dataclass(frozen=True)
class Parts:
    """What lies in a folder; arrays are read when asked for.

    Attributes:
        folder: The checkpoint.
        shapes: Name -> shape of every weight, without padding.
        places: For each process where the parts lie that it wrote.
        parallel: The layout, as plain values.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    places: list[dict[str, Place]]
    parallel: dict[str, Any]

    @functools.cached_property
    def _files(self) -> dict[int, dict[str, tensors.LazyArray]]:
        return {}

    def _path(self, rank: int) -> Path:
        return self.folder / f"{_stem(rank)}.safetensors"

    def _arrays(self, rank: int) -> dict[str, tensors.LazyArray]:
        if rank not in self._files:
            self._files[rank] = tensors.open_file(self._path(rank))
        return self._files[rank]

    def _held(self, rank: int, name: str) -> tensors.LazyArray:
        if name not in self._arrays(rank):
            raise CheckpointError(f"{self._path(rank)} holds no {name}")
        return self._arrays(rank)[name]

    def part(self, name: str, place: Place, prefix: str = "") -> np.ndarray:
        """What lies at a place, whoever wrote it; zeros beyond the array, as padding is.

        Args:
            name: Of the weight.
            place: One slice an axis.
            prefix: "" for the weight itself, or one of MOMENTS.

        Raises:
            CheckpointError: A part is missing or has another shape.
        """
        real = inside(place, self.shapes[name])
        if 0 in size_of(real):
            return np.zeros(size_of(place), np.float32)
        pieces = self._pieces(prefix + name, name, real)
        return padded(unify(prefix + name, size_of(real), pieces), place)

    def _pieces(self, full: str, name: str, wanted: Place) -> Iterator[tuple[Place, np.ndarray]]:
        for rank, own in enumerate(self.places):
            both = overlap(own[name], wanted) if name in own else None
            if both is None:
                continue
            array = np.asarray(self._held(rank, full))
            if array.shape != size_of(own[name]):
                raise CheckpointError(
                    f"{self.folder}/{_stem(rank)}.safetensors: {full} has shape {array.shape}, "
                    f"expected {size_of(own[name])}"
                )
            yield seen_from(both, wanted), array[seen_from(both, own[name])]

    def whole(self, prefix: str = "") -> dict[str, tensors.LazyArray]:
        """All weights, or the moments of a kind, put together when they are read.

        Weights that are not trained have no moments.
        """
        names = (name for name in self.shapes if not prefix or self._written(prefix, name))
        return {prefix + name: self._lazy(name, prefix) for name in names}

    def _written(self, prefix: str, name: str) -> bool:
        holders = (rank for rank, own in enumerate(self.places) if name in own)
        return any(prefix + name in self._arrays(rank) for rank in holders)

    def _lazy(self, name: str, prefix: str) -> tensors.LazyArray:
        shape = self.shapes[name]
        place = tuple(slice(0, size) for size in shape)

        def load() -> np.ndarray:
            return self.part(name, place, prefix)

        return tensors.LazyArray(shape, np.dtype("<f4"), load)


def open_parts(folder: Path) -> Parts | None:
    """The parts in a checkpoint; None if it holds whole weights.

    Raises:
        CheckpointError: The description of the parts is damaged.
    """
    path = folder / _LAYOUT
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        shapes = {name: tuple(map(int, shape)) for name, shape in tree["shapes"].items()}
        places = [
            {name: tuple(slice(int(b), int(e)) for b, e in place) for name, place in own.items()}
            for own in tree["places"]
        ]
        parallel = dict(tree["parallel"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged") from None
    return Parts(folder, shapes, places, parallel)


# --- writing, together ----------------------------------------------------------------------------


def write_part(folder: Path, rank: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes what a process adds to a folder that process 0 builds, and then a note of it.

    Raises:
        CheckpointError: It cannot be written.
    """
    writer = files.FolderWriter(folder)
    try:
        tensors.write_arrays(writer, _stem(rank), arrays, 1 << 62)
        note = json.dumps(writer.files).encode()
        files.replace_file(folder / f"{_stem(rank)}.json", note)
    except OSError as error:
        raise CheckpointError(
            f"{folder.parent}: the part of process {rank} cannot be written: {error.strerror}; "
            "what was written before is untouched"
        ) from error


def collect(
    writer: files.FolderWriter,
    places: Sequence[Mapping[str, Place]],
    shapes: Mapping[str, Sequence[int]],
    parallel: Mapping[str, Any],
) -> None:
    """Waits for the parts of all processes, in process 0, and describes them.

    Args:
        writer: Of the folder.
        places: For each process where its parts lie.
        shapes: Name -> shape of every weight, without padding.
        parallel: The layout, as plain values.
    """
    for rank in range(len(places)):
        note = writer.folder / f"{_stem(rank)}.json"
        while not note.is_file():
            time.sleep(_PAUSE_S)  # a process that dies is noticed by the watch over the run
        writer.files.update(json.loads(note.read_bytes()))
        note.unlink()
    plain = [{n: [[p.start, p.stop] for p in place] for n, place in own.items()} for own in places]
    tree = {"parallel": dict(parallel), "shapes": dict(shapes), "places": plain}
    writer.write(_LAYOUT, [json.dumps(tree).encode()])
