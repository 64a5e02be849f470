"""Folders of packed rows: MindRecord files, an index, a report, and what they were made from.

  train.mindrecord0, .db ...   rows; for CPM-Bee `row` (see `compact`), other
                               families store other arrays; int32, without padding
  index.npz                    per row: length, num_targets, num_chars, pairs of the ext table
  rows.json                    sizes, counts, task names, fingerprint
  report.json                  what was read and what became of it
  manifest.json                sizes and checksums of all files

The folder appears under its name when it is whole. Its files keep their names: a MindRecord file
stores its own and cannot be renamed, its folder can.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mindplm import files
from mindplm.data.bee_rows import ROWS
from mindplm.data.kinds import RowKind
from mindplm.data.packing import Marks, RowShape
from mindplm.errors import CheckpointError, DataError

FORMAT = 2
"""To be raised when rows of the same sources become different, as by new wording of tasks."""
FACTS = "rows.json"
INDEX = "index.npz"
REPORT = "report.json"
RECORDS = "train.mindrecord{}"
_AGAIN = "prepare the data again"


class Index:
    """What is known of each row without reading it.

    Attributes:
        length: Tokens.
        num_targets: Predicted tokens, end marks included.
        num_chars: Characters of the predicted texts.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.length = arrays["length"]
        self.num_targets = arrays["num_targets"]
        self.num_chars = arrays["num_chars"]
        self._ext_start = arrays["ext_start"]
        self._ext_ids = arrays["ext_ids"]
        self._ext_subs = arrays["ext_subs"]

    def __len__(self) -> int:
        return len(self.length)

    def pairs(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids and subs that a row brings to the extension table."""
        part = slice(self._ext_start[row], self._ext_start[row + 1])
        return self._ext_ids[part], self._ext_subs[part]


@dataclass(frozen=True)
class RowFolder:
    """A folder that was opened.

    Attributes:
        path: The folder.
        facts: Contents of rows.json.
        index: What is known of each row.
        kind: What its rows are.
    """

    path: Path
    facts: dict[str, Any]
    index: Index
    kind: RowKind = ROWS

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> RowShape:
        """Sizes that its batches have."""
        return RowShape(**self.facts["shape"])

    @property
    def marks(self) -> Marks:
        """The numbers of the tokenizer that targets depend on."""
        return SimpleNamespace(**self.facts["marks"])

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks by the numbers in the rows."""
        return self.facts["task_names"]

    def read(self, rows: np.ndarray, *, threads: int = 2) -> Iterator[Any]:
        """Reads rows by their numbers, in the order given, repeated ones too."""
        import mindspore.dataset as ds

        paths = [str(self.path / name) for name in self.facts["records"]]
        # MindRecord takes at most as many numbers at once as there are rows.
        for start in range(0, len(rows), len(self)):
            data = ds.MindDataset(
                paths,
                columns_list=list(self.kind.stored),
                sampler=ds.SubsetSampler(rows[start : start + len(self)].tolist()),
                num_parallel_workers=min(threads, os.cpu_count() or 1),
            )
            try:
                for values in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
                    yield self.kind.row(dict(zip(self.kind.stored, values)))
            except RuntimeError as error:
                raise DataError(f"{self.path}: cannot be read: {first_error(error)}") from None


def open_folder(folder: str | Path, *, kind: RowKind = ROWS, verify: bool = True) -> RowFolder:
    """Opens a folder of rows.

    Args:
        folder: The folder.
        kind: What its rows must be.
        verify: Compare the checksum of every file first; a damaged MindRecord file can crash
            the process that reads it.

    Raises:
        DataError: It is not there, incomplete, damaged or of another format.
    """
    path = Path(folder)
    facts = read_manifest(path)
    found = facts.get("kind", ROWS.name)
    if found != kind.name:
        raise DataError(f"{path}: holds rows of {found}, expected those of {kind.name}; {_AGAIN}")
    verify_folder(path, None if verify else (FACTS, INDEX))
    with np.load(path / INDEX) as arrays:
        index = Index(dict(arrays))
    return RowFolder(path, facts, index, kind)


def verify_folder(folder: Path, names: Sequence[str] | None = None) -> None:
    """Compares files of a folder of rows, all if none are named, with their checksums.

    Raises:
        DataError: One is missing or damaged.
    """
    try:
        files.verify(folder, names)
    except CheckpointError as error:
        raise DataError(f"{error}; {_AGAIN}") from None


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The contents of rows.json.

    Raises:
        DataError: There is none that can be used.
    """
    path = Path(folder) / FACTS
    if not path.parent.is_dir():
        raise DataError(f"{folder}: no such folder of prepared rows; run preprocess first")
    if not path.is_file():
        raise DataError(f"{path}: missing, so the folder holds no prepared rows")
    try:
        files.verify(path.parent, [FACTS])
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (CheckpointError, KeyError) as error:
        raise DataError(f"{error}; {_AGAIN}") from None
    if facts["format"] != FORMAT:
        raise DataError(f"{path}: has format {facts['format']}, expected {FORMAT}; {_AGAIN}")
    return facts


def first_error(error: RuntimeError) -> str:
    """The line that matters of MindSpore's long messages."""
    lines = [line for line in str(error).splitlines() if "[ERROR]" in line]
    return (lines or [str(error)])[0].replace("[ERROR]", "").strip()
