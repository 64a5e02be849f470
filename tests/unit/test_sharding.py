"""What a shard plan is laid over: the training cell, its operators, and its losses."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindplm.config import OptimConfig, ParallelConfig
from mindplm.data.bee_rows import ROWS as ROWS_OF_BEE
from mindplm.errors import ConfigError
from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.models.cpm_bee.plan import PLAN
from mindplm.models.cpm_bee.sharded import ShardedCpmBeeLoss
from mindplm.nn.init import initialise
from mindplm.shards import Part
from mindplm.train.optim import Adam
from mindplm.train.scaler import LossScale
from mindplm.train.sharded_step import ShardedStep, inputs, of_step
from mindplm.train.sharding import find_parts
from mindplm.train.step import Numbers, TrainStep

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


def test_a_part_that_the_network_lacks_is_named():
    plan = dataclasses.replace(PLAN, parts=(*PLAN.parts, Part("model.gone", "bt -> bt")))
    with pytest.raises(ConfigError, match="the network has no model.gone"):
        list(find_parts(sharded(), plan))


def test_stages_are_marked():
    net = sharded((0, 0, 1))
    assert [block.pipeline_stage for block in net.model.blocks] == [0, 0, 1]
    assert [frame.pipeline_stage for frame in net.model.frames] == [0, 1]
    assert net.model.embed.pipeline_stage == 0 and net.nll.pipeline_stage == 1


def test_a_step_that_is_called_for_each_micro_batch_moves_the_weights_once() -> None:
    """As the plain step with as many micro-batches does: report, weights, and empty sums after."""
    # A large epsilon: a tiny gradient divided by its own size would magnify roundings.
    optim, parallel = OptimConfig(clip_norm=0.5, eps=1e-3), ParallelConfig()
    plain = CpmBee(dataclasses.replace(SIZES, vocab_size=ROWS))
    initialise(plain, 1)
    wanted = TrainStep(
        CpmBeeLoss(plain), Adam(list(plain.trainable_params()), optim), clip_norm=0.5, num_micro=2
    )
    other = ShardedCpmBeeLoss(plain.config, ms.float32, ROWS, (0, 0, 0))
    initialise(other.model, 1)
    optimizer = Adam(list(other.trainable_params()), optim)
    step = ShardedStep(
        other,
        optimizer,
        LossScale(optim, dynamic=False),
        clip_norm=0.5,
        num_micro=2,
        num_rates=1,
        parallel=parallel,
        copies=[1] * len(optimizer.weights),
    )
    names = ROWS_OF_BEE.columns
    batch = dict(zip(names, (column.asnumpy() for column in columns())))
    shared = {"ext_ids", "ext_sub", "num_ext"}
    for number in range(2):
        numbers = Numbers(7.0, [optimizer.rates(1e-2, number)], number)
        report = wanted(batch, shared, numbers).asnumpy()
        for part in range(2):
            ops.assign(step.numbers, Tensor(of_step(numbers, last=part == 1)))
            rows = {n: a if n in shared else a[part : part + 1] for n, a in batch.items()}
            found = step(*inputs(rows, shared, 7.0, 1)).asnumpy()
        np.testing.assert_allclose(found, report[: len(found)], rtol=1e-5)
    for one, two in zip(plain.trainable_params(), other.trainable_params()):
        np.testing.assert_allclose(two.asnumpy(), one.asnumpy(), atol=5e-5, err_msg=one.name)
    assert all((total.asnumpy() == 0).all() for total in step.sums)
