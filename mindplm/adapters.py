"""The adapter folder: low-rank adapters of a base checkpoint, and how they are merged into it.

adapter.yaml            family, rank, alpha, dropout, targets; the base, where it is known
adapter.safetensors     blocks.0.attn.q.lora_a [rank, in], blocks.0.attn.q.lora_b [out, rank], ...
run.yaml, train/...     of an adapter that a run has saved
manifest.json           sizes and SHA-256 of all the others, written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import families, files, strict, tensors
from mindplm.config_lora import LoraConfig
from mindplm.errors import CheckpointError, ConfigError
from mindplm.tensors import LazyArray
from mindplm.train_state import TrainState
from mindplm.yaml_io import dump_yaml, load_plain

_HEAD, STEM, _RUN = "adapter.yaml", "adapter", "run.yaml"
DOWN, UP = ".lora_a", ".lora_b"
"""What follows the name of a projection in the names of its adapter's matrices."""


@dataclass(frozen=True)
class Base:
    """The checkpoint that adapters belong to.

    Attributes:
        folder: Where it was.
        digest: Tells its weights from others, see `weights_digest`.
        model: The family's settings, as plain values.
    """

    folder: str = ""
    digest: str = ""
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that was found whole.

    Attributes:
        folder: Where it is.
        family: Key of the family table.
        lora: Its settings.
        arrays: Name to lazy array; bfloat16 as tensors.BF16.
        base: What it was trained on, if that is known.
        run: Settings of the run that trained it, as plain values; None if there was none.
    """

    folder: Path
    family: str
    lora: LoraConfig
    arrays: dict[str, LazyArray]
    base: Base = Base()
    run: dict[str, Any] | None = None

    @property
    def model(self) -> dict[str, Any]:
        """The family's settings of the base as plain values."""
        return self.base.model


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder says of itself that it holds adapters."""
    return (Path(folder) / _HEAD).is_file()


def write(
    folder: str | Path,
    *,
    family: str,
    lora: LoraConfig,
    arrays: Mapping[str, tensors.Array],
    base: Base | None = None,
    run: Mapping[str, Any] | None = None,
    train: TrainState | None = None,
) -> None:
    """Writes an adapter folder; it appears when all of it is on the disk.

    Args:
        folder: Where it shall be; a folder that is there is replaced.
        family: Key of the family table.
        lora: Settings; the rank must be that of the arrays.
        arrays: Name to array, two for each projection.
        base: What they were trained on.
        run: Settings of the run as plain values.
        train: State of training.

    Raises:
        CheckpointError: The arrays are no pairs of matrices of this rank, or no space is left.
    """
    check(arrays, lora.rank, str(folder))
    head: dict[str, Any] = {"family": family, "lora": strict.to_plain(lora)}
    if base is not None:
        head["base"] = strict.to_plain(base)
    needed = tensors.num_bytes(arrays) + (tensors.num_bytes(train.arrays) if train else 0)
    with files.new_folder(Path(folder), needed + (64 << 10)) as writer:
        writer.write(_HEAD, [dump_yaml(head).encode()])
        tensors.write_arrays(writer, STEM, arrays, tensors.SHARD_BYTES)
        if run is not None:
            writer.write(_RUN, [dump_yaml(dict(run)).encode()])
        if train is not None:
            train.write(writer)


def weights_digest(checkpoint: str | Path) -> str:
    """Tells the weights of a checkpoint folder from others; the same weights give the same."""
    listed = files.read_manifest(Path(checkpoint))
    kept = ("weights", "parts/")
    sums = {name: entry["sha256"] for name, entry in listed.items() if name.startswith(kept)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def read(folder: str | Path, *, verify: bool = True) -> Adapter:
    """Opens an adapter folder and compares it with its checksums.

    Args:
        folder: The adapter folder.
        verify: Compare every file with its checksum.

    Raises:
        CheckpointError: Something is missing or damaged; it is named.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        raise CheckpointError(
            f"{folder} is no adapter of this library ({_HEAD} is missing); a LoRA file of the "
            "original is converted by: mindplm convert FILE --out FOLDER"
        )
    if verify:
        files.verify(folder)
    head = load_plain(folder / _HEAD)
    try:
        family, tree = head["family"], head["lora"]
        families.family(family)
        lora = strict.build(LoraConfig, tree, "lora", strict.Source(str(folder / _HEAD)))
        base = Base(**head.get("base", {}))
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / _HEAD} is damaged: {error}") from None
    arrays = tensors.open_arrays(folder, STEM, widen=False)
    check(arrays, lora.rank, str(folder))
    run = load_plain(folder / _RUN) if (folder / _RUN).is_file() else None
    return Adapter(folder, family, lora, arrays, base, run)


def check(arrays: Mapping[str, tensors.Array], rank: int, source: str) -> list[str]:
    """Names of the projections; CheckpointError unless each has its two matrices of this rank."""
    ends = {name: end for name in arrays for end in (DOWN, UP) if name.endswith(end)}
    odd = [name for name in arrays if name not in ends]
    if odd or not arrays:
        raise CheckpointError(f"{source}: {odd[0] if odd else 'nothing'} is no part of an adapter")
    names = [name[: -len(DOWN)] for name, end in ends.items() if end == DOWN]
    if len(ends) != 2 * len(names):
        raise CheckpointError(f"{source}: the matrices of an adapter come in pairs of A and B")
    for name in names:
        if name + UP not in arrays:
            raise CheckpointError(f"{source}: {name}{UP} is missing")
        down, up = tuple(arrays[name + DOWN].shape), tuple(arrays[name + UP].shape)
        if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
            raise CheckpointError(
                f"{source}: {name} has matrices {down} and {up}, expected ({rank}, in) and "
                f"(out, {rank})"
            )
    return names


def merge(weights: Mapping[str, LazyArray], adapter: Adapter) -> dict[str, LazyArray]:
    """The weights with the adapters in them, computed in fp32 when they are read; dtypes are kept.

    W' = W + B A * alpha / rank * gain, where the gain undoes the factor that a family puts on the
    inputs of its projections.

    Raises:
        CheckpointError: The weights are not of the base that the adapters belong to.
    """
    gain = families.family(adapter.family).part("lora_gain")
    result = dict(weights)
    for name in check(adapter.arrays, adapter.lora.rank, str(adapter.folder)):
        down, up = adapter.arrays[name + DOWN], adapter.arrays[name + UP]
        base = weights.get(f"{name}.weight")
        wanted = (up.shape[0], down.shape[1])
        if base is None or tuple(base.shape) != wanted:
            found = "the model has no such projection" if base is None else f"it is {base.shape}"
            raise CheckpointError(
                f"{adapter.folder} does not belong to this model: {name}.weight should be "
                f"{wanted}, {found}"
            )
        scale = adapter.lora.alpha / adapter.lora.rank * gain(down.shape[1])
        result[f"{name}.weight"] = _merged(base, down, up, scale)
    return result


def _merged(base: LazyArray, down: LazyArray, up: LazyArray, scale: float) -> LazyArray:
    wide = np.dtype("<f4")

    def load() -> np.ndarray:
        product = np.asarray(up.astype(wide)) @ np.asarray(down.astype(wide))
        product *= np.float32(scale)
        product += np.asarray(base.astype(wide))
        return product

    return dataclasses.replace(base, load=load)
