"""How many graphs this process has compiled."""

from __future__ import annotations

import importlib
from typing import Any


def _api() -> Any:
    for name in ("mindspore.graph.api", "mindspore.common.api"):  # 2.10, 2.9
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("MindSpore keeps its compiled graphs elsewhere in this version")


def num_graphs() -> int:
    """Graphs of functions under ms.jit, and of cells that were called, in the whole process.

    MindSpore adds an entry to these two tables each time that it compiles, and looks there whether
    it must.
    """
    api = _api()
    return len(api.ms_compile_cache) + sum(map(len, api.cells_compile_cache.values()))


class Graphs:
    """Counts what is compiled inside a with block.

    Cells that die take their entries along, so the block must keep its cells.
    """

    def __enter__(self) -> Graphs:
        self._before = num_graphs()
        return self

    def __exit__(self, *error: object) -> None:
        self._after = num_graphs()

    @property
    def count(self) -> int:
        return self._after - self._before
