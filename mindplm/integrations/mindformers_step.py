"""Schedule, optimizer and step of a MindFormers run; see `mindformers`, which registers all."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from mindplm.config import OptimConfig
from mindplm.data.packing import COLUMNS, IGNORE
from mindplm.errors import ConfigError
from mindplm.integrations.mindformers_config import (
    AdamSection,
    ScheduleSection,
    StepSection,
    missing,
    read_section,
)
from mindplm.strict import to_plain
from mindplm.train.optim import Adam
from mindplm.train.schedule import learning_rate
from mindplm.train.step import clipped, global_norm

try:
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindformers.tools.utils import get_real_group_size
except ImportError as error:
    raise missing(error) from None

_TARGETS = COLUMNS.index("targets")
# What MindFormers hands to every wrapper, and whether it must be off.
_WRAPPER_EXTRAS = {
    "calculate_per_token_loss": True,
    "use_skip_data_by_global_norm": True,
    "grouped_lr_scheduler": True,
    "global_norm_spike_threshold": False,
    "print_separate_loss": False,
    "lr_scheduler": False,
    "parallel_config": False,
}


@MindFormerRegister.register(MindFormerModuleType.LR)
class MindplmSchedule(LearningRateSchedule):
    """Our learning-rate schedule as a table over the steps of the run."""

    def __init__(self, total_steps: int, **own: Any):
        super().__init__()
        section = read_section(ScheduleSection, own, "lr_schedule")
        config = OptimConfig(**to_plain(section))
        rates = [learning_rate(config, step, total_steps) for step in range(max(1, total_steps))]
        self.table = Tensor(np.array(rates, np.float32))
        self.last = len(rates) - 1

    def construct(self, global_step):
        """Learning rate after `global_step` steps."""
        step = ops.clamp(global_step.astype(ms.int32), max=self.last)
        return ops.gather(self.table, step, 0)


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class MindplmAdam(nn.Optimizer):
    """Our Adam; what decays is chosen by `decay`, not by MindFormers' groups.

    Bias corrections are those of `Adam.rates`, from a table that ends where fp32 sees them as 1.
    """

    def __init__(self, params: Any, learning_rate: Any, **own: Any):
        weights: list[Any] = []
        for group in params:
            if isinstance(group, dict) and "lr" in group:
                raise ConfigError("grouped_lr_schedule cannot be used with MindplmAdam")
            weights += group["params"] if isinstance(group, dict) else [group]
        super().__init__(learning_rate, weights)
        config = OptimConfig(**to_plain(read_section(AdamSection, own, "optimizer")))
        self.adam = Adam(weights, config)
        slow = max(config.beta1, config.beta2)
        known = 1 + math.ceil(math.log(2**-26) / math.log(slow)) if slow else 1
        self.units = Tensor(np.array([self.adam.rates(1.0, n) for n in range(known)], np.float32))
        self.last = known - 1
        self.factor = (1.0, 0.0, 1.0 if self.adam.decoupled else 0.0)
        self.one = Tensor(1.0, ms.float32)

    def construct(self, gradients):
        """Moves all weights."""
        step = self.global_step.reshape(()) * 1
        lr = self.learning_rate
        if self.dynamic_lr:
            lr = self.learning_rate(step)
        unit_3 = ops.gather(self.units, ops.clamp(step, max=self.last), 0)
        by_lr = Tensor(self.factor, ms.float32)
        done = self.adam(gradients, unit_3 * (by_lr * lr + (1.0 - by_lr)), self.one)
        return ops.depend(self.assignadd(self.global_step, 1), done)


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class MindplmTrainStep(nn.Cell):
    """One step: the gradient of the mean over all targets of all devices, clipped, one update.

    Weights do not move when loss or gradient are not finite. Takes any optimizer of MindSpore's or
    MindFormers' that has one learning rate.

    Args:
        network: Columns to mean loss of this device's targets.
        optimizer: Over the network's weights.
        given: clip_norm, and what MindFormers adds to every wrapper.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, **given: Any):
        super().__init__(auto_prefix=False)
        for name, unused in _WRAPPER_EXTRAS.items():
            if given.pop(name, None) and unused:
                raise ConfigError(f"{name} cannot be used with MindplmTrainStep")
        mode = str(ms.get_auto_parallel_context("parallel_mode"))
        if mode not in ("stand_alone", "data_parallel"):
            raise ConfigError(
                f"parallel.parallel_mode is {mode}; MindplmTrainStep takes one device or 0 "
                "(data_parallel)"
            )
        self.clip_norm = read_section(StepSection, given, "runner_wrapper").clip_norm
        self.network, self.optimizer = network, optimizer
        self.weights = ParameterTuple(optimizer.parameters)
        self.gradient = ops.value_and_grad(network, None, self.weights)
        self.dynamic_lr = optimizer.dynamic_lr
        self.world = get_real_group_size() if mode == "data_parallel" else 1
        if self.world > 1:
            self.reduce = ops.AllReduce()
        self.one = Tensor(1.0, ms.float32)

    def construct(self, *columns):
        """Returns (loss, whether the step was skipped, loss scale, learning rate, norm)."""
        lr = self.optimizer.learning_rate
        if self.dynamic_lr:
            lr = self.optimizer.learning_rate(self.optimizer.global_step.reshape(()) * 1)
        loss, grads = self.gradient(*columns)
        if self.world > 1:
            count = (columns[_TARGETS] != IGNORE).astype(ms.float32).sum()
            share = count / ops.maximum(self.reduce(count), self.one)
            loss = self.reduce(loss * share)
            summed: tuple[Tensor, ...] = ()
            for grad in grads:
                summed = summed + (self.reduce(grad * share),)
            grads = summed
        norm = global_norm(grads)
        ok = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        if ok:
            done = self.optimizer(clipped(grads, norm, self.clip_norm, self.one))
            loss = ops.depend(loss, done)
        return loss, ops.logical_not(ok), self.one, lr, norm
