"""Names and shapes of parameters that several families have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


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


def total(shapes: Mapping[str, Shape]) -> int:
    """Number of values in all of them."""
    return sum(math.prod(shape) for shape in shapes.values())


def has_prefix(names: Iterable[str], *prefixes: str) -> bool:
    """Whether any name begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in names)
