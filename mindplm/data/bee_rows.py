"""CPM-Bee's rows: nested records as packed columns with segment relations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig
from mindplm.data.compact import Compact, unflatten
from mindplm.data.draw import Drawer, Settings
from mindplm.data.kinds import Draws, RowKind
from mindplm.data.packing import COLUMNS, Marks, OpenRow, Packer, Row, RowShape, collate
from mindplm.data.tasks import TASKS


def _settings(config: RunConfig, split: str) -> Settings:
    settings = Settings.of(config.data, seed=config.runtime.seed, max_depth=config.model.max_depth)
    if split == "train":
        return settings
    return dataclasses.replace(settings, repeat=1)


def _row(arrays: Mapping[str, np.ndarray]) -> Row:
    return Row(*unflatten(arrays["row"]))


class _OpenCompactRow(OpenRow):
    def close(self) -> Any:
        return Compact.joined(self.instances)


def _packer(num_rows: int, shape: RowShape) -> Packer:
    return Packer(num_rows, shape, _OpenCompactRow)


def _collate(
    rows: Sequence[Row], *, num_rows: int, shape: RowShape, marks: Marks, draws: Draws
) -> dict[str, Any]:
    return collate(rows, num_rows=num_rows, shape=shape, marks=marks, ext=draws.ext)


def _numbers(shape: RowShape) -> int:
    return 6 * shape.seq_len + shape.max_rel + 4


ROWS = RowKind(
    name="cpm_bee",
    tasks=TASKS,
    usual={"lm": 1.0, "infill": 1.0},
    columns=COLUMNS,
    stored=("row",),
    marks=("vocab_size", "bos_id", "eos_id"),
    settings=_settings,
    drawer=Drawer,
    packer=_packer,
    row=_row,
    collate=_collate,
    numbers=_numbers,
)
