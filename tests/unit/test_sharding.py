"""What a shard plan is laid over: the training cell, its operators, and its losses."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindplm.errors import ConfigError
from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.models.cpm_bee.plan import PLAN
from mindplm.models.cpm_bee.sharded import ShardedCpmBeeLoss
from mindplm.nn.init import initialise
from mindplm.shards import Part
from mindplm.train.sharding import find_parts

SIZES = CpmBeeConfig(
    vocab_size=50,
    hidden_size=32,
    num_heads=4,
    head_dim=8,
    ffn_size=48,
    num_layers=3,
    num_segment_buckets=64,
    max_distance=128,
    no_attention=(1,),
    no_ffn=(2,),
)
ROWS = 64


def sharded(stages=(0, 0, 0)):
    made = ShardedCpmBeeLoss(SIZES, ms.float32, ROWS, stages)
    initialise(made.model, 1)
    return made


def columns():
    random = np.random.default_rng(0)
    batch, num = 2, 12
    targets = [[1, 2, 50, 51, -100], [3, 49, 0, -100, -100]]
    values = [
        random.integers(0, 50, (batch, num)),
        random.integers(0, 3, (batch, num)),
        random.integers(0, 2, (batch, num)),
        np.zeros((batch, num)),
        random.integers(0, 3, (batch, num)),
        np.zeros((batch, num)),
        np.full((batch, num), 3),
        np.zeros((batch, num)),
        [num, num - 2],
        random.integers(0, 60, (batch, 9)),
        np.sort(random.integers(0, num, (batch, 5))),
        targets,
        [3, 4, 0, 0],
        [1, 2, 0, 0],
        [2],
    ]
    return [Tensor(np.asarray(value, np.int32)) for value in values]


def test_the_sharded_cell_has_the_losses_and_gradients_of_the_plain_one():
    """Also with rows of padding, with wild numbers in them, in several pipeline stages."""
    plain = CpmBee(SIZES)
    initialise(plain, 1)
    loss, other = CpmBeeLoss(plain), sharded((0, 1, 2))
    table = np.full((ROWS, SIZES.hidden_size), 9.0, np.float32)
    table[: SIZES.vocab_size] = plain.embed.weight.asnumpy()
    other.model.embed.weight.set_data(Tensor(table))
    factor = Tensor([0.5], ms.float32)

    def total(*batch):
        return loss(*batch)[0] * 0.5

    def total_sharded(*batch):
        return other(factor, *batch)

    batch = columns()
    weights = [list(cell.trainable_params()) for cell in (plain, other)]
    value, grads = ops.value_and_grad(total, None, weights[0])(*batch)
    value2, grads2 = ops.value_and_grad(total_sharded, None, weights[1])(*batch)
    assert abs(float(value) - float(value2)) < 1e-5
    assert [w.name for w in weights[0]] == [w.name for w in weights[1]]
    for weight, one, two in zip(weights[0], grads, grads2):
        wanted, found = one.asnumpy(), two.asnumpy()
        if weight.name == "embed.weight":
            assert (found[SIZES.vocab_size :] == 0).all()
            found = found[: SIZES.vocab_size]
        np.testing.assert_allclose(found, wanted, atol=2e-6, err_msg=weight.name)


def test_every_operator_outside_the_cells_of_the_plan_is_in_it():
    net = sharded()
    planned = {(id(owner), attribute) for _, owner, attribute in find_parts(net, PLAN)}
    inside = [getattr(owner, name) for _, owner, name in find_parts(net, PLAN)]
    covered = {id(c) for cell in inside if isinstance(cell, nn.Cell) for c in cells_of(cell)}
    unused = {("model", "matmul")}  # the projection of generation
    for path, cell in net.cells_and_names():
        if id(cell) in covered:
            assert not list(cell.get_parameters()), path
            continue
        for key, value in cell.__dict__.items():
            if isinstance(value, ops.Primitive) and (path, key) not in unused:
                assert (id(cell), key) in planned, f"{path}.{key}"


def cells_of(cell):
    return [one for _, one in cell.cells_and_names()]


def test_a_part_that_the_network_lacks_is_named():
    plan = dataclasses.replace(PLAN, parts=(*PLAN.parts, Part("model.gone", "bt -> bt")))
    with pytest.raises(ConfigError, match="the network has no model.gone"):
        list(find_parts(sharded(), plan))


def test_stages_are_marked():
    net = sharded((0, 0, 1))
    assert [block.pipeline_stage for block in net.model.blocks] == [0, 0, 1]
    assert [frame.pipeline_stage for frame in net.model.frames] == [0, 1]
    assert net.model.embed.pipeline_stage == 0 and net.nll.pipeline_stage == 1
