"""How many graphs this process has compiled."""

from __future__ import annotations

from mindspore.graph import api  # not public, the same in 2.9 and 2.10


def num_graphs() -> int:
    """Graphs of functions under ms.jit, and of cells that were called, in the whole process.

    MindSpore adds an entry to these two tables each time that it compiles, and looks there whether
    it must.
    """
    return len(api.ms_compile_cache) + sum(map(len, api.cells_compile_cache.values()))


class Graphs:
    """Counts what is compiled inside a with block.

    Cells that die take their entries along, so the cells of the block must outlive it.
    """

    def __enter__(self) -> Graphs:
        self._before = num_graphs()
        return self

    def __exit__(self, *error: object) -> None:
        self._after = num_graphs()

    @property
    def count(self) -> int:
        return self._after - self._before
