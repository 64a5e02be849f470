"""A model that can write: read from a checkpoint folder, or wrapped around a cell in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindplm import adapters, checkpoint, families, runtime, tensors
from mindplm.config import RuntimeConfig
from mindplm.errors import CheckpointError
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.layout import Layout
from mindplm.nn.int8 import load_int8
from mindplm.nn.values import load_model


@dataclass(frozen=True)
class Model:
    """A network ready to write.

    Attributes:
        family: Key of the family table.
        config: The family's settings.
        network: The compiled calls; its graphs live as long as this object.
        scorer: The compiled pass of `mindplm.score`.
        cell: What holds the weights.
    """

    family: str
    config: Any
    network: CompiledNetwork
    scorer: Any = None
    cell: Any = None

    def layout(self, tokenizer: Any) -> Layout:
        """The family's prompts.

        Raises:
            ConfigError: The family does not write.
        """
        return families.family(self.family).part("layout")(tokenizer, self.config)

    def __str__(self) -> str:
        count = families.family(self.family).part("num_parameters")(self.config)
        return f"{self.family}, {count:,} parameters"


def load(
    folder: str | Path,
    settings: RuntimeConfig | None = None,
    *,
    adapter: str | Path | None = None,
    int8: bool = False,
) -> tuple[Model, Any]:
    """Reads a checkpoint, tensor by tensor.

    Args:
        folder: A checkpoint folder, or a run folder, which stands for its newest checkpoint.
        settings: Device, threads and type; None: the defaults.
        adapter: An adapter folder; it is merged into the weights.
        int8: Keep the weights of projections as int8: less memory, but slower on CPU.

    Returns:
        (model, tokenizer).

    Raises:
        CheckpointError: Something is missing or damaged; it is named.
    """
    settings = settings or RuntimeConfig()
    runtime.setup(settings)
    saved = checkpoint.read(folder)
    family = families.family(saved.family)
    if not saved.tokenizer_files:
        raise CheckpointError(f"{saved.folder} holds no vocabulary")
    tokenizer = family.part("tokenizer").from_file(saved.folder / saved.tokenizer_files[0])
    config = saved.model()
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{saved.folder}: {saved.tokenizer_files[0]} has {tokenizer.vocab_size} entries, "
            f"model.vocab_size is {config.vocab_size}"
        )
    cell = family.part("cell")(config, runtime.compute_dtype(settings.dtype))
    weights = saved.lazy_weights(widen=adapter is None)
    if adapter is not None:
        found = adapters.read(adapter)
        if found.family != saved.family:
            raise CheckpointError(f"{adapter} is of {found.family}, {folder} of {saved.family}")
        weights = tensors.widened(adapters.merge(weights, found))
    if int8:
        load_int8(cell, weights, str(saved.folder))
    else:
        load_model(cell, weights, str(saved.folder), fresh=True)
    return from_cell(cell, config, saved.family), tokenizer


def from_cell(cell: Any, config: Any, family: str = "cpm_bee") -> Model:
    """Wraps a network in memory; what it writes follows later changes of its weights."""
    parts = families.family(family)
    network = CompiledNetwork(*parts.part("decode")(cell))
    scorer = parts.part("scorer")(cell) if parts.scorer_ref else None
    return Model(family, config, network, scorer, cell)
