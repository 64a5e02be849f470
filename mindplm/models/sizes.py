"""The sizes that families have in common, and what their configs and parameters share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mindplm.strict import at_least, between, require

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes of any Transformer; a family adds its own fields and sets its defaults."""

    vocab_size: int = 0
    """Rows of the token table; 0: those of the vocabulary file."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_heads: int = 12
    """Attention heads."""
    ffn_size: int = 3072
    """Inner width of the feed-forward part."""
    num_layers: int = 12
    """Blocks."""
    dropout: float = 0.0
    """Probability of dropping attention weights and the outputs of all parts, in training."""
    UNDROPPED: ClassVar[tuple[str, ...]] = ("*.ffn.inside",)
    """Patterns of the dropouts that the original has not; `inside` is behind the activation."""

    def __post_init__(self) -> None:
        at_least("model", self, vocab_size=0, hidden_size=1, num_heads=1, ffn_size=1, num_layers=1)
        between("model", self, 0, 1, "dropout")


@dataclass(frozen=True)
class PlainSizes(Sizes):
    """Sizes of a Transformer with learned positions whose heads share the width."""

    max_len: int = 512
    """Rows of the position table: most tokens of a row."""
    init_std: float = 0.02
    """Standard deviation of the first weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model", self, max_len=1)
        require(
            self.hidden_size % self.num_heads == 0,
            f"model.hidden_size={self.hidden_size}, expected a multiple of "
            f"model.num_heads={self.num_heads}",
        )
        positive(self, "init_std")


def positive(config: Any, *names: str) -> None:
    """Checks that fields of the model section are greater than 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"model.{name}={value}, expected > 0")


# --- parameters -----------------------------------------------------------------------------------


def table_shape(config: Sizes) -> Shape:
    """Shape of the token table; ConfigError if its rows are not known yet."""
    require(config.vocab_size > 0, "model.vocab_size=0, expected the size of a vocabulary")
    return config.vocab_size, config.hidden_size


def with_bias(name: str, shape: Shape) -> dict[str, Shape]:
    """A weight and its bias, which has the first size of the weight."""
    return {name + ".weight": shape, name + ".bias": shape[:1]}


def block_shapes(prefix: str, hidden: int, ffn: int) -> dict[str, Shape]:
    """Parameters of a block with biases and heads that share the width."""
    shapes: dict[str, Shape] = {}
    for name in "qkvo":
        shapes.update(with_bias(f"{prefix}attn.{name}", (hidden, hidden)))
    shapes.update(with_bias(prefix + "attn_norm", (hidden,)))
    shapes.update(with_bias(prefix + "ffn.up", (ffn, hidden)))
    shapes.update(with_bias(prefix + "ffn.down", (hidden, ffn)))
    shapes.update(with_bias(prefix + "ffn_norm", (hidden,)))
    return shapes


def causal_shapes(config: PlainSizes) -> dict[str, Shape]:
    """Parameters of a causal model up to its last block, in the order of the forward pass."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {
        "embed.weight": table_shape(config),
        "positions.weight": (config.max_len, hidden),
    }
    for i in range(config.num_layers):
        shapes.update(block_shapes(f"blocks.{i}.", hidden, config.ffn_size))
    return shapes


def total(shapes: Mapping[str, Shape]) -> int:
    """Number of values in all of them."""
    return sum(math.prod(shape) for shape in shapes.values())


# --- other projects' names ------------------------------------------------------------------------


def has_prefix(names: Iterable[str], *prefixes: str) -> bool:
    """Whether any name begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in names)


def own_values(
    theirs: Mapping[str, Any], keys: Mapping[str, str], optional: Iterable[str], title: str
) -> dict[str, Any]:
    """Values of a foreign configuration under our names.

    Args:
        theirs: The foreign configuration; keys that are not looked for are read over.
        keys: Their names -> ours.
        optional: Those of their names that may be missing; then the value is left out.
        title: The model's name, for the message.

    Raises:
        ConfigError: A key is missing.
    """
    missing = [key for key in keys if key not in theirs and key not in set(optional)]
    require(not missing, f"missing key(s) {', '.join(missing)} in a {title} configuration")
    return {ours: theirs[key] for key, ours in keys.items() if theirs.get(key) is not None}


def their_values(config: Any, keys: Mapping[str, str]) -> dict[str, Any]:
    """Values of our configuration under their names, the other way round."""
    return {key: getattr(config, ours) for key, ours in keys.items()}
