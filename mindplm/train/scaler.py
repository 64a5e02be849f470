"""The loss scale of half-precision training, which follows the overflows of the gradients."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindplm.config import OptimConfig

SMALLEST = 1.0


def scalar(value: float, name: str) -> Parameter:
    """A state of training of one fp32 number."""
    return Parameter(Tensor(value, ms.float32), name=name, requires_grad=False)


class LossScale(nn.Cell):
    """Factor on the loss, halved by an overflow and doubled after many steps without.

    An overflow divides the scale by the factor, not below 1, and begins the count of good steps
    anew; at 1 it changes nothing, the count included. After `loss_scale_steps` good steps the scale
    is multiplied. Without `dynamic` the scale is 1 for good.

    Args:
        config: Start, factor (one below 1 means its inverse) and steps.
        dynamic: Whether gradients are of a type that overflows.

    Source: the loss scale of BMTrain's optimizer manager, as the CPM-Bee scripts use it.
    """

    def __init__(self, config: OptimConfig, *, dynamic: bool):
        super().__init__()
        factor = config.loss_scale_factor
        self.factor = factor if factor > 1 else 1 / factor
        self.steps = float(config.loss_scale_steps)
        self.dynamic = dynamic
        self.scale = scalar(config.loss_scale if dynamic else SMALLEST, "loss_scale")
        self.good = scalar(0, "loss_scale_good_steps")

    def state(self) -> list[Parameter]:
        """What a checkpoint keeps."""
        return [self.scale, self.good]

    def construct(self, ok):
        """Takes note of a step.

        Args:
            ok: Boolean scalar: no gradient overflowed.

        Returns:
            The scale of the next step.
        """
        scale, good = self.scale * 1.0, self.good + 1.0
        if not self.dynamic:
            return scale
        full = good >= self.steps
        larger = ops.where(full, scale * self.factor, scale)
        smaller = ops.maximum(scale / self.factor, Tensor(SMALLEST, ms.float32))
        falls = scale > SMALLEST
        none = Tensor(0.0, ms.float32)
        next_good = ops.where(ok, ops.where(full, none, good), ops.where(falls, none, good - 1.0))
        next_scale = ops.where(ok, larger, ops.where(falls, smaller, scale))
        return ops.depend(
            next_scale, (ops.assign(self.scale, next_scale), ops.assign(self.good, next_good))
        )
