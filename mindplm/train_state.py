"""What training needs beside the weights to go on bitwise, in the folder of a checkpoint.

train/state.json, train/arrays...   optimizer, step, data position
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import files, tensors

STATE, _ARRAYS = "train/state.json", "train/arrays"


@dataclass
class TrainState:
    """The state of a run at one step.

    Attributes:
        step: Finished optimizer steps.
        arrays: Moments, master weights, loss scale ...
        meta: Anything that JSON holds: position in the data, random state ...
    """

    step: int
    arrays: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def write(self, writer: files.FolderWriter, shard_bytes: int = tensors.SHARD_BYTES) -> None:
        """Writes it into a folder that is being built."""
        tensors.write_arrays(writer, _ARRAYS, self.arrays, shard_bytes)
        state = json.dumps({"step": self.step, "meta": self.meta}, ensure_ascii=False)
        writer.write(STATE, [state.encode()])


def open_arrays(folder: Path) -> dict[str, tensors.LazyArray]:
    """The arrays of the state in a folder, read when they are used."""
    return tensors.open_arrays(folder, _ARRAYS, widen=True)


def read_state(folder: Path, names: Collection[str] | None = None) -> TrainState | None:
    """The state in a folder, None if there is none; of the arrays only some, if they are named."""
    path = folder / STATE
    if not path.is_file():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    found = open_arrays(folder)
    arrays = {n: np.asarray(a) for n, a in found.items() if names is None or n in names}
    return TrainState(step=state["step"], arrays=arrays, meta=state["meta"])
