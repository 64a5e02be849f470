"""The files of CPM-1's release: one of each model-parallel rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mindplm.files import FolderWriter
from mindplm.models.cpm1.config import SHARD_AXES
from mindplm.tensors import Array
from mindplm.weights import parallel_shards
from mindplm.weights.sources import FileLayout, Opened


def open_release(path: Path) -> Opened | None:
    """Opens the ranks' files below a folder as one model."""
    ranks = parallel_shards.find_ranks(path)
    return (parallel_shards.open_ranks(ranks, SHARD_AXES), ranks) if ranks else None


def write_release(writer: FolderWriter, arrays: Mapping[str, Array], ranks: int) -> None:
    """Writes a file for each rank; one if no number is given."""
    parallel_shards.write_ranks(writer, arrays, SHARD_AXES, max(ranks, 1))


LAYOUTS = {"megatron": FileLayout(open_release, write_release)}
"""Flavour -> how its files are laid out, where that is a way of its own."""
