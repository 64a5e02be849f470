"""The compiled training step: gradients of a global batch, clipping and the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindplm.config import RunConfig, to_dict
from mindplm.graph_cache import GraphCache
from mindplm.nn.dropout import Moment
from mindplm.nn.kernels import overflowed, sum_squares
from mindplm.train.optim import Adam, Rates, zeros
from mindplm.train.scaler import LossScale, scalar

LARGEST = float(np.finfo(np.float32).max)
"""Any finite loss is at most this; infinity is not."""
_HEAD = 4
"""Numbers before the rates in the vector that enters a step."""


_each = ops.HyperMap()
"""Over a tuple; a sum of tuples in a loop would take the compiler the square of their length."""
_times = ops.MultitypeFuncGraph("times")


@_times.register("Tensor", "Tensor")
def _times_factor(factor, grad):
    return (grad * factor).astype(grad.dtype)


def global_norm(grads):
    """Root of the sum of squares of all gradients, fp32 scalar."""
    total = Tensor(0.0, ms.float32)
    for grad in grads:
        total = total + sum_squares(grad)
    return ops.sqrt(total)


def clipped(grads, norm, clip_norm: float, scale):
    """The gradients with a norm of at most clip_norm * scale, in their own types.

    Args:
        grads: Of any number.
        norm: Their global norm.
        clip_norm: 0 turns clipping off; fixed when the graph is built.
        scale: Loss scale that they carry.
    """
    if clip_norm == 0:
        return grads
    factor = ops.minimum(clip_norm * scale / (norm + 1e-6), Tensor(1.0, ms.float32))
    return _each(ops.partial(_times, factor), grads)


@dataclass(frozen=True)
class Numbers:
    """What a step is told beside its batch.

    Attributes:
        targets: Predicted positions of the whole global batch.
        rates: The optimizer's numbers for `updates` completed updates, for one more, and so on;
            the step takes the row of the updates that were really made.
        updates: See rates.
        loss_limit: The weights do not move at a larger loss.
        stop: This process wants the run to stop.
        done: Steps made, the unlucky ones too; dropouts depend on it.
    """

    targets: float
    rates: Sequence[Rates]
    updates: int = 0
    loss_limit: float = LARGEST
    stop: bool = False
    done: int = 0

    def tensor(self) -> Tensor:
        """fp32 [4 + 3 * number of rates]."""
        head = (1.0 / max(self.targets, 1.0), self.loss_limit, float(self.stop), self.updates)
        return Tensor(np.concatenate([np.array(head), *self.rates]).astype(np.float32))


class Report(NamedTuple):
    """What a step tells.

    Attributes:
        loss: Nats a target, of the global batch.
        norm: Norm of the gradient before clipping.
        moved: Whether the weights moved; they do not when a number is not finite.
        scale: Loss scale that it ran with.
        updates: Updates made so far.
        stops: Number of processes that want to stop.
        task_nats: Loss sum of each task.
        task_targets: Predicted positions of each task.
    """

    loss: float
    norm: float
    moved: bool
    scale: float
    updates: int
    stops: int
    task_nats: np.ndarray
    task_targets: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> Report:
        """From the vector that a step returns."""
        loss, norm, moved, scale, updates, stops = values[:6].tolist()
        nats, targets = values[6:].reshape(2, -1)
        return Report(loss, norm, bool(moved), scale, int(updates), round(stops), nats, targets)


class _Facts(nn.Cell):
    """The loss times a factor, and the sums that are reported: loss, losses and targets of tasks.

    All of them add up over micro-batches and devices.
    """

    def __init__(self, loss: nn.Cell, num_tasks: int):
        super().__init__(auto_prefix=False)
        self.loss, self.num_tasks = loss, num_tasks

    def construct(self, factor, *columns):
        if not self.num_tasks:
            total, _ = self.loss(*columns)
            return total * factor, ops.stop_gradient(total).reshape((1,))
        nll_n, real_n = self.loss.tokens(*columns[:-1])
        nll_n = nll_n * real_n
        total = nll_n.sum()
        wanted = ops.arange(self.num_tasks).astype(ms.int32).expand_dims(1)
        own = (columns[-1].reshape((1, -1)) == wanted).astype(ms.float32)
        both = ops.stop_gradient(ops.stack((nll_n, real_n), 1))
        sums = ops.MatMul()(own, both).swapaxes(0, 1).reshape((-1,))
        return total * factor, ops.concat((ops.stop_gradient(total).reshape((1,)), sums))


class Move(nn.Cell):
    """Adds gradients up over the devices, clips them and moves the weights if all is finite.

    Args:
        optimizer: The optimizer.
        scaler: The loss scale.
        clip_norm: Largest global norm of the gradient; 0 turns clipping off.
        world: Devices.
        norm: Norm of gradients of which each device holds a part, already added up by the compiler,
            like the loss; None: every device has gradients of its own for all weights.
        limited: Look at the loss; in a pipeline only the last stage knows it, and all must agree.
    """

    def __init__(
        self,
        optimizer: Adam,
        scaler: LossScale,
        *,
        clip_norm: float,
        world: int,
        norm: nn.Cell | None = None,
        limited: bool = True,
    ):
        super().__init__(auto_prefix=False)
        # Parts of gradients must come out of the clipping as new values, see below.
        self.clip_norm = clip_norm if clip_norm or norm is None else 1e30
        self.optimizer, self.scaler = optimizer, scaler
        self.updates = scalar(0, "updates")
        self.world, self.cut = world, norm is not None
        self.norm: Any = norm
        self.limited = limited
        if world > 1:
            self.reduce = ops.AllReduce()

    def construct(self, grads, facts, numbers):
        """Returns the vector of `Report`."""
        over = overflowed(grads).expand_dims(0) if self.scaler.dynamic else numbers[2:3] * 0.0
        stops = numbers[2:3]
        if self.world > 1 and self.cut:
            stops, over = self.reduce(stops), self.reduce(over)
        elif self.world > 1:
            told = self.reduce(ops.concat((facts, stops, over)))
            facts, stops, over = told[:-2], told[-2:-1], told[-1:]
            summed: tuple[Tensor, ...] = ()
            for grad in grads:
                summed = summed + (self.reduce(grad),)
            grads = summed
        scale, updates = self.scaler.scale * 1.0, self.updates * 1.0
        loss = facts[0] * numbers[0]
        norm = self.norm(grads) if self.cut else global_norm(grads)
        ok = ops.isfinite(norm)
        if self.limited:
            ok = ops.logical_and(ok, loss <= numbers[1])
        ok = ops.logical_and(ok, ops.squeeze(over) == 0)
        row = updates - numbers[3]
        rows = (numbers.shape[0] - _HEAD) // 3
        ok = ops.logical_and(ok, ops.logical_and(row >= 0, row < rows))
        # No reshape: where weights are cut, the compiler would bend its shape to theirs.
        place = ops.clamp(row.astype(ms.int32), min=0, max=rows - 1) * 3 + _HEAD
        rates = ops.gather(numbers, place + ops.arange(3).astype(ms.int32), 0)
        told = norm / scale
        # Before the branch: inside it, a pipeline stage would miscount the gradients it has not.
        grads = clipped(grads, norm, self.clip_norm, scale)
        if ok:
            done = self.optimizer(grads, rates, 1.0 / scale)
            told = ops.depend(told, done)
        moved = ok.astype(ms.float32)
        updates = updates + moved
        told = ops.depend(told, (ops.assign(self.updates, updates), self.scaler(ok)))
        head = ops.stack((loss, told, moved, scale, updates, ops.squeeze(stops)))
        return head if facts.shape[0] == 1 else ops.concat((head, facts[1:]))


class _Whole(nn.Cell):
    """A function of the step as a cell that has all its weights, as a kept graph needs."""

    def __init__(self, run, loss: nn.Cell, move: Move, sums: Any):
        super().__init__(auto_prefix=False)
        self.run, self.loss, self.move, self.sums = run, loss, move, sums

    def construct(self, *inputs):
        return self.run(*inputs)


class TrainStep:
    """Computes the loss of a batch and moves the weights, in one compiled graph.

    With several micro-batches there are two graphs: one adds up gradients, one moves the weights.
    Gradients are those of the loss sum divided by the targets of the whole global batch, which the
    caller knows beforehand, so cutting a batch changes nothing. With several devices each computes
    its part, and gradients are added up once.

    Args:
        loss: Cell from columns to (loss sum, number of targets).
        optimizer: The optimizer over the loss cell's weights.
        clip_norm: Largest global norm of the gradient; 0 turns clipping off.
        num_micro: Micro-batches of a step.
        scaler: The loss scale; none is needed for fp32 weights.
        world: Devices that each take a share of every batch.
        num_tasks: Tasks whose losses are told; the loss cell has `tokens` then, and `tasks`, the
            number of the task of each target, is the last column.
        cache: Keeps the graphs between runs; none: they are compiled anew.

    Attributes:
        moment: Tells the network's dropouts what comes; to be set if there are any.
    """

    def __init__(
        self,
        loss: nn.Cell,
        optimizer: Adam,
        *,
        clip_norm: float,
        num_micro: int,
        scaler: LossScale | None = None,
        world: int = 1,
        num_tasks: int = 0,
        cache: GraphCache | None = None,
    ):
        self.num_micro, self.moment = num_micro, Moment()
        self.optimizer = optimizer
        self.scaler = scaler or LossScale(optimizer.numbers, dynamic=False)
        weights = optimizer.weights
        move = Move(optimizer, self.scaler, clip_norm=clip_norm, world=world)
        self._updates = move.updates
        self.sums = ms.ParameterTuple(zeros(w, "grad_sum.") for w in weights if num_micro > 1)
        self._none = np.zeros(1 + 2 * num_tasks, np.float32)
        sums, scale = self.sums, self.scaler.scale
        gradient = ops.value_and_grad(_Facts(loss, num_tasks), None, weights, has_aux=True)

        def whole(numbers, *columns):
            (_, facts), grads = gradient(numbers[0] * scale, *columns)
            return move(grads, facts, numbers)

        def micro(numbers, *columns):
            (_, facts), grads = gradient(numbers[0] * scale, *columns)
            for i in range(len(grads)):
                facts = ops.depend(facts, ops.assign_add(sums[i], grads[i].astype(ms.float32)))
            return facts

        def finish(numbers, facts):
            report = move(sums, facts, numbers)
            for i in range(len(sums)):
                report = ops.depend(report, ops.assign(sums[i], ops.zeros_like(sums[i])))
            return report

        def graph(run: Any) -> Any:
            return _Whole(run, loss, move, sums) if self.cache.folder else ms.jit(run)

        self.cache = cache or GraphCache("", None)
        self.whole, self.micro, self.finish = graph(whole), graph(micro), graph(finish)

    def state(self) -> list[Parameter]:
        """What a checkpoint keeps beside weights and moments."""
        return [*self.scaler.state(), self._updates]

    def __call__(self, columns: Mapping[str, np.ndarray], shared: set[str], numbers: Numbers):
        """Runs one optimizer step.

        Args:
            columns: Arrays of this device's rows in the training cell's order; those named in
                `shared` belong to every micro-batch, the others are cut along the first axis.
            shared: Names of the columns that are not cut.
            numbers: Numbers of the step.

        Returns:
            The vector of `Report`, fp32, not yet read.
        """
        vector = numbers.tensor()
        if self.num_micro == 1:
            inputs = [Tensor(a) for a in columns.values()]
            self.moment.begin(numbers.done)
            with self.cache.first(vector, *inputs):
                report = self.whole(vector, *inputs)
            self.moment.end()
            return report
        facts = Tensor(self._none)
        for part in range(self.num_micro):
            rows = micro_batch(columns, shared, part, self.num_micro)
            inputs = [Tensor(a) for a in rows.values()]
            self.moment.begin(numbers.done, part)
            with self.cache.first(vector, *inputs):
                facts = facts + self.micro(vector, *inputs)
        self.moment.end()
        with self.cache.second():
            return self.finish(vector, facts)


def micro_batch(
    columns: Mapping[str, np.ndarray], shared: set[str], part: int, num_micro: int
) -> dict[str, np.ndarray]:
    """One of the parts that a batch is cut into; the shared columns belong to all of them."""
    found = {}
    for name, array in columns.items():
        size = 0 if name in shared else len(array) // num_micro
        found[name] = array[part * size : (part + 1) * size] if size else array
    return found


def plain_step(
    config: RunConfig, model: nn.Cell, loss: nn.Cell, *, world: int, num_tasks: int = 0
) -> TrainStep:
    """The step of a run in which every device holds all weights.

    Args:
        config: The run's settings.
        model: The network, with its adapters if it has some.
        loss: Its training cell.
        world: Devices.
        num_tasks: Tasks whose losses are told.
    """
    if config.parallel.recompute:
        for block in model.blocks:
            block.recompute()
    adam = Adam(list(model.trainable_params()), config.optim)
    weights = [*loss.get_parameters(), *adam.get_parameters()]
    settings = to_dict(config)
    for name in ("output", "resume", "steps"):
        settings["train"].pop(name)
    return TrainStep(
        loss,
        adam,
        clip_norm=config.optim.clip_norm,
        num_micro=config.accumulation,
        scaler=LossScale(config.optim, dynamic=config.runtime.dtype == "float16"),
        world=world,
        num_tasks=num_tasks,
        cache=GraphCache(config.runtime.compile_cache, [settings, num_tasks, world], weights),
    )
