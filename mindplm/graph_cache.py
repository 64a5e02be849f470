"""Compiled graphs that are kept between runs, in a folder for each that can be told apart.

MindSpore numbers the graphs that a process compiles and gives the file of that number back to the
next process, whatever its shapes and constants are: with other settings it would silently compute
something else. So the folder is named by everything that makes the graphs, and only the first graph
of a process is kept, and one that always follows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

_ENABLE, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


class GraphCache:
    """What a network, or a training step, keeps.

    A kept graph finds its weights again by name in the cell that is called: it must be a cell, not
    a function.

    Args:
        folder: Where all caches are; "": none is kept.
        facts: All settings that the graphs depend on, as plain values.
        parameters: All that the graphs use.
    """

    _opened: ClassVar[bool] = False

    def __init__(self, folder: str, facts: Any, parameters: Iterable[Any] = ()):
        self.folder = folder
        self._facts = facts
        self._parameters = [[p.name, list(p.shape), str(p.dtype)] for p in parameters]
        self._may_follow = False

    @contextlib.contextmanager
    def first(self, *inputs: Any) -> Iterator[None]:
        """The graph that is compiled inside is read, or kept, if it is the process' first.

        Args:
            inputs: Tensors that the graph is called with; only shapes and types count.
        """
        if not self.folder or GraphCache._opened or os.environ.get(_ENABLE):
            yield
            return
        GraphCache._opened = self._may_follow = True
        place = Path(self.folder) / self.key(*inputs)
        place.mkdir(parents=True, exist_ok=True)
        os.environ[_PATH] = str(place.resolve())  # MindSpore reads it once in a process
        with _enabled():
            yield

    @contextlib.contextmanager
    def second(self) -> Iterator[None]:
        """The same for the graph that follows the first, if nothing else came between."""
        may, self._may_follow = self._may_follow, False
        with _enabled() if may else contextlib.nullcontext():
            yield

    def close(self) -> None:
        """What follows is not what usually follows."""
        self._may_follow = False

    def key(self, *inputs: Any) -> str:
        """Name of the folder for these inputs."""
        import mindspore as ms

        facts = {
            "facts": self._facts,
            "parameters": self._parameters,
            "inputs": [[list(x.shape), str(x.dtype)] for x in inputs],
            "versions": [ms.__version__, _sources()],
            "device": ms.get_context("device_target"),
            "mode": ms.get_context("mode"),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _enabled() -> Iterator[None]:
    os.environ[_ENABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_ENABLE]


@cache
def _sources() -> str:
    """Checksum of this package: graphs are made of its code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
