"""The checkpoint folder: it explains itself, and it is whole or not there.

model.yaml                    family, its settings, names of the tokenizer files
weights.safetensors           or numbered shards with an index
vocab.txt ...                 the tokenizer's files
run.yaml                      settings of the run that made it, if any
train/state.json, arrays...   optimizer, step, data position; to go on training
parts/...                     instead of weights and moments: the parts of them that the processes
                              of a cut run hold, see `mindplm.parts`
manifest.json                 sizes and SHA-256 of all the others, written last
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import adapters, families, files, tensors
from mindplm.config import RunConfig
from mindplm.errors import CheckpointError
from mindplm.parts import MOMENTS, Parts, open_parts
from mindplm.runtime import log
from mindplm.slices import Place, cut
from mindplm.train_state import STATE, open_arrays, read_state
from mindplm.train_state import TrainState as TrainState
from mindplm.yaml_io import dump_yaml, load_plain

_MODEL, _RUN, _WEIGHTS = "model.yaml", "run.yaml", "weights"
HEAD_BYTES = 64 << 10
"""More than what `write_head` writes, beside the tokenizer."""
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was found whole; arrays are read when asked for.

    The checkpoint of a run that trains low-rank adapters is an adapter folder with the state of
    training: `weights` are those of the adapters, and there is no tokenizer.

    Attributes:
        folder: Where it is.
        family: Key of the family table.
        model_config: The family's settings, as plain values.
        tokenizer_files: Names of the tokenizer's files in the folder.
        run: Settings of the run as plain values, None if there was none.
        adapter: The adapters, if they are all that is there.
    """

    folder: Path
    family: str
    model_config: dict[str, Any]
    tokenizer_files: list[str]
    run: dict[str, Any] | None
    adapter: adapters.Adapter | None = None

    def model(self) -> Any:
        """The family's typed settings."""
        return families.model_from_dict(self.family, self.model_config, str(self.folder / _MODEL))

    def run_config(self) -> RunConfig | None:
        """The typed settings of the run."""
        if self.run is None:
            return None
        return families.config_from_dict(self.run, str(self.folder / _RUN))

    @functools.cached_property
    def parts(self) -> Parts | None:
        """The parts that the processes of a cut run wrote; None if there are whole weights."""
        return open_parts(self.folder)

    def weights(self) -> dict[str, np.ndarray]:
        """Our name to array; parts are put together."""
        if self.parts is not None:
            return {name: np.asarray(array) for name, array in self.parts.whole().items()}
        return tensors.read_arrays(self.folder, adapters.STEM if self.adapter else _WEIGHTS)

    def lazy_weights(self, *, widen: bool = True) -> dict[str, tensors.LazyArray]:
        """Like `weights`, but an array is read when it is used, so they are never all in memory.

        With widen=False bfloat16 is not turned into fp32 but comes as tensors.BF16.
        """
        if self.parts is not None:
            return self.parts.whole()
        stem = adapters.STEM if self.adapter else _WEIGHTS
        return tensors.open_arrays(self.folder, stem, widen=widen)

    def train(self, names: Collection[str] | None = None) -> TrainState | None:
        """The state of training, None in a checkpoint without; parts are put together.

        Args:
            names: Only these of its arrays, none that comes in parts; None: all.
        """
        state = read_state(self.folder, names)
        if state is not None and self.parts is not None and names is None:
            for kind in MOMENTS:
                whole = self.parts.whole(kind)
                state.arrays.update({name: np.asarray(array) for name, array in whole.items()})
        return state

    @functools.cached_property
    def _whole(self) -> dict[str, tensors.LazyArray]:
        return {**self.lazy_weights(), **open_arrays(self.folder)}

    def part(self, name: str, place: Place, kind: str = "") -> np.ndarray:
        """What lies at a place of a weight, or of its moment of a kind; padding is zeros.

        Raises:
            CheckpointError: It is not there.
        """
        if self.parts is not None:
            return self.parts.part(name, place, kind)
        if kind + name not in self._whole:
            raise CheckpointError(f"{self.folder} holds no {kind}{name}")
        return cut(np.asarray(self._whole[kind + name]), place)


def write(
    folder: str | Path,
    *,
    family: str,
    model_config: Mapping[str, Any],
    weights: Mapping[str, tensors.Array],
    tokenizer_files: Mapping[str, bytes],
    run: Mapping[str, Any] | None = None,
    train: TrainState | None = None,
    shard_bytes: int = tensors.SHARD_BYTES,
) -> None:
    """Writes a checkpoint folder; it appears under its name when all of it is on the disk.

    Args:
        folder: Where it shall be; a folder that is there is replaced.
        family: Key of the family table.
        model_config: The family's settings as plain values.
        weights: Our name to array.
        tokenizer_files: File name to contents.
        run: Settings of the run as plain values.
        train: State of training.
        shard_bytes: Arrays beyond this size go into several files.

    Raises:
        CheckpointError: No space is left; the folder, and what is needed, is named.
    """
    needed = tensors.num_bytes(weights) + sum(map(len, tokenizer_files.values()))
    if train is not None:
        needed += tensors.num_bytes(train.arrays)
    with files.new_folder(Path(folder), needed + HEAD_BYTES) as writer:
        write_head(writer, family, model_config, tokenizer_files, run)
        tensors.write_arrays(writer, _WEIGHTS, weights, shard_bytes)
        if train is not None:
            train.write(writer, shard_bytes)


def write_head(
    writer: files.FolderWriter,
    family: str,
    model_config: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
    run: Mapping[str, Any] | None,
) -> None:
    """Writes all but weights and state of training; the arguments are those of `write`."""
    head = {"family": family, "tokenizer": list(tokenizer_files), "config": dict(model_config)}
    writer.write(_MODEL, [dump_yaml(head).encode()])
    for name, data in tokenizer_files.items():
        writer.write(name, [data])
    if run is not None:
        writer.write(_RUN, [dump_yaml(dict(run)).encode()])


def read(folder: str | Path, *, verify: bool = True) -> Checkpoint:
    """Opens a checkpoint folder.

    Args:
        folder: A checkpoint, or a run folder, which stands for its newest checkpoint.
        verify: Compare every file with its checksum.

    Raises:
        CheckpointError: A file is missing, truncated or damaged; it is named.
    """
    folder = Path(folder)
    if not (folder / files.MANIFEST).is_file() and RunFolder(folder).steps():
        newest = RunFolder(folder).newest()
        assert newest is not None
        return newest
    if adapters.is_adapter(folder):
        adapter = adapters.read(folder, verify=verify)
        return Checkpoint(folder, adapter.family, adapter.model, [], adapter.run, adapter)
    listed = files.read_manifest(folder)
    if verify:
        files.verify(folder)
    head = load_plain(folder / _MODEL)
    kinds = {"family": str, "config": dict, "tokenizer": list}
    whole = isinstance(head, dict) and all(isinstance(head.get(n), k) for n, k in kinds.items())
    # Tokenizer files are opened and copied by these names, so they must be files of this folder.
    if not whole or not all(isinstance(n, str) and n in listed for n in head["tokenizer"]):
        raise CheckpointError(f"{folder / _MODEL} is damaged")
    return Checkpoint(
        folder=folder,
        family=head["family"],
        model_config=head["config"],
        tokenizer_files=head["tokenizer"],
        run=load_plain(folder / _RUN) if _RUN in listed else None,
    )


@dataclass(frozen=True)
class RunFolder:
    """The checkpoints of a run: <root>/checkpoints/step-00000100 and so on."""

    root: Path

    def __init__(self, root: str | Path):
        object.__setattr__(self, "root", Path(root))

    def path_of(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.root / "checkpoints" / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, rising."""
        folder = self.root / "checkpoints"
        if not folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    @contextlib.contextmanager
    def only_process(self) -> Iterator[None]:
        """Keeps other processes from training in this folder; CheckpointError if one does."""
        with files.only_process(self.root / ".lock"):
            yield

    def save(
        self,
        train: TrainState,
        *,
        family: str,
        model_config: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        tokenizer_files: Mapping[str, bytes],
        run: Mapping[str, Any] | None = None,
        keep_last: int = 0,
        shard_bytes: int = tensors.SHARD_BYTES,
    ) -> Path:
        """Writes the checkpoint of train.step, then removes all but the last `keep_last`."""
        folder = self.path_of(train.step)
        write(
            folder,
            family=family,
            model_config=model_config,
            weights=weights,
            tokenizer_files=tokenizer_files,
            run=run,
            train=train,
            shard_bytes=shard_bytes,
        )
        self.keep(keep_last)
        return folder

    def keep(self, number: int) -> None:
        """Removes all but the last `number` checkpoints; 0 keeps all."""
        for step in self.steps()[:-number] if number else []:
            files.remove_folder(self.path_of(step))

    def newest(self) -> Checkpoint | None:
        """Opens the newest checkpoint; None if there is none.

        Raises:
            CheckpointError: It is damaged; the message names the file, and the newest good one
                before it with the setting that goes on from there.
        """
        if (self.root / "checkpoints").is_dir():
            files.clean(self.root / "checkpoints")
        steps = self.steps()
        if not steps:
            return None
        try:
            return read(self.path_of(steps[-1]))
        except CheckpointError as error:
            good = self._newest_good(steps[:-1])
            advice = (
                f"the checkpoint before it is good: train.resume={good}"
                if good
                else "there is no good checkpoint before it"
            )
            raise CheckpointError(f"{error}; {advice}") from error

    def _newest_good(self, steps: list[int]) -> Path | None:
        for step in reversed(steps):
            with contextlib.suppress(CheckpointError):
                files.verify(self.path_of(step))
                return self.path_of(step)
        return None

    def resume(self, wish: str) -> Checkpoint | None:
        """The checkpoint that a run goes on from, by the setting train.resume.

        When an older one of this folder is chosen, the newer ones are set aside under another
        name, so that the run's newest checkpoint is again the one that it goes on from.

        Args:
            wish: auto, never or the folder of a checkpoint.

        Raises:
            CheckpointError: It is damaged or has no training state, or train.resume=never and
                the run folder has checkpoints.
        """
        if wish == "never":
            steps = self.steps()
            if steps:
                raise CheckpointError(
                    f"{self.root} has checkpoints up to step {steps[-1]} and train.resume=never; "
                    "remove it, or choose another train.output"
                )
            return None
        if wish == "auto":
            return self.newest()
        if not Path(wish).is_dir():
            raise CheckpointError(
                f"train.resume={wish}: no such folder; accepted: auto, never, or the folder of a "
                "checkpoint"
            )
        checkpoint = read(wish)
        if not (checkpoint.folder / STATE).is_file():
            raise CheckpointError(f"{wish} holds no training state ({STATE}) to go on from")
        for step in self.steps():
            if checkpoint.folder.resolve() == self.path_of(step).resolve():
                self._set_aside(step)
        return checkpoint

    def _set_aside(self, chosen: int) -> None:
        for step in self.steps():
            if step > chosen:
                path = self.path_of(step)
                number = 1
                while (aside := path.with_name(f"{path.name}.aside{number}")).exists():
                    number += 1
                path.rename(aside)
                log.warning("%s is newer than the chosen one; it is now %s", path, aside.name)
