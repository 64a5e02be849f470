"""The training cell that a family's shard plan is laid over, before anything is cut."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from test_contract import plain_gradients, tiny

from mindplm.families import FAMILIES
from mindplm.nn.values import weights_of
from mindplm.shards import ShardPlan
from mindplm.train.sharding import find_parts

PLANNED = pytest.mark.parametrize("name", [n for n, e in FAMILIES.items() if e.plan_ref])
ROWS_MORE, WILD, FACTOR = 24, 9.0, 0.5
GENERATION = {("model", "matmul"), ("model.head", "matmul")}
"""Operators of projections to scores, which training does without."""


def cut_cell(name: str) -> Any:
    """The cell with rows of padding in its table and no values yet."""
    made = tiny(name)
    rows, stages = made.config.vocab_size + ROWS_MORE, (0,) * made.config.num_layers
    return made.parts.part("sharded")(made.config, ms.float32, rows, stages)


def padded(plan: ShardPlan, name: str, array: np.ndarray) -> np.ndarray:
    """Numbers that must not matter behind those of the vocabulary."""
    more = [(0, ROWS_MORE if axis == "v" else 0) for axis in plan.weight_axes(name)]
    return np.pad(array, more, constant_values=WILD)


@PLANNED
def test_the_cell_that_is_cut_has_the_losses_and_gradients_of_the_plain_one(name):
    made = tiny(name)
    plan: ShardPlan = made.parts.part("plan")
    total, _, grads = plain_gradients(name)
    cell, plain = cut_cell(name), {p.name: p.asnumpy() for p in weights_of(made.model())}
    assert {weight.name for weight in weights_of(cell)} == set(plain)
    for weight in weights_of(cell):
        weight.set_data(Tensor(padded(plan, weight.name, plain[weight.name])))
    columns = made.columns()
    assert list(plan.columns) == list(columns)
    weights = list(cell.trainable_params())
    compute = ms.jit(ops.value_and_grad(cell, None, weights))
    batch = (Tensor(array) for array in columns.values())
    value, found = compute(Tensor([FACTOR], ms.float32), *batch)
    assert float(value.asnumpy()) == pytest.approx(FACTOR * total, rel=1e-6)
    for weight, grad in zip(weights, found):
        inside = tuple(slice(0, size) for size in grads[weight.name].shape)
        own = grad.asnumpy().copy()
        wanted = FACTOR * grads[weight.name]
        bound = 2e-6 * max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(own[inside], wanted, rtol=0, atol=bound, err_msg=weight.name)
        own[inside] = 0.0
        assert not own.any(), f"padding of {weight.name} has a gradient"


@PLANNED
def test_every_operator_outside_the_cells_of_the_plan_is_in_it(name):
    net, plan = cut_cell(name), tiny(name).parts.part("plan")
    found = list(find_parts(net, plan))
    planned = {(id(owner), attribute) for _, owner, attribute in found}
    inside = [getattr(owner, attribute) for _, owner, attribute in found]
    covered = {id(cell) for part in inside if isinstance(part, nn.Cell) for _, cell in cells(part)}
    for path, cell in cells(net):
        if id(cell) in covered:
            assert not list(cell.get_parameters()), path
            continue
        for key, value in cell.__dict__.items():
            if isinstance(value, ops.Primitive) and (path, key) not in GENERATION:
                assert (id(cell), key) in planned, f"{path}.{key}"


@PLANNED
def test_what_is_optional_in_a_plan_is_in_it(name):
    plan: ShardPlan = FAMILIES[name].part("plan")
    assert plan.optional <= {*plan.weights, *(part.path for part in plan.parts)}


def cells(cell: nn.Cell) -> list[tuple[str, nn.Cell]]:
    return list(cell.cells_and_names())
