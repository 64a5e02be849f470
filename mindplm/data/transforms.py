"""Transforms: how the objects of a data set become records, by a script or by declaration.

A script is a Python file with `transform(data, num_sample, r)`: the object, how many examples are
shown beside it, and a `random.Random`; it returns the record. Main record and examples of an
instance get equal generators, so they share the wording that is drawn.

A declaration is a record whose leaves are `$a.b` (what stands there in the object) or constants.
`*` in a source ranges over all keys, and the target has as many `*`, which become those keys.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Union

from mindplm.data.cpm_bee import RecordError
from mindplm.errors import ConfigError

Transform = Callable[[Any, int, random.Random], Any]
Transforms = Union[str, Sequence[Mapping[str, Any]]]
_STAR = "*"


class Script:
    """A transform script; it is read again when the file becomes newer.

    Args:
        path: The Python file.

    Raises:
        ConfigError: It is not there, cannot be run, or defines no function `transform`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._seen_ns = -1
        self._function: Callable[[Any, int, random.Random], Any]
        self.refresh()

    def refresh(self) -> bool:
        """Reads the file again if it changed; whether it did."""
        try:
            time_ns = self.path.stat().st_mtime_ns
            if time_ns == self._seen_ns:
                return False
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: no such transform script") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path}: cannot be read: {error}") from None
        space: dict[str, Any] = {"__name__": "transform", "__file__": str(self.path)}
        try:
            exec(compile(text, str(self.path), "exec"), space)
        except Exception as error:
            raise ConfigError(f"{self._place(error)}: {_words(error)}") from None
        if not callable(space.get("transform")):
            raise ConfigError(f"{self.path}: defines no function transform(data, num_sample, r)")
        self._function, self._seen_ns = space["transform"], time_ns
        return True

    def __call__(self, data: Any, num_sample: int, rng: random.Random) -> Any:
        """The record of an object.

        Raises:
            RecordError: The script failed.
        """
        try:
            return self._function(data, num_sample, rng)
        except Exception as error:
            raise RecordError(
                f"{self._place(error)}: {_words(error)}", reason="failed transform"
            ) from None

    def _place(self, error: Exception) -> str:
        """file:line of the script where an error arose."""
        line = error.lineno if isinstance(error, SyntaxError) else None
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(self.path):
                line = trace.tb_lineno
            trace = trace.tb_next
        return f"{self.path}:{line}" if line else str(self.path)


def check_transforms(transforms: Transforms | None, where: str) -> None:
    """Checks the form of declarations.

    Raises:
        ConfigError: A transform that can never work.
    """
    if transforms is None or isinstance(transforms, str):
        return
    if not isinstance(transforms, (list, tuple)):
        raise ConfigError(f"{where}: transforms must be a script's path or a list of records")
    for number, declared in enumerate(transforms):
        place = f"{where}: transforms.{number}"
        if not isinstance(declared, Mapping):
            raise ConfigError(f"{place}: expected a record such as {{input: $text}}")
        for target, source in _leaves(declared, ()):
            if not isinstance(source, str):
                raise ConfigError(f"{place}: {'.'.join(target)} is no text")
            stars = target.count(_STAR)
            if not source.startswith("$") and stars:
                raise ConfigError(f"{place}: {'.'.join(target)} has a * but its value is constant")
            if source.startswith("$") and source[1:].split(".").count(_STAR) != stars:
                raise ConfigError(f"{place}: {'.'.join(target)} and {source} differ in their *")


def apply(declared: Mapping[str, Any], data: Any, *, parity: bool = False) -> dict[str, Any]:
    """The record that a declaration makes of an object.

    Args:
        declared: The declaration.
        data: The object.
        parity: Fail as the original does where the target is deeper than one level.

    Raises:
        RecordError: A source path that the object does not have, stars that do not match, two
            targets in one place.
    """
    record: dict[str, Any] = {}
    for target, source in _leaves(declared, ()):
        if not isinstance(source, str) or not source.startswith("$"):
            if _STAR in target:
                raise _wrong(f"{'.'.join(target)} has a * but its value is constant")
            _put(record, target, source, parity)
            continue
        parts = source[1:].split(".")
        if parts.count(_STAR) != target.count(_STAR):
            raise _wrong(f"{'.'.join(target)} and {source} differ in their *")
        for value, keys in _values(data, parts, source):
            names = iter(keys)
            place = [next(names) if part == _STAR else part for part in target]
            _put(record, place, value, parity)
    return record


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[list[str], Any]]:
    """Targets and sources; a dot in a key is a step too."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, (*path, *str(key).split(".")))
    else:
        yield list(path), value


def _values(data: Any, parts: Sequence[str], source: str) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """What a source path stands for, with the keys that its stars matched."""
    if not parts:
        yield data, ()
        return
    if not isinstance(data, Mapping):
        raise _wrong(f"{source}: {parts[0]!r} is asked of {data!r}, which has no keys")
    if parts[0] == _STAR:
        for key, child in data.items():
            for value, keys in _values(child, parts[1:], source):
                yield value, (key, *keys)
        return
    if parts[0] not in data:
        known = ", ".join(map(str, data)) or "none"
        raise RecordError(f"{source}: there is no {parts[0]!r} (keys: {known})", reason="no field")
    yield from _values(data[parts[0]], parts[1:], source)


def _put(record: dict[str, Any], path: Sequence[str], value: Any, parity: bool) -> None:
    node = record
    for part in path[:-1]:
        if parity and part not in node:
            raise RecordError(f"{'.'.join(path)}: there is no {part!r}", reason="no field")
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise _wrong(f"{'.'.join(path)}: another target puts a text at {part!r}")
    node[path[-1]] = value


def _wrong(message: str) -> RecordError:
    return RecordError(f"transform {message}", reason="failed transform")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
