"""Projections whose weights are stored as int8, one scale for each output channel.

They are brought back to the type of the input inside the graph, one at a time, so that a quarter of
the memory is needed. On CPU a product takes two to five times as long as in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindplm.errors import CheckpointError
from mindplm.nn.layers import Linear
from mindplm.nn.values import from_arrays

_LEVELS = 127


class Int8Linear(nn.Cell):
    """Projection without bias: y = (x W^T) * scale, W int8 [out, in], scale fp32 [out]."""

    def __init__(self, weight: np.ndarray, scale: np.ndarray):
        super().__init__()
        self.weight = Parameter(Tensor(weight), requires_grad=False)
        self.scale = Parameter(Tensor(scale), requires_grad=False)
        self.matmul = ops.MatMul(transpose_b=True)
        self.num_out, self.num_in = weight.shape

    def construct(self, x):
        y = self.matmul(x.reshape((-1, self.num_in)), self.weight.astype(x.dtype))
        y = (y.astype(ms.float32) * self.scale).astype(x.dtype)
        return y.reshape(x.shape[:-1] + (self.num_out,))


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [out, in], fp32 [out]) with weight ~ int8 * scale; off by half a scale at most."""
    wide = weight.astype(np.float32, copy=False)
    scale = np.abs(wide).max(axis=1) / _LEVELS
    scale[scale == 0] = 1.0
    return np.rint(wide / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def load_int8(network: nn.Cell, arrays: Mapping[str, Any], source: str) -> None:
    """Puts int8 projections in the place of all others and sets every value of the network.

    For a network that has not been compiled yet. Arrays are read one at a time. What is no
    projection (embeddings, norms, bias tables) keeps its type.

    Raises:
        CheckpointError: Names or shapes differ, or a weight is no number.
    """
    cells = dict(network.cells_and_names())
    left = dict(arrays)
    done: set[str] = set()
    for name, linear in [(n, c) for n, c in cells.items() if type(c) is Linear]:
        key = f"{name}.weight"
        shape = (linear.num_out, linear.num_in)
        if key not in left or tuple(left[key].shape) != shape:
            found = tuple(left[key].shape) if key in left else "missing"
            raise CheckpointError(f"{source}: {key} is {found}, expected {shape}")
        values = np.asarray(left.pop(key))
        if not np.isfinite(values).all():
            raise CheckpointError(f"{source}: {key} holds values that are no numbers")
        weight, scale = quantised(values)
        made = Int8Linear(weight, scale)
        owner, _, attribute = name.rpartition(".")
        setattr(cells[owner], attribute, made)
        # Cells rename the parameters of cells that are put into them.
        made.weight.name, made.scale.name = key, f"{name}.scale"
        done |= {made.weight.name, made.scale.name}
    from_arrays(
        [p for p in network.get_parameters() if p.name not in done], left, source, fresh=True
    )
