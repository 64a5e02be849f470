"""Files and folders that are either whole or not there, with sizes and checksums in a manifest.

A folder is built under a temporary name beside its place, flushed and renamed. The builder holds a
lock on the temporary folder, which ends with its process, so what a killed one left behind is known
and is removed by the next writer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindplm.errors import CheckpointError

MANIFEST = "manifest.json"
# Folders of these names are removed without a question, so they must be nobody else's.
_TEMPORARY = ".mindplm-tmp-"
_DISCARDED = ".mindplm-old-"
_WORK = ".mindplm-work-"
_ENTRY = {"bytes", "sha256"}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 1 << 22
_DIGITS = 8
"""Of the number in the name of a temporary folder."""


# --- writing --------------------------------------------------------------------------------------


@dataclass
class FolderWriter:
    """Writes flushed files into a folder and remembers their sizes and checksums."""

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes a file (name may hold folders) from its parts."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with open(path, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}

    def finish(self) -> None:
        """Writes the manifest, last, and flushes the folders."""
        self.write(MANIFEST, [_manifest_text(self.files).encode()])
        for folder, _, _ in os.walk(self.folder):
            flush_folder(Path(folder))


def _manifest_text(files: dict[str, dict[str, Any]]) -> str:
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"format": 1, "files": files, "sha256_of_files": own}, indent=1) + "\n"


def flush_folder(folder: Path) -> None:
    """Makes sure that the names in a folder survive a power failure."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class NewFolder:
    """A folder that is being built, under a temporary name beside its place.

    Args:
        target: Where the folder shall be.
        needed_bytes: About how much will be written, to refuse a full disk early.

    Attributes:
        number: Says to other processes which of the temporary folders it is, see `shared_folder`.

    Raises:
        CheckpointError: No space is left.
    """

    def __init__(self, target: Path, needed_bytes: int):
        self._target, self._needed = target, needed_bytes
        self._parent = _ready(target, needed_bytes)
        self.folder, self._lock = _temporary(target)
        self.number = int(self.folder.name[-_DIGITS:], 16)

    @contextlib.contextmanager
    def build(self) -> Iterator[FolderWriter]:
        """It appears under its name, whole, when the block ends without an error; only once.

        A folder that is there already is replaced then. After an error nothing of the new one
        stays.
        """
        try:
            writer = FolderWriter(self.folder)
            yield writer
            writer.finish()
            put_in_place(self.folder, self._target)
        except OSError as error:
            if error.errno in _FULL:
                shutil.rmtree(self.folder, ignore_errors=True)
                free = shutil.disk_usage(self._parent).free
                raise _full(self._target, self._needed, free) from error
            raise
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
        clean(self._parent)


@contextlib.contextmanager
def new_folder(target: Path, needed_bytes: int) -> Iterator[FolderWriter]:
    """Builds a folder in one go, see `NewFolder`."""
    with NewFolder(target, needed_bytes).build() as writer:
        yield writer


def shared_folder(target: Path, number: int) -> Path:
    """The temporary folder of a `NewFolder` that another process builds."""
    return target.parent / f"{_TEMPORARY}{target.name}-{number:0{_DIGITS}x}"


def _ready(target: Path, needed_bytes: int) -> Path:
    """The folder that `target` is to be in, made, cleaned and with the space that is needed."""
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CheckpointError(f"{parent} is a file, expected a folder to write in") from None
    clean(parent)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise _full(target, needed_bytes, free)
    return parent


def put_in_place(folder: Path, target: Path) -> None:
    """Gives a finished folder its name; one that has it already is discarded."""
    parent = target.parent
    if target.exists():
        os.rename(target, parent / f"{_DISCARDED}{target.name}-{secrets.token_hex(4)}")
    os.rename(folder, target)
    flush_folder(parent)


@contextlib.contextmanager
def work_folder(target: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `target` for work that a later process can go on with; it stays as it is.

    Args:
        target: What will come of the work.
        needed_bytes: What must be free at least.

    Raises:
        CheckpointError: Another process works there, or no space is left.
    """
    parent = _ready(target, needed_bytes)
    folder = parent / f"{_WORK}{target.name}"
    folder.mkdir(exist_ok=True)
    with only_process(folder / "lock"):
        yield folder


def _full(target: Path, needed: int, free: int) -> CheckpointError:
    return CheckpointError(
        f"{target.parent}: no space left to write {target.name}: {needed:,} bytes are needed, "
        f"{free:,} are free; what was written before is untouched"
    )


def _temporary(target: Path) -> tuple[Path, int]:
    """Makes and locks a temporary folder; returns it and the lock's file number."""
    while True:
        folder = shared_folder(target, secrets.randbits(4 * _DIGITS))
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is ever cleaned
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else a cleaner came between the two calls
            return folder, lock
        os.close(lock)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file that is either the old or the new one whatever happens."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:  # the temporary name would say nothing to a user
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


# --- removing -------------------------------------------------------------------------------------


def remove_folder(folder: Path) -> None:
    """Removes a folder; it loses its name first, so that no half of it looks whole."""
    discarded = folder.parent / f"{_DISCARDED}{folder.name}-{secrets.token_hex(4)}"
    os.rename(folder, discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def clean(parent: Path) -> None:
    """Removes what killed processes left in a folder."""
    for path in parent.iterdir():
        if path.name.startswith(_DISCARDED) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_TEMPORARY) and path.is_dir():
            _remove_if_abandoned(path)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its builder lives
        pass
    finally:
        os.close(lock)


@contextlib.contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Holds a lock file; CheckpointError if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{path.parent} is in use by another process; wait for it or choose another folder"
            ) from None
        yield


# --- checking -------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Checksum of a file's contents."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """File names with sizes and checksums; CheckpointError if the manifest is not as written."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; expected a folder written by this library")
    text = path.read_bytes()
    try:
        files = json.loads(text)["files"]
        same = _manifest_text(files).encode() == text
        same = same and all(_is_inside(name) and set(files[name]) == _ENTRY for name in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise CheckpointError(f"{path} is damaged")
    return files


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest stays inside its folder; names are written with slashes."""
    odd = any(mark in name for mark in ("\\", ":", "\0"))
    return not odd and all(part not in ("", ".", "..") for part in name.split("/"))


def verify(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compares the files of a folder with its manifest.

    Args:
        folder: A folder with a manifest.
        names: Only these; all if None.

    Raises:
        CheckpointError: A file is missing, truncated or damaged; it is named.
    """
    files = read_manifest(folder)
    for name in files if names is None else names:
        path, entry = folder / name, files[name]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size:,} bytes instead of {entry['bytes']:,}")
        if sha256_of(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: it does not match its checksum")
