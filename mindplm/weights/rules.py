"""Invertible rules between another project's tensor names and ours; strict in both directions.

In a name `{i}` stands for a layer number, the same one in all names of a rule. Arrays may come from
any mapping: each tensor is fetched once, when its rule runs, so a lazy mapping stays lazy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Union

import numpy as np

from mindplm.errors import CheckpointError

_SHOWN = 8
_NUMBER = "{i}"


@dataclass(frozen=True)
class Rename:
    """One tensor under another name; `transpose` swaps its two axes."""

    theirs: str
    ours: str
    transpose: bool = False


@dataclass(frozen=True)
class Split:
    """One of theirs is cut along `axis` into several of ours (after the transpose, if any).

    `sizes` are the lengths of the parts along the axis; None means equal parts.
    """

    theirs: str
    ours: Sequence[str]
    axis: int = 0
    transpose: bool = False
    sizes: Sequence[int] | None = None


@dataclass(frozen=True)
class Stack:
    """Several of theirs are laid end to end along `axis` into one of ours (each transposed first).

    `sizes` are the lengths of theirs along the axis, needed on the way back; None means equal.
    """

    theirs: Sequence[str]
    ours: str
    axis: int = 0
    transpose: bool = False
    sizes: Sequence[int] | None = None


@dataclass(frozen=True)
class Drop:
    """A tensor of theirs that we do not keep; it may also be absent.

    `make` builds it from our weights on the way back (for instance a copy of a tied embedding);
    without it the tensor is not written.
    """

    theirs: str
    make: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None


@dataclass(frozen=True)
class Fill:
    """One of ours that the foreign checkpoint does not have; `make` builds it from its shape."""

    ours: str
    make: Callable[[tuple[int, ...]], np.ndarray]
    theirs: tuple[str, ...] = ()


Rule = Union[Rename, Split, Stack, Drop, Fill]


@dataclass(frozen=True)
class Move:
    """One rule with its layer number filled in: where to read, how, where to write."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def to_ours(
    rules: Sequence[Rule], arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Converts a whole set of foreign tensors into ours.

    Args:
        rules: The family's rules.
        arrays: Foreign name to array.
        shapes: Name to shape of every tensor that our model has.

    Returns:
        Our name to array, in the order of `shapes`; dtypes are kept.

    Raises:
        CheckpointError: A foreign tensor matches no rule or several, one of ours is not
            produced or produced twice, or a shape differs.
    """
    made = dict(iter_ours(rules, arrays, shapes))
    return {name: made[name] for name in shapes}


def iter_ours(
    rules: Sequence[Rule], arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Like `to_ours` but one tensor at a time; all names are checked before the first is read."""
    moves = plan(rules, arrays, back=False)
    made = {target for move in moves for target in move.targets}
    fills = [rule for rule in rules if isinstance(rule, Fill) and rule.ours in shapes]
    made |= {rule.ours for rule in fills}
    refuse([n for n in shapes if n not in made], "of our model would get no value")
    refuse([n for n in made if n not in shapes], "have no place in a model of this config")
    for move in moves:
        for name, array in run(move, arrays, back=False):
            if tuple(array.shape) != tuple(shapes[name]):
                raise CheckpointError(
                    f"{name} must have shape {tuple(shapes[name])}, but {' + '.join(move.sources)}"
                    f" gives {tuple(array.shape)}"
                )
            yield name, array
    for rule in fills:
        yield rule.ours, rule.make(tuple(shapes[rule.ours]))


def to_theirs(rules: Sequence[Rule], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts our tensors back to the foreign names; the inverse of `to_ours`.

    Raises:
        CheckpointError: One of ours matches no rule or several, or a foreign tensor would be
            written twice.
    """
    return dict(iter_theirs(rules, arrays))


def iter_theirs(
    rules: Sequence[Rule], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Like `to_theirs` but one tensor at a time."""
    moves = plan(rules, arrays, back=True)
    for move in moves:
        yield from run(move, arrays, back=True)
    written = {target for move in moves for target in move.targets}
    for rule in rules:
        if isinstance(rule, Drop) and rule.make is not None:
            refuse(
                [rule.theirs] if rule.theirs in written else [], "would be made by several rules"
            )
            yield rule.theirs, np.asarray(rule.make(arrays), order="C")


def plan(rules: Sequence[Rule], names: Iterable[str], *, back: bool) -> list[Move]:
    """Assigns every source name to its one rule and fills in the layer numbers."""
    patterns = [
        (index, _regex(name))
        for index, rule in enumerate(rules)
        for name in _sides(rule, back)[0]
        if not (back and isinstance(rule, Drop))
    ]
    known = set(names)
    found: set[tuple[int, str | None]] = set()
    unmatched, doubled = [], []
    for name in known:
        hits = [(index, hit) for index, regex in patterns if (hit := regex.fullmatch(name))]
        if not hits:
            unmatched.append(name)
        elif len(hits) > 1:
            doubled.append(f"{name} ({'; '.join(_title(rules[index]) for index, _ in hits)})")
        else:
            index, hit = hits[0]
            found.add((index, hit.groupdict().get("i")))
    refuse(unmatched, "matched no rule")
    refuse(doubled, "matched several rules")
    moves = []
    for index, number in sorted(found, key=_order):
        sources, targets = (_fill(side, number) for side in _sides(rules[index], back))
        absent = [source for source in sources if source not in known]
        refuse(absent, f"are missing for the rule {_title(rules[index])}")
        moves.append(Move(rules[index], sources, targets))
    made = Counter(target for move in moves for target in move.targets)
    refuse([name for name, times in made.items() if times > 1], "would be made by several rules")
    return moves


def run(
    move: Move, arrays: Mapping[str, np.ndarray], *, back: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the sources of a move and yields its targets."""
    rule = move.rule
    if isinstance(rule, (Drop, Fill)):
        return
    parts = [np.asarray(arrays[name]) for name in move.sources]
    if rule.transpose and any(part.ndim != 2 for part in parts):
        raise CheckpointError(f"{', '.join(move.sources)}: only a matrix can be transposed")
    if rule.transpose and not back:
        parts = [part.T for part in parts]
    if not isinstance(rule, Rename):
        splits = isinstance(rule, Split) != back
        parts = _cut(parts[0], move, rule) if splits else [_join(parts, move, rule.axis)]
    if rule.transpose and back:
        parts = [part.T for part in parts]
    for name, part in zip(move.targets, parts):
        yield name, np.asarray(part, order="C")


def _cut(whole: np.ndarray, move: Move, rule: Split | Stack) -> list[np.ndarray]:
    count, length = len(move.targets), whole.shape[rule.axis]
    if rule.sizes is None and length % count:
        raise CheckpointError(
            f"{move.sources[0]}: axis {rule.axis} of shape {whole.shape} does not divide into "
            f"{count} equal parts ({', '.join(move.targets)})"
        )
    sizes = [length // count] * count if rule.sizes is None else list(rule.sizes)
    if len(sizes) != count or sum(sizes) != length:
        raise CheckpointError(
            f"{move.sources[0]}: axis {rule.axis} of shape {whole.shape} is not made of parts "
            f"{sizes} ({', '.join(move.targets)})"
        )
    return np.split(whole, np.cumsum(sizes)[:-1], axis=rule.axis)


def _join(parts: Sequence[np.ndarray], move: Move, axis: int) -> np.ndarray:
    if len({part.dtype for part in parts}) > 1:
        raise CheckpointError(f"{', '.join(move.sources)} have different dtypes")
    try:
        return np.concatenate(parts, axis=axis)
    except ValueError as error:
        shapes = ", ".join(f"{n} {p.shape}" for n, p in zip(move.sources, parts))
        raise CheckpointError(f"cannot be joined along axis {axis}: {shapes}") from error


def _sides(rule: Rule, back: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names to read, names to write) of a rule."""
    if isinstance(rule, Fill):
        return ((rule.ours,), ()) if back else ((), ())
    theirs = (rule.theirs,) if isinstance(rule.theirs, str) else tuple(rule.theirs)
    if isinstance(rule, Drop):
        return theirs, ()
    ours = (rule.ours,) if isinstance(rule.ours, str) else tuple(rule.ours)
    return (ours, theirs) if back else (theirs, ours)


def _regex(name: str) -> re.Pattern[str]:
    head, *tail = (re.escape(part) for part in name.split(_NUMBER))
    if not tail:
        return re.compile(head)
    return re.compile(head + r"(?P<i>0|[1-9]\d*)" + r"(?P=i)".join(tail))


def _fill(names: tuple[str, ...], number: str | None) -> tuple[str, ...]:
    return names if number is None else tuple(n.replace(_NUMBER, number) for n in names)


def _order(key: tuple[int, str | None]) -> tuple[int, int]:
    """Layer by layer, so that a reader goes through a file in about its own order."""
    return (-1 if key[1] is None else int(key[1]), key[0])


def _title(rule: Rule) -> str:
    theirs = rule.theirs if isinstance(rule.theirs, str) else ", ".join(rule.theirs)
    return f"{type(rule).__name__} {theirs}"


def refuse(names: Sequence[str], why: str) -> None:
    """Raises if there is any name, naming the first few."""
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise CheckpointError(f"{len(names)} tensor(s) {why}: {shown}{more}")
