"""Finds and opens the tensors of a foreign checkpoint: one file, or several in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from mindplm.errors import CheckpointError
from mindplm.files import FolderWriter
from mindplm.tensors import Array, LazyArray, open_file, open_indexed
from mindplm.weights.torch_io import open_torch

_INDEX = ".index.json"
_POINTER = b"version https://git-lfs"
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
_ENDINGS = ("safetensors", "bin", "pt", "pth", "ckpt")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.\w+")

Opened = tuple[dict[str, LazyArray], list[Path]]
"""Tensors by name, and the files that they are in."""


@dataclass(frozen=True)
class FileLayout:
    """A way of one family's originals to lay tensors into files, beside those that all share.

    Attributes:
        open: Opens what is at a path; None if it is not laid out so.
        write: (writer, tensors by the original's names, parts) -> None; parts is the number of
            model-parallel shards, 0 for the usual number.
    """

    open: Callable[[Path], Opened | None]
    write: Callable[[FolderWriter, Mapping[str, Array], int], None]


def open_tensors(path: Path, layouts: Sequence[FileLayout] = ()) -> Opened:
    """Opens every tensor of a checkpoint; values are read when they are used.

    Args:
        path: A .bin, .pt or .safetensors file, an index (*.index.json) of several, or a folder
            that holds these under the names that HF gives them, or a single one.
        layouts: Further ways to lay them out; they are tried first.

    Returns:
        Name to lazy array, and the files.

    Raises:
        CheckpointError: Something is missing, damaged or ambiguous; it is named.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    for layout in layouts:
        found = layout.open(path)
        if found is not None:
            return found
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(_INDEX):
        files: list[Path] = []

        def open_listed(file: Path) -> dict[str, LazyArray]:
            files.append(file)
            return open_one(file)

        return open_indexed(path, open_listed), files
    return open_one(path), [path]


def open_one(path: Path) -> dict[str, LazyArray]:
    """Opens one file; its ending says of which kind."""
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
                )
    if path.suffix == ".safetensors":
        return open_file(path)
    return open_torch(path)


def _open_folder(folder: Path) -> tuple[dict[str, LazyArray], list[Path]]:
    for stem, ending in _KINDS:
        index = folder / f"{stem}.{ending}{_INDEX}"
        if index.is_file():
            return open_tensors(index)
    for stem, ending in _KINDS:
        files = sorted(folder.glob(f"{stem}*.{ending}"))
        if files:
            return _open_together(files), files
    files = sorted(file for ending in _ENDINGS for file in folder.glob(f"*.{ending}"))
    if len(files) == 1:
        return open_tensors(files[0])
    found = ", ".join(file.name for file in files[:6])
    raise CheckpointError(
        f"{folder} holds several files of tensors ({found}); name one"
        if files
        else f"{folder} holds no tensors; expected pytorch_model*.bin, model*.safetensors, or one "
        f"file that ends in {', '.join(_ENDINGS)}"
    )


def _open_together(files: Sequence[Path]) -> dict[str, LazyArray]:
    """Opens shards without an index; numbered ones must all be there."""
    for file in files:
        parts = _SHARD.fullmatch(file.name)
        if parts and len(files) != int(parts[3]):
            raise CheckpointError(
                f"{file.parent}: found {len(files)} of the {int(parts[3])} files "
                f"{parts[1]}-*-of-{parts[3]}{file.suffix} and no index"
            )
    result: dict[str, LazyArray] = {}
    for file in files:
        arrays = open_one(file)
        twice = [name for name in arrays if name in result]
        if twice:
            raise CheckpointError(f"{file}: {twice[0][:200]} is in another file as well")
        result.update(arrays)
    return result
