"""Folders of packed rows: MindRecord files with an index, a report and a manifest.

  train.mindrecord0, .db ...   rows: `tokens` (the token columns one after the other),
                               `segment_rel`, `task_ids`; int32, without padding
  index.npz                    per row: length, num_targets, num_chars, pairs of the ext table
  report.json                  what was read and what became of it
  manifest.json                sizes, SHA-256 of all files, and the fingerprint of what made them

A folder is built under another name and renamed at the end, so it is there whole or not at all.
(Its files keep their names: a MindRecord file stores its own and cannot be renamed.)
"""

from __future__ import annotations

import contextlib
import errno
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

from mindplm.data.instances import TOKEN_COLUMNS
from mindplm.data.packing import Marks, Row, RowShape, row_pairs
from mindplm.data.sources import file_sha256
from mindplm.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.npz"
REPORT = "report.json"
RECORDS = "train.mindrecord{}"
SCHEMA = {name: {"type": "int32", "shape": [-1]} for name in ("tokens", "segment_rel", "task_ids")}
_FILE_BYTES = 1 << 29
_HEADER_BYTES = 1 << 20
_PAGE_BYTES = 1 << 22
_ROWS_A_WRITE = 256
_MIN_FREE_BYTES = 16 << 20
"""MindRecord refuses to write when little more than 10 MB are left."""


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
    """A folder that was opened, and its manifest and index."""

    path: Path
    manifest: dict[str, Any]
    index: Index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> RowShape:
        """Sizes that its batches have."""
        return RowShape(**self.manifest["shape"])

    @property
    def marks(self) -> Marks:
        """The numbers of the tokenizer that targets depend on."""
        return SimpleNamespace(**self.manifest["marks"])

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks by the numbers in the rows."""
        return self.manifest["task_names"]

    def read(self, rows: np.ndarray, *, threads: int = 2) -> Iterator[Row]:
        """Reads rows by their numbers, in the order given, repeated ones too."""
        import mindspore.dataset as ds

        files = [str(self.path / name) for name in self.manifest["records"]]
        # MindRecord takes at most as many numbers at once as there are rows.
        for start in range(0, len(rows), len(self)):
            data = ds.MindDataset(
                files,
                columns_list=list(SCHEMA),
                sampler=ds.SubsetSampler(rows[start : start + len(self)].tolist()),
                num_parallel_workers=min(threads, os.cpu_count() or 1),
            )
            try:
                for values in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
                    tokens, segment_rel, task_ids = values
                    yield Row(tokens.reshape(len(TOKEN_COLUMNS), -1), segment_rel, task_ids)
            except RuntimeError as error:
                raise DataError(f"{self.path}: cannot be read: {_first_error(error)}") from None


class FolderWriter:
    """Writes a folder of rows; a context manager that leaves nothing behind if it is left early.

    Args:
        folder: Where the folder will be; one of the same kind is replaced.
        shape: Sizes of batches, kept in the manifest.
        marks: Usually the tokenizer; kept in the manifest.
    """

    def __init__(self, folder: str | Path, shape: RowShape, marks: Marks):
        self.folder = Path(folder)
        self.shape = shape
        self._marks = {n: getattr(marks, n) for n in ("vocab_size", "bos_id", "eos_id")}
        self._temporary = self.folder.with_name(f".{self.folder.name}.new-{os.getpid()}")
        self._names: list[str] = []
        self._writer: Any = None
        self._bytes = 0
        self._waiting: list[dict[str, np.ndarray]] = []
        self._index = {
            name: array("q") for name in ("length", "num_targets", "num_chars", "ext_count")
        }
        self._pairs = {"ext_ids": array("i"), "ext_subs": array("i")}

    def __enter__(self) -> FolderWriter:
        folder = self.folder
        empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not empty and not (folder / MANIFEST).is_file():
            raise DataError(f"{folder}: exists and holds no prepared rows; name another folder")
        with self._failures():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
            self._temporary.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer = None
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, row: Row) -> None:
        """Writes a row."""
        values = (row.tokens.ravel(), row.segment_rel, row.task_ids)
        self._waiting.append(dict(zip(SCHEMA, values)))
        self._bytes += sum(4 * v.size for v in values)
        ids, subs = row_pairs(row.ids, row.subs)
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
        """Writes index, report and manifest and puts the folder in its place.

        Args:
            report: Becomes report.json.
            facts: Further entries of the manifest.
        """
        self._write()
        self._close_file()
        with self._failures():
            counts = np.frombuffer(self._index.pop("ext_count"), np.int64)
            columns = {n: np.frombuffer(v, np.int64) for n, v in self._index.items()}
            starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            pairs = {n: np.array(v, np.int32) for n, v in self._pairs.items()}
            np.savez(self._temporary / INDEX, **columns, **pairs, ext_start=starts)
            _write_json(self._temporary / REPORT, report)
            manifest = {
                "format": FORMAT,
                "rows": len(starts) - 1,
                "shape": self.shape._asdict(),
                "marks": self._marks,
                **facts,
                "records": self._names,
                "files": {p.name: _seal(p) for p in sorted(self._temporary.iterdir())},
            }
            _write_json(self._temporary / MANIFEST, manifest)
            _sync(self._temporary / MANIFEST)
            _sync(self._temporary)
            old = self.folder.with_name(f".{self.folder.name}.old-{os.getpid()}")
            if self.folder.exists():
                self.folder.rename(old)
            self._temporary.rename(self.folder)
            _sync(self.folder.parent)
            shutil.rmtree(old, ignore_errors=True)

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
        self._writer = FileWriter(str(self._temporary / name), shard_num=1)
        self._writer.set_header_size(_HEADER_BYTES)
        largest = 4 * (len(TOKEN_COLUMNS) * self.shape.seq_len + self.shape.max_rel)
        page = _PAGE_BYTES
        while page < 4 * largest:
            page *= 2
        self._writer.set_page_size(page)
        self._writer.add_schema(SCHEMA, "packed rows")
        self._bytes = 0

    def _close_file(self) -> None:
        if self._writer is not None:
            with self._failures():
                self._writer.commit()
            self._writer = None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns failures to write into one line that names the folder."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(self._no_space()) from None
            raise DataError(f"{self.folder}: cannot be written: {error.strerror}") from None
        except RuntimeError as error:  # MindRecord's only kind of error
            if _free_bytes(self.folder.parent) < _MIN_FREE_BYTES or "free disk" in str(error):
                raise DataError(self._no_space()) from None
            raise DataError(f"{self.folder}: cannot be written: {_first_error(error)}") from None

    def _no_space(self) -> str:
        free = _free_bytes(self.folder.parent) / 2**20
        return (
            f"{self.folder}: no space left on device ({free:.0f} MB free); nothing was kept, "
            "free some space or name a folder elsewhere"
        )


def open_folder(folder: str | Path, *, verify: bool = True) -> RowFolder:
    """Opens a folder of rows.

    Args:
        folder: The folder.
        verify: Compare the SHA-256 of every file first; a damaged MindRecord file can crash the
            process that reads it.

    Raises:
        DataError: It is not there, incomplete, damaged or of another format.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file}: missing; prepare the data again")
        if file.stat().st_size != facts["bytes"]:
            found, wanted = file.stat().st_size, facts["bytes"]
            raise DataError(f"{file}: has {found} bytes, expected {wanted}; prepare the data again")
        if verify and file_sha256(file) != facts["sha256"]:
            raise DataError(f"{file}: damaged (checksum differs); prepare the data again")
    with np.load(path / INDEX) as arrays:
        index = Index(dict(arrays))
    return RowFolder(path, manifest, index)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of rows.

    Raises:
        DataError: There is none that can be used.
    """
    path = Path(folder) / MANIFEST
    if not path.parent.is_dir():
        raise DataError(f"{folder}: no such folder of prepared rows; run preprocess first")
    if not path.is_file():
        raise DataError(f"{folder}: no {MANIFEST} in it, so it holds no prepared rows")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        _ = manifest["files"], manifest["records"], manifest["shape"], manifest["marks"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; prepare the data again") from None
    if found != FORMAT:
        raise DataError(f"{path}: has format {found}, expected {FORMAT}; prepare the data again")
    return manifest


def _first_error(error: RuntimeError) -> str:
    """The line that matters of MindSpore's long messages."""
    lines = [line for line in str(error).splitlines() if "[ERROR]" in line]
    return (lines or [str(error)])[0].replace("[ERROR]", "").strip()


def _seal(path: Path) -> dict[str, Any]:
    path.chmod(0o644)  # MindRecord makes its files readable by their owner alone
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed left; an `.old` folder is put back if it can be."""
    for kind in ("old", "new"):
        for path in folder.parent.glob(f".{folder.name}.{kind}-*"):
            if _alive(path.name.rsplit("-", 1)[1]):
                continue
            if kind == "old" and not folder.exists():
                path.rename(folder)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()
