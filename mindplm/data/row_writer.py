"""Writes folders of packed rows; see `records` for what is in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import files
from mindplm.data.bee_rows import ROWS
from mindplm.data.kinds import RowKind
from mindplm.data.packing import RowShape
from mindplm.data.records import FACTS, FORMAT, INDEX, RECORDS, REPORT, first_error
from mindplm.errors import CheckpointError, DataError

_FILE_BYTES = 1 << 29
_HEADER_BYTES = 1 << 20
_PAGE_BYTES = 1 << 22
_ROWS_A_WRITE = 256
MIN_FREE_BYTES = 16 << 20
"""MindRecord refuses to write when little more than 10 MB are left."""
_NUMBERS = ("length", "num_targets", "num_chars", "ext_count")


class NoSpaceError(DataError):
    """The disk is full."""


@dataclass
class RowBlock:
    """Rows as they are stored, joined: few large arrays, quick to send to another process.

    Attributes:
        values: By name of a stored array: those of all rows, one after the other.
        sizes: By name: how long that of each row is.
        numbers: Of each row: length, targets, characters, pairs of the extension table.
        pairs: Those pairs: ids and subs.
    """

    values: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    numbers: np.ndarray
    pairs: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, rows: Sequence[Any], stored: Sequence[str]) -> RowBlock:
        """Joins rows of a kind whose stored arrays are named."""
        arrays = [row.arrays() for row in rows]
        pairs = [np.stack(row.pairs()) for row in rows]
        numbers = [
            (len(row), row.num_targets, row.num_chars, own.shape[1])
            for row, own in zip(rows, pairs)
        ]
        return cls(
            {name: np.concatenate([a[name] for a in arrays]) for name in stored},
            {name: np.array([len(a[name]) for a in arrays], np.int64) for name in stored},
            np.array(numbers, np.int64),
            np.concatenate(pairs, axis=1).astype(np.int32),
        )

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """The stored arrays of each row."""
        parts = [
            np.split(self.values[name], np.cumsum(self.sizes[name])[:-1]) for name in self.sizes
        ]
        for arrays in zip(*parts):
            yield dict(zip(self.sizes, arrays))


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
    check_target(target)
    with written_at(target), files.new_folder(target, MIN_FREE_BYTES) as builder:
        writer = RowWriter(target, builder, shape, marks, kind)
        yield writer
        assert writer.finished, "rows without facts"


def check_target(target: Path) -> None:
    """Refuses to replace a folder that holds something else than rows.

    Raises:
        DataError: It does.
    """
    empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not empty and not (target / FACTS).is_file():
        raise DataError(f"{target}: exists and holds no prepared rows; name another folder")


@contextlib.contextmanager
def written_at(target: Path) -> Iterator[None]:
    """Turns what goes wrong while a folder is written into errors that name it."""
    try:
        yield
    except CheckpointError as error:
        kind = NoSpaceError if "no space" in str(error) else DataError
        raise kind(str(error)) from None
    except PermissionError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}") from None


class RowWriter:
    """Writes rows into a folder that is being built; made by `new_rows`.

    Args:
        target: What the folder will be called.
        builder: Of the folder.
        shape: Sizes of the batches.
        marks: Usually the tokenizer.
        kind: What the rows are.
        parts: Folder that keeps what belongs to files that are whole, so that another process can
            go on after them; None: memory keeps it.

    Attributes:
        finished: Whether `finish` was called.
        num_files: Files that are whole.
    """

    def __init__(
        self,
        target: Path,
        builder: files.FolderWriter,
        shape: RowShape,
        marks: Any,
        kind: RowKind = ROWS,
        *,
        parts: Path | None = None,
    ):
        self.finished = False
        self.num_files = 0
        self._kind = kind
        self._schema = {name: {"type": "int32", "shape": [-1]} for name in kind.stored}
        self._target = target
        self._builder = builder
        self._shape = shape
        self._marks = {name: getattr(marks, name) for name in kind.marks}
        self._parts_folder = parts
        self._parts: list[dict[str, np.ndarray]] = []
        self._writer: Any = None
        self._bytes = 0
        self._waiting: list[Any] = []
        self._blocks: list[RowBlock] = []

    def add(self, row: Any) -> None:
        """Writes a row."""
        self._waiting.append(row)
        if len(self._waiting) >= _ROWS_A_WRITE:
            self._write_waiting()
            if self._bytes >= _FILE_BYTES:
                self.end_file()

    def add_block(self, block: RowBlock) -> bool:
        """Writes rows into the present file; whether it is large enough to be ended."""
        rows = list(block.rows())
        with self._failures():
            if self._writer is None:
                self._open_file()
            for start in range(0, len(rows), _ROWS_A_WRITE):
                self._writer.write_raw_data(rows[start : start + _ROWS_A_WRITE])
        self._blocks.append(RowBlock({}, {}, block.numbers, block.pairs))
        self._bytes += sum(values.nbytes for values in block.values.values())
        return self._bytes >= _FILE_BYTES

    def end_file(self) -> None:
        """Ends the present file; the next row begins another one."""
        self._write_waiting()
        if self._writer is None:
            return
        with self._failures():
            self._writer.commit()
        self._writer = None
        name = RECORDS.format(self.num_files)
        for path in (self._builder.folder / name, self._builder.folder / f"{name}.db"):
            self._adopt(path)
        part = {
            "numbers": np.concatenate([block.numbers for block in self._blocks]),
            "pairs": np.concatenate([block.pairs for block in self._blocks], axis=1),
        }
        self._blocks = []
        if self._parts_folder is None:
            self._parts.append(part)
        else:
            np.savez(self._parts_folder / f"{self.num_files}.npz", **part)
        self.num_files += 1

    def state(self) -> dict[str, Any]:
        """What `load_state` goes on from: all files that were ended."""
        return {"num_files": self.num_files, "files": self._builder.files}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after the files of another process; what is beside them is removed."""
        self.num_files = state["num_files"]
        self._builder.files.update(state["files"])
        for path in self._builder.folder.iterdir():
            if path.name not in state["files"]:
                path.unlink()

    def finish(self, report: Mapping[str, Any], **facts: Any) -> None:
        """Writes what belongs to the rows.

        Args:
            report: Becomes report.json.
            facts: Further entries of rows.json.
        """
        self.end_file()
        parts = self._parts or [self._part(number) for number in range(self.num_files)]
        numbers = np.concatenate(
            [part["numbers"] for part in parts] or [np.zeros((0, 4), np.int64)]
        )
        pairs = [part["pairs"] for part in parts] or [np.zeros((2, 0), np.int32)]
        ext_ids, ext_subs = np.concatenate(pairs, axis=1)
        columns = dict(zip(_NUMBERS, numbers.T))
        start = np.concatenate([[0], np.cumsum(columns.pop("ext_count"))]).astype(np.int64)
        arrays = {name: values.astype(np.int32) for name, values in columns.items()}
        path = self._builder.folder / INDEX
        np.savez(path, **arrays, ext_ids=ext_ids, ext_subs=ext_subs, ext_start=start)
        self._adopt(path)
        facts = {
            "format": FORMAT,
            "kind": self._kind.name,
            "rows": len(numbers),
            "shape": self._shape._asdict(),
            "marks": self._marks,
            "records": [RECORDS.format(number) for number in range(self.num_files)],
            **facts,
        }
        for name, value in ((REPORT, report), (FACTS, facts)):
            text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
            (self._builder.folder / name).unlink(missing_ok=True)
            self._builder.write(name, [text.encode("utf-8")])
        self.finished = True

    def _part(self, number: int) -> dict[str, np.ndarray]:
        assert self._parts_folder is not None
        with np.load(self._parts_folder / f"{number}.npz") as arrays:
            return dict(arrays)

    def _adopt(self, path: Path) -> None:
        """Takes a file that another library wrote into the manifest."""
        path.chmod(0o644)  # MindRecord makes its files readable by their owner alone
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        entry = {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
        self._builder.files[path.name] = entry

    def _write_waiting(self) -> None:
        if self._waiting:
            self.add_block(RowBlock.of(self._waiting, self._kind.stored))
            self._waiting = []

    def _open_file(self) -> None:
        from mindspore.mindrecord import FileWriter

        path = self._builder.folder / RECORDS.format(self.num_files)
        self._writer = FileWriter(str(path), shard_num=1)
        self._writer.set_header_size(_HEADER_BYTES)
        largest = 4 * self._kind.numbers(self._shape)
        page = _PAGE_BYTES
        while page < 4 * largest:
            page *= 2
        self._writer.set_page_size(page)
        self._writer.add_schema(self._schema, "packed rows")
        self._bytes = 0

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns MindRecord's only kind of error into one line that names the folder."""
        try:
            yield
        except RuntimeError as error:
            free = shutil.disk_usage(self._builder.folder).free
            if free < MIN_FREE_BYTES or "free disk" in str(error):
                raise NoSpaceError(
                    f"{self._target}: no space left on device ({free / 2**20:.0f} MB free); "
                    "free some space or name a folder elsewhere"
                ) from None
            raise DataError(f"{self._target}: cannot be written: {first_error(error)}") from None
