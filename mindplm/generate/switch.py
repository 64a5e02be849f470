"""Several adapters beside one base, of which one at a time is merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindplm import adapters, tensors
from mindplm.adapters import DOWN, Adapter
from mindplm.checkpoint import Checkpoint
from mindplm.errors import ConfigError
from mindplm.nn.values import from_arrays


class Switch:
    """Chooses among adapters. The weights of the base are read again from its folder.

    Args:
        cell: The network; nothing is merged into it yet.
        base: The checkpoint that its weights are from.
        found: Name to adapter.

    Attributes:
        current: Name of the adapter in use, None for the base alone.
    """

    def __init__(self, cell: Any, base: Checkpoint, found: Mapping[str, Adapter]):
        self._cell, self._base, self._adapters = cell, base, dict(found)
        self.current: str | None = None

    @property
    def names(self) -> list[str]:
        """What can be chosen."""
        return list(self._adapters)

    def use(self, name: str | None) -> None:
        """Puts an adapter, or with None nothing, in the place of the one in use.

        Raises:
            ConfigError: There is no adapter of this name.
        """
        if name is not None and name not in self._adapters:
            raise ConfigError(
                f"there is no adapter {name!r}; accepted: {', '.join(self.names) or 'none'}"
            )
        if name == self.current:
            return
        weights = self._base.lazy_weights(widen=False)
        touched = self._projections(self.current) | self._projections(name)
        if name is not None:
            weights = adapters.merge(weights, self._adapters[name])
        chosen = {f"{projection}.weight" for projection in touched}
        parameters = [p for p in self._cell.get_parameters() if p.name in chosen]
        values = tensors.widened({n: weights[n] for n in chosen})
        from_arrays(parameters, values, str(self._base.folder))
        self.current = name

    def _projections(self, name: str | None) -> set[str]:
        if name is None:
            return set()
        return {n[: -len(DOWN)] for n in self._adapters[name].arrays if n.endswith(DOWN)}
