"""Weight rules over arrays that are read when needed: only the tensors in work are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.tensors import LazyArray
from mindplm.weights.rules import Drop, Fill, Move, Rename, Rule, Split, plan, refuse, run

Arrays = Mapping[str, LazyArray]


def lazy_ours(
    rules: Sequence[Rule], arrays: Arrays, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, LazyArray]:
    """Like `rules.to_ours`; names and shapes are checked at once, values are read when used.

    Without `shapes` any subset of what the rules make will do, in the order of the layers.

    Raises:
        CheckpointError: A foreign tensor matches no rule or several, one of ours is not produced
            or produced twice, or a shape differs.
    """
    made: dict[str, LazyArray] = {}
    for move in plan(rules, arrays, back=False):
        made.update(_targets(move, arrays, back=False))
    if shapes is None:
        return made
    for rule in rules:
        if isinstance(rule, Fill) and rule.ours in shapes:
            made[rule.ours] = _lazy(rule.make(tuple(shapes[rule.ours])))
    refuse([name for name in shapes if name not in made], "of our model would get no value")
    refuse([name for name in made if name not in shapes], "have no place in a model of this config")
    for name, shape in shapes.items():
        if made[name].shape != tuple(shape):
            raise CheckpointError(
                f"{name} must have shape {tuple(shape)}, but the checkpoint gives "
                f"{made[name].shape}"
            )
    return {name: made[name] for name in shapes}


def lazy_theirs(rules: Sequence[Rule], arrays: Arrays) -> dict[str, LazyArray]:
    """Like `rules.to_theirs`, read when used; a tensor that is only renamed or copied stays the
    same object, so that a writer can share it.

    Raises:
        CheckpointError: One of ours matches no rule or several, or a foreign tensor would be
            written twice.
    """
    made: dict[str, LazyArray] = {}
    for move in plan(rules, arrays, back=True):
        made.update(_targets(move, arrays, back=True))
    for rule in rules:
        if isinstance(rule, Drop) and rule.make is not None:
            refuse([rule.theirs] if rule.theirs in made else [], "would be made by several rules")
            made[rule.theirs] = _lazy(rule.make(arrays))  # type: ignore[arg-type]
    return made


def _lazy(value: np.ndarray | LazyArray) -> LazyArray:
    if isinstance(value, LazyArray):
        return value
    return LazyArray(tuple(value.shape), value.dtype, lambda: value)


def _targets(move: Move, arrays: Arrays, *, back: bool) -> dict[str, LazyArray]:
    """The lazy results of one move."""
    if isinstance(move.rule, (Drop, Fill)):
        return {}
    if isinstance(move.rule, Rename) and not move.rule.transpose:
        return {move.targets[0]: arrays[move.sources[0]]}
    dtype = arrays[move.sources[0]].dtype
    parts = _Parts(move, arrays, back)
    return {
        name: LazyArray(shape, dtype, lambda name=name: parts.take(name))  # type: ignore[misc]
        for name, shape in zip(move.targets, _shapes(move, arrays, back=back))
    }


class _Parts:
    """Runs a move when its first part is asked for and keeps the others until they are."""

    def __init__(self, move: Move, arrays: Arrays, back: bool):
        self._move, self._arrays, self._back = move, arrays, back
        self._kept: dict[str, np.ndarray] = {}

    def take(self, name: str) -> np.ndarray:
        if name not in self._kept:
            self._kept = dict(run(self._move, self._arrays, back=self._back))  # type: ignore[arg-type]
        return self._kept.pop(name)


def _shapes(move: Move, arrays: Arrays, *, back: bool) -> list[tuple[int, ...]]:
    """Shapes of the targets of a move, from those of its sources."""
    rule = move.rule
    assert not isinstance(rule, (Drop, Fill))
    shapes = [tuple(arrays[name].shape) for name in move.sources]
    if rule.transpose and any(len(shape) != 2 for shape in shapes):
        raise CheckpointError(f"{', '.join(move.sources)}: only a matrix can be transposed")
    if rule.transpose and not back:
        shapes = [shape[::-1] for shape in shapes]
    if not isinstance(rule, Rename):
        first, axis = shapes[0], rule.axis
        if any(len(shape) <= axis for shape in shapes):
            raise CheckpointError(f"{', '.join(move.sources)}: no axis {axis}")
        if isinstance(rule, Split) != back:
            count = len(move.targets)
            sizes = rule.sizes or [first[axis] // count] * count
        else:
            sizes = [sum(shape[axis] for shape in shapes)]
        shapes = [(*first[:axis], size, *first[axis + 1 :]) for size in sizes]
    if rule.transpose and back:
        shapes = [shape[::-1] for shape in shapes]
    return shapes
