"""Low-rank adapters on the projections of a network that stays as it is.

Suffixes of tensor names: n flattened rows.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindplm.errors import ConfigError
from mindplm.nn.dropout import Dropout, salt_of, step_parameter
from mindplm.nn.init import stream
from mindplm.nn.kernels import projected
from mindplm.nn.layers import Linear
from mindplm.nn.values import from_arrays

DOWN, UP = "lora_a", "lora_b"
"""Names of an adapter's two matrices, behind the name of its projection."""


class LoraLinear(nn.Cell):
    """A projection with an adapter beside it: y = x W^T + dropout(x) A^T B^T * scale.

    W is the very parameter of the projection that this cell replaces. A [rank, in] begins uniform
    in +-1/sqrt(in), B [out, rank] with zeros, so at first the adapter adds nothing.

    Args:
        linear: The projection.
        rank: Width of the bottleneck.
        scale: Factor on the adapter's output.
        dropout: Drops values of the adapter's input; None: none are.

    Source: Hu et al. 2021, "LoRA", section 4.1.
    """

    def __init__(self, linear: Linear, rank: int, *, scale: float, dropout: Dropout | None = None):
        super().__init__()
        self.weight = linear.weight
        dtype = linear.weight.dtype
        self.lora_a = Parameter(Tensor(np.zeros((rank, linear.num_in), np.float32), dtype))
        self.lora_b = Parameter(Tensor(np.zeros((linear.num_out, rank), np.float32), dtype))
        self.matmul, self.may_turn = linear.matmul, linear.may_turn
        self.num_in, self.num_out = linear.num_in, linear.num_out
        self.scale = scale
        self.has_dropout = dropout is not None
        self.dropout: Any = dropout

    def construct(self, x):
        x_n = x.reshape((-1, self.num_in))
        y_n = projected(self.matmul, x_n, self.weight, self.may_turn)
        seen_n = self.dropout(x_n) if self.has_dropout else x_n
        y_n = y_n + self.matmul(self.matmul(seen_n, self.lora_a), self.lora_b) * self.scale
        return y_n.reshape(x.shape[:-1] + (self.num_out,))


def linears(network: nn.Cell) -> dict[str, Linear]:
    """Name to projection, such as blocks.0.attn.q."""
    return {name: cell for name, cell in network.cells_and_names() if type(cell) is Linear}


def chosen(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The names that a target stands for: it is their end, at a dot; * stands for anything.

    Raises:
        ConfigError: A target stands for none.
    """
    found: set[str] = set()
    for target in targets:
        hits = [n for n in names if fnmatch.fnmatchcase("." + n, "*." + target)]
        if not hits:
            kinds = sorted({name.split(".", 2)[-1] for name in names})
            raise ConfigError(
                f"lora.targets: {target!r} is no projection of this network; "
                f"it has {', '.join(kinds) or 'none'}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def add_lora(
    network: nn.Cell,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    gain: Callable[[int], float] | None = None,
    seed: int = 0,
) -> dict[str, LoraLinear]:
    """Freezes a network and puts adapters, ready to be trained, on some of its projections.

    All parameters but the adapters' get requires_grad=False; they keep their names and values, and
    `network.trainable_params()` are the adapters'. Do this before anything is compiled.

    Args:
        network: A network that has no adapters yet.
        targets: Ends of names of projections, see `chosen`.
        rank: Width of the bottleneck.
        alpha: The adapter's output is multiplied by alpha / rank.
        dropout: Probability of dropping a value of the adapter's input in steps of training.
        gain: For a network that feeds its projections with scaled inputs: input width -> what
            brings the scaled input back to the one that adapters are defined on. None: 1.
        seed: Of the initial values.

    Returns:
        Name of the projection -> the cell that took its place.

    Raises:
        ConfigError: A target is no projection of the network, or it has adapters already.
    """
    if any(isinstance(cell, LoraLinear) for _, cell in network.cells_and_names()):
        raise ConfigError("the network has adapters already")
    found = linears(network)
    names = chosen(list(found), targets)
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    cells = dict(network.cells_and_names())
    step = step_parameter()
    made: dict[str, LoraLinear] = {}
    for name in names:
        linear = found[name]
        scale = alpha / rank * (gain(linear.num_in) if gain else 1.0)
        drop = Dropout() if dropout else None
        made[name] = LoraLinear(linear, rank, scale=scale, dropout=drop)
        owner, _, attribute = name.rpartition(".")
        weight_name = linear.weight.name
        setattr(cells[owner], attribute, made[name])
        # Putting a cell into another one renames its parameters: the weight had its name already.
        made[name].weight.name = weight_name
        if drop is not None:
            drop.turn_on(dropout, step, salt_of(seed, name))
        bound = linear.num_in**-0.5
        for matrix, end in ((made[name].lora_a, DOWN), (made[name].lora_b, UP)):
            matrix.name = f"{name}.{end}"
            if end == DOWN:
                values = stream(seed, matrix.name).uniform(-bound, bound, matrix.shape)
                matrix.set_data(Tensor(values.astype(np.float32)).astype(matrix.dtype))
    return made


def lora_parameters(network: nn.Cell) -> list[Parameter]:
    """The adapters' parameters, in the network's order."""
    return [p for p in network.get_parameters() if p.name.endswith((f".{DOWN}", f".{UP}"))]


def load_lora(network: nn.Cell, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Sets the adapters; CheckpointError if names or shapes differ."""
    from_arrays(lora_parameters(network), arrays, source)
