"""How records of a source are made: its transforms, and the examples shown with a record."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data import transforms
from mindplm.data.cpm_bee import RecordError
from mindplm.errors import ConfigError

if TYPE_CHECKING:
    from mindplm.data.draw import Work


class RecordPlan:
    """What is drawn for each record of a source.

    Args:
        source: The source; its `transforms` and `incontext_weight` are used.

    Raises:
        ConfigError: A transform that cannot be used.
    """

    def __init__(self, source: SourceConfig):
        where = f"data source {source.path}"
        transforms.check_transforms(source.transforms, where)
        weights = np.array(source.incontext_weight, np.float64)
        self._counts = np.cumsum(weights) / weights.sum()
        self._declared: list[Mapping[str, Any]] = []
        self._script: transforms.Script | None = None
        if isinstance(source.transforms, str):
            self._script = transforms.Script(source.transforms)
        elif source.transforms is not None:
            self._declared = list(source.transforms)
        elif len(weights) > 1 and set(source.tasks) != {"record"}:
            raise ConfigError(
                f"{where}: incontext_weight={list(source.incontext_weight)} needs records: "
                "tasks: {record: 1}, or transforms"
            )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._script is not None:  # functions of a script cannot be sent to a process
            state["_script"] = str(self._script.path)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._script, str):
            self._script = transforms.Script(self._script)

    @property
    def shows_examples(self) -> bool:
        """Whether other records of the source may be shown."""
        return len(self._counts) > 1

    def draw(self, rng: np.random.Generator) -> RecordDraw:
        """What is the same for a record and its examples."""
        count = 0
        if self.shows_examples:
            count = int(np.searchsorted(self._counts, rng.random(), side="right"))
        if self._script is not None:
            script, seed = self._script, int(rng.integers(1 << 62))
            return RecordDraw(count, lambda data: script(data, count, random.Random(seed)))
        if self._declared:
            chosen = self._declared[int(rng.integers(len(self._declared)))]
            return RecordDraw(count, lambda data: transforms.apply(chosen, data))
        return RecordDraw(count, lambda data: data)


class RecordDraw:
    """How one record and its examples are made.

    Args:
        count: How many examples are wanted.
        change: Makes a record of an object.
    """

    def __init__(self, count: int, change: Callable[[Any], Any]):
        self._count = count
        self._change = change

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The record of an object, or None if the transform leaves it out.

        Raises:
            RecordError: The transform failed, or gives no record.
        """
        record = self._change(data)
        if record is not None and not isinstance(record, Mapping):
            kind = type(record).__name__
            message = f"the transform gives a value of type {kind}; expected a record"
            raise RecordError(message, reason="failed transform")
        return record

    def examples(self, work: Work, rng: np.random.Generator) -> list[int]:
        """Numbers of the documents among `work.others` that are shown, all different."""
        if not self._count:
            return []
        able = [i for i, other in enumerate(work.others) if other is not work.document]
        return [able[i] for i in rng.permutation(len(able))[: self._count].tolist()]
