"""CPM-Bee's rows: nested records as packed columns with segment relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig
from mindplm.data.draw import Drawer, Settings
from mindplm.data.instances import TOKEN_COLUMNS
from mindplm.data.kinds import Draws, RowKind
from mindplm.data.packing import COLUMNS, Marks, Packer, Row, RowShape, collate
from mindplm.data.tasks import TASKS


def _settings(config: RunConfig, split: str) -> Settings:
    settings = Settings.of(config.data, seed=config.runtime.seed, max_depth=config.model.max_depth)
    if split == "train":
        return settings
    return Settings(settings.shape, 1, settings.seed, settings.max_depth)


def _row(arrays: Mapping[str, np.ndarray]) -> Row:
    tokens = arrays["tokens"].reshape(len(TOKEN_COLUMNS), -1)
    return Row(tokens, arrays["segment_rel"], arrays["task_ids"])


def _collate(
    rows: Sequence[Row], *, num_rows: int, shape: RowShape, marks: Marks, draws: Draws
) -> dict[str, Any]:
    return collate(rows, num_rows=num_rows, shape=shape, marks=marks, ext=draws.ext)


def _numbers(shape: RowShape) -> int:
    return len(TOKEN_COLUMNS) * shape.seq_len + shape.max_rel


ROWS = RowKind(
    name="cpm_bee",
    tasks=TASKS,
    usual={"lm": 1.0, "infill": 1.0},
    columns=COLUMNS,
    stored=("tokens", "segment_rel", "task_ids"),
    marks=("vocab_size", "bos_id", "eos_id"),
    settings=_settings,
    drawer=Drawer,
    packer=Packer,
    row=_row,
    collate=_collate,
    numbers=_numbers,
)
