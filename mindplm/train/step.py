"""The compiled training step: gradients of a global batch, clipping and the update."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from mindplm.nn.kernels import sum_squares
from mindplm.train.optim import Adam, Scalars


def global_norm(grads):
    """Root of the sum of squares of all gradients, fp32 scalar."""
    total = Tensor(0.0, ms.float32)
    for grad in grads:
        total = total + sum_squares(grad)
    return ops.sqrt(total)


class TrainStep:
    """Computes the loss of a batch and moves the weights, in one compiled graph.

    With several micro-batches there are two graphs: one adds up gradients, one moves the weights.
    Gradients are those of the loss sum divided by the targets of the whole global batch, which the
    caller knows beforehand, so cutting a batch changes nothing.

    Args:
        loss: Cell from columns to (loss sum, number of targets).
        optimizer: The optimizer over the loss cell's weights.
        clip_norm: Largest global norm of the gradient; 0 turns clipping off.
        num_micro: Micro-batches of a step.
    """

    def __init__(self, loss: nn.Cell, optimizer: Adam, *, clip_norm: float, num_micro: int):
        self.num_micro = num_micro
        self.optimizer = optimizer
        weights = optimizer.weights
        self.sums = weights.clone(prefix="grad_sum", init="zeros") if num_micro > 1 else None
        sums: ParameterTuple = self.sums

        def loss_sum(per_target, *columns):
            total, count = loss(*columns)
            return total * per_target, count

        gradient = ops.value_and_grad(loss_sum, None, weights, has_aux=True)

        def move(grads, scalars):
            norm = global_norm(grads)
            if clip_norm > 0:
                factor = ops.minimum(clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
                clipped: tuple[Tensor, ...] = ()
                for grad in grads:
                    clipped = clipped + (grad * factor,)
                grads = clipped
            return ops.depend(norm, optimizer(grads, scalars))

        @ms.jit
        def whole(scalars, *columns):
            (value, _), grads = gradient(scalars[0], *columns)
            return value, move(grads, scalars)

        @ms.jit
        def micro(scalars, *columns):
            (value, _), grads = gradient(scalars[0], *columns)
            for i in range(len(grads)):
                value = ops.depend(value, ops.assign_add(sums[i], grads[i]))
            return value

        @ms.jit
        def finish(scalars):
            norm = move(sums, scalars)
            for i in range(len(sums)):
                norm = ops.depend(norm, ops.assign(sums[i], ops.zeros_like(sums[i])))
            return norm

        self.whole, self.micro, self.finish = whole, micro, finish

    def __call__(self, columns: dict[str, np.ndarray], shared: set[str], scalars: Scalars):
        """Runs one optimizer step.

        Args:
            columns: Arrays of the global batch in the training cell's order; those named in
                `shared` belong to every micro-batch, the others are cut along the first axis.
            shared: Names of the columns that are not cut.
            scalars: Numbers of the step.

        Returns:
            (loss in nats a target, gradient norm before clipping), two fp32 tensors not yet read.
        """
        numbers = scalars.tensor()
        if self.num_micro == 1:
            return self.whole(numbers, *(Tensor(a) for a in columns.values()))
        value = Tensor(0.0, ms.float32)
        for part in range(self.num_micro):
            cut = []
            for name, array in columns.items():
                size = 0 if name in shared else len(array) // self.num_micro
                cut.append(Tensor(array[part * size : (part + 1) * size] if size else array))
            value = value + self.micro(numbers, *cut)
        return value, self.finish(numbers)
