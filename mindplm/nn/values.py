"""Values of a cell's parameters, to and from NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindplm.errors import CheckpointError
from mindplm.nn.dropout import STEP


def to_arrays(parameters: Iterable[Parameter]) -> dict[str, np.ndarray]:
    """Name to array; bfloat16, which NumPy lacks, comes out as fp32 of the same values.

    An array may share the memory of its parameter: copy what must outlive the next step.
    """
    arrays = {}
    for item in parameters:
        value = item.astype(ms.float32) if item.dtype == ms.bfloat16 else item
        arrays[item.name] = value.asnumpy()
    return arrays


def from_arrays(
    parameters: Iterable[Parameter],
    arrays: Mapping[str, Any],
    source: str,
    *,
    fresh: bool = False,
) -> None:
    """Sets every parameter from the array of its name, cast to its own type.

    Arrays that are read when they are used (anything with `shape` that NumPy can take) are in
    memory one at a time.

    Args:
        parameters: What is set.
        arrays: One for each.
        source: What the arrays are called in errors.
        fresh: No graph has been compiled with these parameters yet, so each may take over the
            memory of its array; otherwise a second copy goes through the device's memory pool.

    Raises:
        CheckpointError: Names or shapes differ; the first ones are listed.
    """
    wanted = {item.name: item for item in parameters}
    missing, extra = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted))
    if missing or extra:
        raise CheckpointError(
            f"{source}: {len(missing)} tensors are missing {missing[:4]}, "
            f"{len(extra)} have no place {extra[:4]}"
        )
    for name, item in wanted.items():
        if tuple(arrays[name].shape) != tuple(item.shape):
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(arrays[name].shape)}, expected {item.shape}"
            )
        value = as_tensor(np.asarray(arrays[name], order="C"), item, f"{source}: {name}")
        if fresh or item.has_init:
            item.set_data(value)
        else:
            # set_data would give the parameter other memory than that of a compiled function.
            ops.assign(item, value)


def as_tensor(values: np.ndarray, item: Parameter, source: str) -> Tensor:
    """The values in the parameter's type.

    They are cast by NumPy where it has the type: the framework's own cast would leave a second copy
    of the model in its memory pool.
    """
    if item.dtype == ms.bfloat16:
        return Tensor(values).astype(item.dtype)
    wanted = np.dtype(str(item.dtype).lower())  # "Float32" and so on
    with np.errstate(over="ignore"):
        made = values.astype(wanted, copy=False)
    if wanted.itemsize < values.itemsize and (np.isinf(made) & np.isfinite(values)).any():
        raise CheckpointError(f"{source} has values that do not fit into {wanted.name}")
    return Tensor(made)


def weights_of(network: nn.Cell) -> list[Parameter]:
    """The parameters of a network that a checkpoint keeps."""
    return [item for item in network.get_parameters() if item.name != STEP]


def load_model(
    model: nn.Cell, arrays: Mapping[str, Any], source: str, *, fresh: bool = False
) -> None:
    """`from_arrays` for all weights of a model."""
    from_arrays(weights_of(model), arrays, source, fresh=fresh)
