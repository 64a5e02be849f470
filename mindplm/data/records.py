"""Folders of packed rows: MindRecord files, an index, a report, and what they were made from.

  train.mindrecord0, .db ...   rows: `tokens` (the token columns one after the other),
                               `segment_rel`, `task_ids`; int32, without padding (so for CPM-Bee;
                               other families store other arrays)
  index.npz                    per row: length, num_targets, num_chars, pairs of the ext table
  rows.json                    sizes, counts, task names, fingerprint
  report.json                  what was read and what became of it
  manifest.json                sizes and checksums of all files

The folder appears under its name when it is whole. Its files keep their names: a MindRecord file
stores its own and cannot be renamed, its folder can.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping
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

FORMAT = 1
"""To be raised when rows of the same sources become different, as by new wording of tasks."""
FACTS = "rows.json"
INDEX = "index.npz"
REPORT = "report.json"
RECORDS = "train.mindrecord{}"
_FILE_BYTES = 1 << 29
_HEADER_BYTES = 1 << 20
_PAGE_BYTES = 1 << 22
_ROWS_A_WRITE = 256
_MIN_FREE_BYTES = 16 << 20
"""MindRecord refuses to write when little more than 10 MB are left."""
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
                raise DataError(f"{self.path}: cannot be read: {_first_error(error)}") from None


@contextlib.contextmanager
def new_rows(
    folder: str | Path, shape: RowShape, marks: Any, kind: RowKind = ROWS
) -> Iterator[RowWriter]:
    """Builds a folder of rows, which appears when the block ends and `finish` was called.

    Args:
        folder: The folder; one of rows that is there already is replaced.
        shape: Sizes of the batches.
        marks: Usually the tokenizer.
        kind: What the rows are.

    Raises:
        DataError: The folder cannot be written; nothing new stays then.
    """
    target = Path(folder)
    empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not empty and not (target / FACTS).is_file():
        raise DataError(f"{target}: exists and holds no prepared rows; name another folder")
    try:
        with files.new_folder(target, _MIN_FREE_BYTES) as builder:
            writer = RowWriter(target, builder, shape, marks, kind)
            yield writer
            assert writer.finished, "rows without facts"
    except CheckpointError as error:
        raise DataError(str(error)) from None
    except PermissionError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from None


class RowWriter:
    """Writes rows into a folder that is being built; made by `new_rows`."""

    def __init__(
        self,
        target: Path,
        builder: files.FolderWriter,
        shape: RowShape,
        marks: Any,
        kind: RowKind = ROWS,
    ):
        self.finished = False
        self._kind = kind
        self._schema = {name: {"type": "int32", "shape": [-1]} for name in kind.stored}
        self._target = target
        self._builder = builder
        self._shape = shape
        self._marks = {name: getattr(marks, name) for name in kind.marks}
        self._names: list[str] = []
        self._writer: Any = None
        self._bytes = 0
        self._waiting: list[dict[str, np.ndarray]] = []
        self._index = {
            name: array("q") for name in ("length", "num_targets", "num_chars", "ext_count")
        }
        self._pairs = {"ext_ids": array("i"), "ext_subs": array("i")}

    def add(self, row: Any) -> None:
        """Writes a row."""
        values = row.arrays()
        self._waiting.append(values)
        self._bytes += sum(4 * v.size for v in values.values())
        ids, subs = row.pairs()
        numbers = (len(row), row.num_targets, row.num_chars, len(ids))
        for name, number in zip(self._index, numbers):
            self._index[name].append(number)
        self._pairs["ext_ids"].extend(ids.tolist())
        self._pairs["ext_subs"].extend(subs.tolist())
        if len(self._waiting) >= _ROWS_A_WRITE:
            self._write()
            if self._bytes >= _FILE_BYTES:
                self._close_file()

    def finish(self, report: Mapping[str, Any], **facts: Any) -> None:
        """Writes what belongs to the rows.

        Args:
            report: Becomes report.json.
            facts: Further entries of rows.json.
        """
        self._write()
        self._close_file()
        counts = np.array(self._index.pop("ext_count"), np.int64)
        columns = {name: np.array(values, np.int32) for name, values in self._index.items()}
        pairs = {name: np.array(values, np.int32) for name, values in self._pairs.items()}
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        np.savez(self._builder.folder / INDEX, **columns, **pairs, ext_start=start)
        facts = {
            "format": FORMAT,
            "kind": self._kind.name,
            "rows": len(counts),
            "shape": self._shape._asdict(),
            "marks": self._marks,
            "records": self._names,
            **facts,
        }
        for path in sorted(self._builder.folder.iterdir()):
            self._adopt(path)
        for name, value in ((REPORT, report), (FACTS, facts)):
            text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
            self._builder.write(name, [text.encode("utf-8")])
        self.finished = True

    def _adopt(self, path: Path) -> None:
        """Takes a file that another library wrote into the manifest."""
        path.chmod(0o644)  # MindRecord makes its files readable by their owner alone
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        entry = {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
        self._builder.files[path.name] = entry

    def _write(self) -> None:
        if not self._waiting:
            return
        with self._failures():
            if self._writer is None:
                self._open_file()
            self._writer.write_raw_data(self._waiting)
        self._waiting = []

    def _open_file(self) -> None:
        from mindspore.mindrecord import FileWriter

        name = RECORDS.format(len(self._names))
        self._names.append(name)
        self._writer = FileWriter(str(self._builder.folder / name), shard_num=1)
        self._writer.set_header_size(_HEADER_BYTES)
        largest = 4 * self._kind.numbers(self._shape)
        page = _PAGE_BYTES
        while page < 4 * largest:
            page *= 2
        self._writer.set_page_size(page)
        self._writer.add_schema(self._schema, "packed rows")
        self._bytes = 0

    def _close_file(self) -> None:
        if self._writer is not None:
            with self._failures():
                self._writer.commit()
            self._writer = None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns MindRecord's only kind of error into one line that names the folder."""
        try:
            yield
        except RuntimeError as error:
            free = shutil.disk_usage(self._builder.folder).free
            if free < _MIN_FREE_BYTES or "free disk" in str(error):
                raise DataError(
                    f"{self._target}: no space left on device ({free / 2**20:.0f} MB free); "
                    "nothing was kept, free some space or name a folder elsewhere"
                ) from None
            raise DataError(f"{self._target}: cannot be written: {_first_error(error)}") from None


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
    try:
        files.verify(path, None if verify else (FACTS, INDEX))
    except CheckpointError as error:
        raise DataError(f"{error}; {_AGAIN}") from None
    with np.load(path / INDEX) as arrays:
        index = Index(dict(arrays))
    return RowFolder(path, facts, index, kind)


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


def _first_error(error: RuntimeError) -> str:
    """The line that matters of MindSpore's long messages."""
    lines = [line for line in str(error).splitlines() if "[ERROR]" in line]
    return (lines or [str(error)])[0].replace("[ERROR]", "").strip()
