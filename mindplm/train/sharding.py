"""Lays a family's shard plan over its training cell: MindSpore's semi-automatic parallel mode.

Operators of the plan get their strategy; the compiler puts the communication between them. Cells
of the plan, which have no weights and need no communication, become single operators that the
compiler expands on what each device holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops
from mindspore.parallel import Layout

from mindplm.config import ParallelConfig
from mindplm.errors import ConfigError
from mindplm.shards import Part, ShardPlan, matches

_MESH = ("data", "model")


class _Shapes:
    """Shapes of a cell's results from those of its arguments, by the letters of their axes."""

    def __init__(self, part: Part):
        self.part = part

    def __call__(self, *shapes: Sequence[int]) -> Any:
        sizes: dict[str, int] = {"1": 1}
        for axes, shape in zip(self.part.inputs, shapes):
            sizes.update(zip(axes, shape))
        found = [[self.size(token, sizes) for token in axes] for axes in self.part.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    @staticmethod
    def size(token: str, sizes: dict[str, int]) -> int:
        """Size of an axis, a product if it is a group of known letters."""
        if token in sizes:
            return sizes[token]
        size = 1
        for letter in token.strip("()"):
            size *= sizes[letter]
        return size


class _Types:
    """Types of a cell's results."""

    def __init__(self, part: Part, dtype: Any):
        self.part, self.dtype = part, dtype

    def __call__(self, *dtypes: Any) -> Any:
        names = self.part.dtypes
        if not names:
            return dtypes[0]
        found = [self.dtype if name == "dtype" else getattr(ms, name) for name in names]
        return found[0] if len(found) == 1 else tuple(found)


def find_parts(net: nn.Cell, plan: ShardPlan) -> Iterator[tuple[Part, Any, str]]:
    """Every place of a network that the plan names, as (part, owner, attribute).

    Raises:
        ConfigError: A part of the plan is nowhere in the network.
    """
    cells = dict(net.cells_and_names())
    names = []
    for name, cell in cells.items():
        prefix = name + "." if name else ""
        names += [
            prefix + key for key in cell.__dict__ if isinstance(cell.__dict__[key], ops.Primitive)
        ]
    names += [name for name in cells if name]
    for part in plan.parts:
        places = [name for name in names if matches(part.path, name)]
        if not places and part.path not in plan.optional:
            raise ConfigError(f"shard plan: the network has no {part.path}")
        for place in places:
            owner, _, attribute = place.rpartition(".")
            yield part, cells[owner], attribute


def lay_plan(net: nn.Cell, plan: ShardPlan, parallel: ParallelConfig, dtype: Any) -> None:
    """Gives every operator and cell of the plan its cuts, in place.

    Args:
        net: The family's sharded training cell.
        plan: The plan.
        parallel: The layout.
        dtype: Type of activations.
    """
    layout = Layout((parallel.data, parallel.model), _MESH)

    def cut(axes: Sequence[str]) -> Any:
        named = []
        for token in axes:
            over = plan.mesh_axes(token, parallel)
            named.append(over if len(over) > 1 else over[0] if over else "None")
        return layout(*named)

    for part, owner, attribute in list(find_parts(net, plan)):
        found = getattr(owner, attribute)
        if isinstance(found, nn.Cell):
            # The gradient is that of `construct`: an own one of this very cell is left behind,
            # because what it shares with `construct` is expanded only once.
            single = ops.Morph(found.construct, _Shapes(part), _Types(part, dtype))
            single.add_prim_attr("self_define_shard", True)
            for effect in ("side_effect_backprop", "side_effect_mem", "side_effect_io"):
                single.del_prim_attr(effect)  # the cells only compute; nothing need be in order
            single.shard(
                in_strategy=tuple(cut(axes) for axes in part.inputs),
                out_strategy=tuple(cut(axes) for axes in part.outputs),
            )
            delattr(owner, attribute)
            setattr(owner, attribute, single)
            continue
        strategy = tuple(plan.strategy(axes, parallel) for axes in part.inputs)
        wanted = _out_strategy(plan, part, parallel)
        setattr(owner, attribute, found.shard(strategy, wanted))


def _out_strategy(plan: ShardPlan, part: Part, parallel: ParallelConfig) -> Any:
    """Cuts of a product's rows if they differ from those of its input: it ends in a scatter."""
    before, after = part.inputs[0], part.outputs[0]
    if not parallel.sequence or not after or "u" not in "".join(after) or "u" in "".join(before):
        return None
    return (plan.strategy(after, parallel),)
