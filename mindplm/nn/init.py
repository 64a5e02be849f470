"""Initial values of parameters: the same for a seed on every device and number of cards."""

from __future__ import annotations

import hashlib

import numpy as np
from mindspore import Tensor, nn


def stream(seed: int, name: str) -> np.random.Generator:
    """A random stream of its own for every named thing of a run."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def initialise(cell: nn.Cell, seed: int) -> None:
    """Fills all parameters made by `layers.parameter`: normal with their deviation, or ones."""
    for weight in cell.get_parameters():
        if weight.init_std is None:
            values = np.ones(weight.shape, np.float32)
        elif weight.init_std == 0:
            values = np.zeros(weight.shape, np.float32)  # not -0.0, which a product may give
        else:
            values = stream(seed, weight.name).standard_normal(weight.shape, np.float32)
            values *= np.float32(weight.init_std)
        weight.set_data(Tensor(values).astype(weight.dtype))
