"""A model that can write: read from a checkpoint folder, or wrapped around a cell in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindplm import checkpoint, families, runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import CheckpointError
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.scoring import Scorer
from mindplm.models.cpm_bee.decode import CpmBeePrefill, CpmBeeStep
from mindplm.nn.values import load_model


@dataclass(frozen=True)
class Model:
    """A network ready to write.

    Attributes:
        family: Key of the family table.
        config: The family's settings.
        network: The compiled calls; its graphs live as long as this object.
        scorer: The compiled pass of `mindplm.score`.
    """

    family: str
    config: Any
    network: CompiledNetwork
    scorer: Any = None

    def __str__(self) -> str:
        count = families.family(self.family).part("num_parameters")(self.config)
        return f"{self.family}, {count:,} parameters"


def load(folder: str | Path, settings: RuntimeConfig | None = None) -> tuple[Model, Any]:
    """Reads a checkpoint.

    Args:
        folder: A checkpoint folder, or a run folder, which stands for its newest checkpoint.
        settings: Device, threads and type; None: the defaults.

    Returns:
        (model, tokenizer).

    Raises:
        CheckpointError: Something is missing or damaged; it is named.
    """
    settings = settings or RuntimeConfig()
    runtime.setup(settings)
    saved = checkpoint.read(folder)
    family = families.family(saved.family)
    tokenizer = family.part("tokenizer").from_file(saved.folder / saved.tokenizer_files[0])
    config = saved.model()
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{saved.folder}: {saved.tokenizer_files[0]} has {tokenizer.vocab_size} entries, "
            f"model.vocab_size is {config.vocab_size}"
        )
    cell = family.part("cell")(config, runtime.compute_dtype(settings.dtype))
    load_model(cell, saved.weights(), str(saved.folder))
    return from_cell(cell, config, saved.family), tokenizer


def from_cell(cell: Any, config: Any, family: str = "cpm_bee") -> Model:
    """Wraps a network in memory; what it writes follows later changes of its weights."""
    network = CompiledNetwork(CpmBeePrefill(cell), CpmBeeStep(cell))
    return Model(family, config, network, Scorer(cell))
