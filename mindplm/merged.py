"""A model as it lies on disk: a checkpoint, or adapters with the checkpoint that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindplm import adapters, checkpoint, families, tensors
from mindplm.adapters import Adapter
from mindplm.checkpoint import Checkpoint
from mindplm.errors import CheckpointError
from mindplm.runtime import log
from mindplm.tensors import LazyArray


@dataclass(frozen=True)
class Opened:
    """A checkpoint of a whole model and the adapters that go into it.

    Attributes:
        base: The checkpoint.
        adapter: The adapters; None if there are none.
    """

    base: Checkpoint
    adapter: Adapter | None = None

    @property
    def run(self) -> dict[str, Any] | None:
        """Settings of the run that trained it last."""
        return self.base.run if self.adapter is None else self.adapter.run

    def weights(self) -> dict[str, LazyArray]:
        """Our name to array, the adapters merged into them; arrays are read when they are used."""
        if self.adapter is None:
            return self.base.lazy_weights()
        kept = self.base.lazy_weights(widen=False)
        return tensors.widened(adapters.merge(kept, self.adapter))

    def tokenizer(self) -> Any:
        """The tokenizer; CheckpointError if it is not that of the model."""
        base = self.base
        if not base.tokenizer_files:
            raise CheckpointError(f"{base.folder} holds no vocabulary")
        made = families.family(base.family).part("tokenizer")
        tokenizer = made.from_file(base.folder / base.tokenizer_files[0])
        size = base.model().vocab_size
        if tokenizer.vocab_size != size:
            raise CheckpointError(
                f"{base.folder}: {base.tokenizer_files[0]} has {tokenizer.vocab_size} entries, "
                f"model.vocab_size is {size}"
            )
        return tokenizer


def open_model(folder: str | Path, adapter: str | Path | None = None) -> Opened:
    """Opens a model.

    Args:
        folder: A checkpoint, a run folder, which stands for its newest checkpoint, or an adapter
            that knows its base.
        adapter: An adapter folder, or the folder of a run that trains adapters.

    Raises:
        CheckpointError: Something is missing or damaged, or they do not belong together.
    """
    saved = checkpoint.read(folder)
    if adapter is not None:
        if saved.adapter is not None:
            raise CheckpointError(f"{folder} holds adapters, so there can be no others on them")
        return Opened(saved, open_adapter(adapter, saved))
    if saved.adapter is None:
        return Opened(saved)
    base = saved.adapter.base.folder
    if not base or not Path(base).is_dir():
        was = f", which was {base}, is not there" if base else " is not known"
        raise CheckpointError(
            f"{folder} holds adapters and their base{was}; name the base as the model and this "
            "folder as its adapter"
        )
    found = checkpoint.read(base)
    return Opened(found, _checked(saved.adapter, found))


def open_adapter(folder: str | Path, base: Checkpoint) -> Adapter:
    """Opens adapters for a base.

    Raises:
        CheckpointError: There are none, or they are of another family.
    """
    if adapters.is_adapter(folder):
        return _checked(adapters.read(folder), base)
    has_run = bool(checkpoint.RunFolder(folder).steps())
    found = checkpoint.read(folder).adapter if has_run else adapters.read(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds a whole model, expected adapters")
    return _checked(found, base)


def _checked(adapter: Adapter, base: Checkpoint) -> Adapter:
    if adapter.family != base.family:
        raise CheckpointError(
            f"{adapter.folder} is of {adapter.family}, {base.folder} of {base.family}"
        )
    digest = adapter.base.digest
    if digest and digest != adapters.weights_digest(base.folder):
        log.warning(
            "%s was trained on other weights than those of %s (it was %s)",
            adapter.folder,
            base.folder,
            adapter.base.folder,
        )
    return adapter
