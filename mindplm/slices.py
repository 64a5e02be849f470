"""Which part of each weight a process holds, and putting the parts together again.

Processes follow one another stage by stage, in a stage data index by data index, and the model
index runs fastest. The axes that a shard plan cuts over the model axis are cut into even parts;
parallel.optimizer_shard cuts the first axis of a part further over the data axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.shards import ShardPlan, held_shapes, vocab_rows

Place = tuple[slice, ...]


@dataclass(frozen=True)
class Cutter:
    """Cuts weights for the processes of a layout.

    Args:
        plan: The family's plan.
        config: The run's settings.
        shapes: model config -> name -> shape of every weight.
    """

    plan: ShardPlan
    config: Any
    shapes: Any

    def places(self, rank: int) -> dict[str, Place]:
        """Name -> the part of a process, of every weight that it holds.

        The axis of the vocabulary is that of the padded table.
        """
        parallel = self.config.parallel
        within = rank % (parallel.devices // parallel.pipeline)
        data, model = divmod(within, parallel.model)
        found = {}
        held = held_shapes(self.plan, self.config, self.shapes, rank)
        for name, shape in held.items():
            axes = self.plan.weight_axes(name)
            ways = self.plan.strategy(axes, parallel)
            begin = [size * model if cut > 1 else 0 for size, cut in zip(shape, ways)]
            whole = self.whole(name)
            if math.prod(whole) > math.prod(shape) * math.prod(ways):  # also cut over the data axis
                begin[0] = shape[0] * (parallel.data * (model if ways[0] > 1 else 0) + data)
            found[name] = tuple(slice(b, b + size) for b, size in zip(begin, shape))
        return found

    def whole(self, name: str) -> tuple[int, ...]:
        """Shape of a weight with the padding of the vocabulary."""
        shape = self.shapes(self.config.model)[name]
        axes = self.plan.weight_axes(name)
        rows = vocab_rows(self.config.model.vocab_size, self.config.parallel)
        return tuple(rows if axis == "v" else size for axis, size in zip(axes, shape))


def cut(array: Any, place: Place) -> np.ndarray:
    """The part at a place; zeros where the place reaches beyond the array, as padding does.

    Args:
        array: NumPy, or anything that gives NumPy arrays for slices and has a shape.
        place: One slice an axis.
    """
    inside = tuple(slice(min(p.start, n), min(p.stop, n)) for p, n in zip(place, array.shape))
    found = np.asarray(array[inside])
    missing = [(0, p.stop - p.start - size) for p, size in zip(place, found.shape)]
    return np.pad(found, missing) if any(after for _, after in missing) else found


def unify(
    name: str, shape: tuple[int, ...], parts: Iterable[tuple[Place, np.ndarray]]
) -> np.ndarray:
    """A whole weight from the parts of all processes; padding is left out.

    Args:
        name: For errors.
        shape: Of the weight without padding.
        parts: Places and arrays; parts that several processes hold may come several times.

    Raises:
        CheckpointError: A place is not covered, a part has another shape, or two processes hold
            different values at one place.
    """
    whole: np.ndarray | None = None
    filled = np.zeros(shape, bool)
    for place, array in parts:
        wanted = tuple(p.stop - p.start for p in place)
        if array.shape != wanted:
            raise CheckpointError(f"{name}: a part has shape {array.shape}, expected {wanted}")
        if whole is None:
            whole = np.zeros(shape, array.dtype)
        inside = tuple(slice(min(p.start, n), min(p.stop, n)) for p, n in zip(place, shape))
        values = array[tuple(slice(0, p.stop - p.start) for p in inside)]
        before = filled[inside]
        if not np.array_equal(whole[inside][before], values[before], equal_nan=True):
            raise CheckpointError(f"{name}: two processes hold different values of one part")
        whole[inside] = values
        filled[inside] = True
    if whole is None or not filled.all():
        raise CheckpointError(
            f"{name}: {filled.size - int(filled.sum()):,} of {filled.size:,} numbers are in no part"
        )
    return whole


def unify_all(
    cutter: Cutter, held: Mapping[int, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Every whole weight from what the processes hold.

    Args:
        cutter: Of the layout that they ran with.
        held: Rank -> name -> part.

    Raises:
        CheckpointError: See `unify`; or a process lacks a weight.
    """
    places = {rank: cutter.places(rank) for rank in held}
    for rank, own in places.items():
        absent = sorted(set(own) - set(held[rank]))
        if absent:
            raise CheckpointError(f"rank {rank} holds no {', '.join(absent[:4])}")
    return {
        name: unify(
            name,
            shape,
            ((own[name], held[rank][name]) for rank, own in places.items() if name in own),
        )
        for name, shape in cutter.shapes(cutter.config.model).items()
    }
