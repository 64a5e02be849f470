"""One training step of a network that is cut over devices by its family's shard plan.

The whole step is one graph: forward and backward passes of all micro-batches, communication,
clipping and the update. MindSpore's semi-automatic parallel mode compiles it; only Ascend has that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.communication import get_rank
from mindspore.graph.lazy_inline import lazy_inline
from mindspore.nn.utils import no_init_parameters
from mindspore.parallel.auto_parallel import AutoParallel

from mindplm import runtime
from mindplm.config import ParallelConfig, RunConfig
from mindplm.families import family
from mindplm.shards import held_shapes, operand, shard_threshold_kb, stages_of, vocab_rows
from mindplm.train.optim import Adam, Rates, zeros
from mindplm.train.scaler import LossScale
from mindplm.train.sharding import lay_plan
from mindplm.train.step import Move, Numbers

_NO_RATES = Rates(0.0, 0.0, 0.0)
REPORT = 6
"""Numbers of the report of a step without tasks."""


class _Once(nn.Cell):
    """A network that is compiled once and called for every micro-batch, as pipelines need it."""

    @lazy_inline
    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *columns):
        return self.network(*columns)


class _ShardedNorm(nn.Cell):
    """Norm of gradients of which each device holds a part.

    The compiler adds the marked sums up over the devices that hold different parts.
    """

    def __init__(self):
        super().__init__()
        self.expand = ops.ExpandDims().add_prim_attr("grad_scale", True)

    def construct(self, grads):
        sums: tuple[Tensor, ...] = ()
        for grad in grads:
            square = ops.square(grad.astype(ms.float32))
            sums = sums + (self.expand(ops.ReduceSum()(square), 0),)
        return ops.squeeze(ops.sqrt(ops.addn(sums)))


class _LocalNorm(nn.Cell):
    """Norm of sums of gradients, each of which several devices may hold the same part of.

    Args:
        copies: For each weight the number of devices that hold the same part of it.
        world: Devices.
    """

    def __init__(self, copies: Sequence[int], world: int):
        super().__init__()
        self.shares = tuple(1.0 / count for count in copies)
        self.sum, self.several = ops.ReduceSum(), world > 1
        if world > 1:
            self.reduce = ops.AllReduce()

    def construct(self, grads):
        total = Tensor(0.0, ms.float32)
        for i in range(len(grads)):
            total = total + self.sum(ops.square(grads[i].astype(ms.float32))) * self.shares[i]
        total = ops.expand_dims(total, 0)
        return ops.squeeze(ops.sqrt(self.reduce(total) if self.several else total))


class ShardedStep(nn.Cell):
    """Loss, gradients and update of one global batch.

    With pipeline stages one call takes all micro-batches of a step. Without, it takes one and is
    called for each of them: a graph that holds them all takes too long to compile.

    Args:
        loss: The family's sharded training cell, the plan laid over it.
        optimizer: The optimizer over its weights, without those that belong to another stage.
        scaler: The loss scale.
        clip_norm: Largest global norm of the gradient; 0 turns clipping off.
        num_micro: Micro-batches of a step.
        num_rates: Rates in the numbers of a step.
        parallel: The layout.
        copies: For each weight the number of devices that hold the same part of it.
    """

    def __init__(
        self,
        loss: nn.Cell,
        optimizer: Adam,
        scaler: LossScale,
        *,
        clip_norm: float,
        num_micro: int,
        num_rates: int,
        parallel: ParallelConfig,
        copies: Sequence[int],
    ):
        super().__init__(auto_prefix=False)
        body: nn.Cell = loss
        if parallel.pipeline > 1:
            body = nn.PipelineCell(_Once(loss), num_micro)
        body.set_grad()
        self.body, self.weights = body, ParameterTuple(loss.trainable_params())
        own = {weight.name for weight in optimizer.weights}
        self.own = tuple(i for i, weight in enumerate(self.weights) if weight.name in own)
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.scaler, self.several = scaler, parallel.pipeline > 1 and num_micro > 1
        self.repeated = parallel.pipeline == 1 and num_micro > 1
        self.of_sums = self.several and not parallel.optimizer_shard
        if self.several:
            self.sums = self.weights.clone(prefix="accu_grads", init="zeros")
        elif self.repeated:
            self.sums = ParameterTuple([zeros(weight, "grad_sum.") for weight in self.weights])
            self.told = Parameter(Tensor([0.0], ms.float32), name="told", requires_grad=False)
        self.move = Move(
            optimizer,
            scaler,
            clip_norm=clip_norm,
            world=parallel.devices,
            norm=_LocalNorm(copies, parallel.devices) if self.repeated else _ShardedNorm(),
            limited=parallel.pipeline == 1,
        )
        values = Tensor(np.zeros(len(of_step(Numbers(1.0, [_NO_RATES] * num_rates))), np.float32))
        self.numbers = Parameter(values, name="numbers", requires_grad=False)

    def construct(self, factor, *columns):
        """The vector of `Report`; the loss in it is that of the last stage.

        Micro-batches are cut along the first axis of every input: what these share is repeated.
        The forward pass takes all inputs and nothing else does, as the compiler demands; so the
        other numbers of the step are in a parameter.

        Args:
            factor: One divided by the targets of the global batch, once a micro-batch.
            columns: Those of the batch.
        """
        loss = self.body(factor, *columns)
        numbers = self.numbers * 1.0
        sens = ops.ones_like(loss) * self.scaler.scale
        grads = self.gradient(self.body, self.weights)(factor, *columns, sens)
        facts = ops.expand_dims(loss / numbers[0], 0)
        if self.repeated:
            return self._one_of_many(grads, facts, numbers)
        if not self.several:
            return self.move(grads, facts, numbers)
        sums = ops.depend(self.sums, grads)
        own: tuple[Tensor, ...] = ()
        for i in self.own:
            own = own + (sums[i] if self.of_sums else grads[i],)
        report = self.move(own, facts, numbers)
        for i in range(len(sums)):
            total = ops.depend(sums[i], grads[i])  # a stage has no sums of other stages' weights
            report = ops.depend(report, ops.assign(total, ops.zeros_like(total)))
        return report

    def _one_of_many(self, grads, facts, numbers):
        """Adds gradients up; after the last micro-batch moves the weights."""
        sums = self.sums
        for i in range(len(grads)):
            facts = ops.depend(facts, ops.assign_add(sums[i], grads[i].astype(ms.float32)))
        told = ops.assign_add(self.told, facts)
        report = ops.zeros((REPORT,), ms.float32)
        if numbers[-1] > 0:
            report = self.move(sums, told * 1.0, numbers)
            report = ops.depend(report, ops.assign(self.told, ops.zeros_like(told)))
            for i in range(len(sums)):
                report = ops.depend(report, ops.assign(sums[i], ops.zeros_like(sums[i])))
        return report


def of_step(numbers: Numbers, last: bool = True) -> np.ndarray:
    """What the parameter `numbers` holds: those of the step, and whether this call ends it."""
    return np.append(numbers.tensor().asnumpy(), np.float32(last))


def sharded_step(config: RunConfig) -> AutoParallel:
    """The step of a run, ready to be compiled or called; its weights are not filled yet.

    Raises:
        ConfigError: The layout does not fit the plan.
    """
    parts, parallel = family(config.family), config.parallel
    plan, model = parts.part("plan"), config.model
    stages = stages_of(plan.block_costs(model), parallel.pipeline)
    rows = vocab_rows(model.vocab_size, parallel)
    dtype = getattr(ms, config.runtime.dtype)
    with no_init_parameters():  # no device holds more than its part
        loss = parts.part("sharded")(model, dtype, rows, stages)
        lay_plan(loss, plan, parallel, dtype)
        if parallel.recompute:
            for block in loss.model.blocks:
                block.recompute()
        step = ShardedStep(
            loss,
            Adam(_own_weights(loss, parallel), config.optim),
            LossScale(config.optim, dynamic=config.runtime.dtype == "float16"),
            clip_norm=config.optim.clip_norm,
            num_micro=config.accumulation,
            num_rates=runtime.steps_ahead() + 1,
            parallel=parallel,
            copies=_copies(loss, config),
        )
    step.set_train()
    network = AutoParallel(step, "semi_auto")
    specs = ("n", *plan.columns.values())
    network.dataset_strategy(tuple(plan.strategy(operand(axes), parallel) for axes in specs))
    if parallel.pipeline > 1:
        network.pipeline(stages=parallel.pipeline)
    if parallel.optimizer_shard:
        threshold = shard_threshold_kb(parallel)
        network.hsdp(shard_size=-1, threshold=threshold, optimizer_level="level1")
    return network


def _copies(loss: nn.Cell, config: RunConfig) -> list[int]:
    """For each weight the number of devices of a stage that hold the same part of it."""
    parts, parallel = family(config.family), config.parallel
    if parallel.pipeline > 1:
        return []
    held = held_shapes(parts.part("plan"), config, parts.part("shapes"))
    return [
        parallel.devices * math.prod(held[weight.name]) // math.prod(weight.shape)
        for weight in loss.trainable_params()
    ]


def _own_weights(loss: nn.Cell, parallel: ParallelConfig) -> list[Parameter]:
    """The weights that this process moves: not those that it receives from the first stage.

    The compiler removes what belongs to other stages alone.
    """
    if parallel.pipeline == 1 or get_rank() * parallel.pipeline < parallel.devices:
        return list(loss.trainable_params())
    shared = {id(weight) for weight in loss.shared_weights()}
    return [weight for weight in loss.trainable_params() if id(weight) not in shared]


def inputs(
    columns: Mapping[str, np.ndarray], shared: set[str], targets: float, num_micro: int
) -> list[Tensor]:
    """What the compiled step takes, from this device's rows.

    Args:
        columns: Arrays of this device's rows, in the training cell's order.
        shared: Names of those that belong to every micro-batch.
        targets: Predicted positions of the whole global batch.
        num_micro: Micro-batches of a step.
    """
    found = [Tensor(np.full(num_micro, 1.0 / max(targets, 1.0), np.float32))]
    for name, array in columns.items():
        found.append(Tensor(np.concatenate([array] * num_micro) if name in shared else array))
    return found
