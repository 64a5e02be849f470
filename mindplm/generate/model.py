"""A model that can write: read from a checkpoint folder, or wrapped around a cell in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindplm import families, runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import ConfigError
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.layout import Layout
from mindplm.generate.switch import Switch
from mindplm.graph_cache import GraphCache
from mindplm.merged import open_adapter, open_model
from mindplm.nn.int8 import load_int8
from mindplm.nn.layers import turn_products
from mindplm.nn.values import load_model
from mindplm.strict import to_plain


@dataclass(frozen=True)
class Model:
    """A network ready to write.

    Attributes:
        family: Key of the family table.
        config: The family's settings.
        network: The compiled calls; its graphs live as long as this object.
        scorer: The compiled pass of `mindplm.score`.
        cell: What holds the weights.
        switch: Adapters to choose from, if there are any.
    """

    family: str
    config: Any
    network: CompiledNetwork
    scorer: Any = None
    cell: Any = None
    switch: Switch | None = None

    def use(self, name: str | None) -> None:
        """Writes and scores with one of the adapters that were loaded; None: with none of them.

        Raises:
            ConfigError: There is no adapter of this name.
        """
        if self.switch is not None:
            self.switch.use(name)
        elif name is not None:
            raise ConfigError(
                f"there is no adapter {name!r}: the model was loaded without adapters"
            )

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
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    int8: bool = False,
) -> tuple[Model, Any]:
    """Reads a checkpoint, tensor by tensor.

    Args:
        folder: A checkpoint folder; a run folder, which stands for its newest checkpoint; or
            adapters that know their base.
        settings: Device, threads and type; None: the defaults.
        adapter: An adapter folder; it is merged into the weights. Or name -> folder of several, to
            be chosen with `Model.use`; none is in use at first.
        int8: Keep the weights of projections as int8: less memory, but slower on CPU.

    Returns:
        (model, tokenizer).

    Raises:
        CheckpointError: Something is missing or damaged; it is named.
    """
    settings = settings or RuntimeConfig()
    runtime.setup(settings)
    several = adapter if isinstance(adapter, Mapping) else {}
    if several and int8:
        raise ConfigError("int8 weights cannot be changed, so there can be no adapters beside them")
    opened = open_model(folder, None if isinstance(adapter, Mapping) else adapter)
    saved = opened.base
    tokenizer, config = opened.tokenizer(), saved.model()
    cell = families.family(saved.family).part("cell")(config, runtime.compute_dtype(settings.dtype))
    if int8:
        load_int8(cell, opened.weights(), str(saved.folder))
    else:
        load_model(cell, opened.weights(), str(saved.folder), fresh=True)
    model = from_cell(cell, config, saved.family, settings.compile_cache)
    if several:
        found = {name: open_adapter(place, saved) for name, place in several.items()}
        if opened.adapter is not None:
            raise ConfigError(f"{folder} holds adapters, so there can be no others beside them")
        model = dataclasses.replace(model, switch=Switch(cell, saved, found))
    return model, tokenizer


def from_cell(cell: Any, config: Any, family: str = "cpm_bee", compile_cache: str = "") -> Model:
    """Wraps a network in memory; what it writes follows later changes of its weights.

    Args:
        cell: The network.
        config: Its settings.
        family: Key of the family table.
        compile_cache: Folder that keeps compiled graphs between runs; "": none.
    """
    parts = families.family(family)
    kept = GraphCache(compile_cache, [family, to_plain(config)], cell.get_parameters())
    turn_products(cell)
    prefill, step = parts.part("decode")(cell)
    network = CompiledNetwork(prefill, step, kept)
    scorer = parts.part("scorer")(cell) if parts.scorer_ref else None
    return Model(family, config, network, scorer, cell)
