"""Mixture files: which data sets are trained on, how often, and what is made of their objects.

A list of entries, as JSON (the original's files) or YAML:

  - {dataset_name: A, task_name: lm, path: A/data, weight: 1.0, incontext_weight: [0.7, 0.3],
     transforms: A/transform.py}

Paths count from the folder of the file. An entry is known by `task_name.dataset_name`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindplm.data.transforms import check_transforms
from mindplm.errors import ConfigError
from mindplm.runtime import log
from mindplm.strict import Source, build, require
from mindplm.yaml_io import parse_yaml

PLATFORM = "PLATFORM_CONFIG_PATH"
"""Variable that may name a JSON file whose `dataset_map` has a prefix for each data set."""


@dataclass(frozen=True)
class Entry:
    """One data set of a mixture."""

    dataset_name: str
    """Name of the data set."""
    task_name: str
    """Losses are reported by it."""
    path: str
    """The data: the folder of a binary data set, a file or a pattern."""
    weight: float = 1.0
    """How often a record is drawn, relative to those of the other entries."""
    incontext_weight: tuple[float, ...] = (1.0,)
    """Weights of showing 0, 1, 2 ... examples with a record."""
    transforms: Any = None
    """Path of a transform script, or a list of declared transforms to draw from."""

    def __post_init__(self) -> None:
        require(self.dataset_name != "" and self.task_name != "", f"{self.name}: an empty name")
        require(self.path != "", f"{self.name}: path is empty")
        require(self.weight > 0, f"{self.name}: weight={self.weight}, expected > 0")
        weights = self.incontext_weight
        require(
            min(weights, default=-1) >= 0 and sum(weights) > 0,
            f"{self.name}: incontext_weight={list(weights)}, expected one weight > 0, none < 0",
        )
        if self.transforms == "" or self.transforms == []:
            object.__setattr__(self, "transforms", None)
        check_transforms(self.transforms, self.name)

    @property
    def name(self) -> str:
        """What the entry is known by."""
        return f"{self.task_name}.{self.dataset_name}"


def read_mixture(path: str | Path) -> list[Entry]:
    """Reads a mixture file.

    Raises:
        ConfigError: It is not there or not a list of entries; the message names the entry. Also if
            the data or the script of an entry is not there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such mixture file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    tree = _parse(text, path)
    if not isinstance(tree, list) or not tree:
        raise ConfigError(f"{path}: expected a list of entries, at least one")
    prefixes = _prefixes()
    entries: list[Entry] = []
    for number, item in enumerate(tree):
        where = f"{path}: entry {number}"
        if not isinstance(item, Mapping):
            raise ConfigError(f"{where}: expected keys and values such as dataset_name")
        entry = build(Entry, item, "", Source(where))
        if entry.name in [other.name for other in entries]:
            raise ConfigError(f"{where}: {entry.name} was named before")
        entries.append(_placed(entry, path.parent, prefixes, where))
    return entries


def _parse(text: str, path: Path) -> Any:
    if path.suffix.lower() in (".yaml", ".yml"):
        return parse_yaml(text, str(path))
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: broken JSON: {error}") from None


def _prefixes() -> Mapping[str, str]:
    name = os.environ.get(PLATFORM)
    if not name:
        return {}
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))["dataset_map"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{PLATFORM}={name}: expected JSON with the key dataset_map") from None


def _placed(entry: Entry, base: Path, prefixes: Mapping[str, str], where: str) -> Entry:
    """The entry with paths that count from here; they must be there."""
    if entry.dataset_name in prefixes:
        base = base / prefixes[entry.dataset_name]
    place = base / entry.path if "embedded:" not in entry.path else Path(entry.path)
    pattern = any(mark in entry.path for mark in "*?[")
    if not pattern and "embedded:" not in entry.path and not place.exists():
        raise ConfigError(f"{where} ({entry.name}): path {place}: no such file or folder")
    transforms = entry.transforms
    if isinstance(transforms, str):
        script = base / transforms
        if not script.is_file():
            raise ConfigError(f"{where} ({entry.name}): transforms {script}: no such script")
        transforms = str(script)
    return replace(entry, path=str(place), transforms=transforms)


class MixtureFile:
    """A mixture file that is watched: what changes in it takes effect while a run goes on.

    Attributes:
        path: The file.
        entries: What it says, or said when it last could be used.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._seen_ns = self._time_ns()
        self.entries = read_mixture(self.path)

    def refresh(self) -> bool:
        """Reads the file again if it is newer; whether the entries changed.

        What cannot be used is reported once and leaves the entries as they were.
        """
        time_ns = self._time_ns()
        if time_ns == self._seen_ns:
            return False
        self._seen_ns = time_ns
        try:
            entries = read_mixture(self.path)
        except ConfigError as error:
            log.warning("%s; the mixture stays as it was", error)
            return False
        if entries == self.entries:
            return False
        for change in changes(self.entries, entries):
            log.info("%s: %s", self.path, change)
        self.entries = entries
        return True

    def _time_ns(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return -1


def changes(old: list[Entry], new: list[Entry]) -> list[str]:
    """What differs between two states of a mixture, in words."""
    before = {entry.name: entry for entry in old}
    words = []
    for entry in new:
        known = before.pop(entry.name, None)
        if known is None:
            words.append(f"{entry.name} was added")
            continue
        for key in ("path", "weight", "incontext_weight", "transforms"):
            was, now = getattr(known, key), getattr(entry, key)
            if was != now:
                words.append(f"{key} of {entry.name} was {was}, is {now}")
    return words + [f"{name} was removed" for name in before]
