"""Which part of each weight a process holds, and putting the parts together again.

Processes follow one another stage by stage, in a stage data index by data index, and the model
index runs fastest. The axes that a shard plan cuts over the model axis are cut into even parts;
parallel.optimizer_shard cuts the first axis of a part further over the processes that share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.shards import ShardPlan, data_rank, held_shapes, num_copies, vocab_rows

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
        data, model = data_rank(rank, parallel), rank % parallel.model
        found = {}
        held = held_shapes(self.plan, self.config, self.shapes, rank)
        for name, shape in held.items():
            axes = self.plan.weight_axes(name)
            ways = self.plan.strategy(axes, parallel)
            begin = [size * model if cut > 1 else 0 for size, cut in zip(shape, ways)]
            whole = self.whole(name)
            if math.prod(whole) > math.prod(shape) * math.prod(ways):  # spread over its copies too
                copies = num_copies(self.plan, name, parallel)
                copy = data if copies == parallel.data else data * parallel.model + model
                begin[0] = shape[0] * (copies * (model if ways[0] > 1 else 0) + copy)
            found[name] = tuple(slice(b, b + size) for b, size in zip(begin, shape))
        return found

    def first_places(self) -> list[dict[str, Place]]:
        """For each process the parts that no process before it holds; together they are all."""
        seen: set[tuple[Any, ...]] = set()
        found: list[dict[str, Place]] = []
        for rank in range(self.config.parallel.devices):
            found.append({})
            for name, place in self.places(rank).items():
                key = (name, *((p.start, p.stop) for p in place))
                if key not in seen:
                    seen.add(key)
                    found[-1][name] = place
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
    return padded(np.asarray(array[inside(place, array.shape)]), place)


def inside(place: Place, shape: Sequence[int]) -> Place:
    """What of a place lies inside an array without padding."""
    return tuple(slice(min(p.start, n), min(p.stop, n)) for p, n in zip(place, shape))


def size_of(place: Place) -> tuple[int, ...]:
    """Shape of what lies at a place."""
    return tuple(p.stop - p.start for p in place)


def padded(array: np.ndarray, place: Place) -> np.ndarray:
    """An array, with zeros at its ends up to the size of a place."""
    missing = [(0, size - own) for size, own in zip(size_of(place), array.shape)]
    return np.pad(array, missing) if any(after for _, after in missing) else array


def overlap(one: Place, other: Place) -> Place | None:
    """What two places have in common."""
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other))
    return both if all(p.start < p.stop for p in both) else None


def seen_from(place: Place, other: Place) -> Place:
    """A place that lies in another one, counted from the beginning of that one."""
    return tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(place, other))


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
        wanted = size_of(place)
        if array.shape != wanted:
            raise CheckpointError(f"{name}: a part has shape {array.shape}, expected {wanted}")
        if whole is None:
            whole = np.zeros(shape, array.dtype)
        real = inside(place, shape)
        values = array[tuple(slice(0, size) for size in size_of(real))]
        before = filled[real]
        if not np.array_equal(whole[real][before], values[before], equal_nan=True):
            raise CheckpointError(f"{name}: two processes hold different values of one part")
        whole[real] = values
        filled[real] = True
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
