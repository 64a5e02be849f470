"""Initial values of parameters: the same for a seed on every device and number of cards."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Parameter, Tensor, nn

_THREADS, _AHEAD = 2, 16
"""Threads that draw weights, and how many weights may be drawn before they are needed."""


def stream(seed: int, name: str) -> np.random.Generator:
    """A random stream of its own for every named thing of a run."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def values(weight: Parameter, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The fp32 values that a parameter made by `layers.parameter` begins with.

    Args:
        weight: The parameter; only its name and deviation are looked at.
        seed: Of the run.
        shape: Of the whole weight, of which the parameter may be a part.
    """
    if weight.init_std is None:
        return np.ones(shape, np.float32)
    if weight.init_std == 0:
        return np.zeros(shape, np.float32)  # not -0.0, which a product may give
    made = stream(seed, weight.name).standard_normal(shape, np.float32)
    made *= np.float32(weight.init_std)
    return made


def initialise(cell: nn.Cell, seed: int) -> None:
    """Fills all parameters made by `layers.parameter`: normal with their deviation, or ones."""
    todo: deque = deque()

    def set_first() -> None:
        weight, made = todo.popleft()
        weight.set_data(Tensor(made.result()).astype(weight.dtype))

    # Drawing takes seconds, is done outside Python's lock, and each weight has a stream of its own.
    with ThreadPoolExecutor(_THREADS) as pool:
        for weight in cell.get_parameters():
            todo.append((weight, pool.submit(values, weight, seed, weight.shape)))
            if len(todo) > _AHEAD:
                set_first()
        while todo:
            set_first()
