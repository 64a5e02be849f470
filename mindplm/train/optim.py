"""Adam with decoupled or L2 weight decay over fp32 moments."""

from __future__ import annotations

import math
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindplm.config import OptimConfig


def decayed(weight: Parameter, which: str) -> bool:
    """Whether weight decay applies: to everything, or to matrices but not to tables."""
    table = weight.name.endswith(("embed.weight", "position_bias.weight"))
    return which == "all" or (weight.ndim > 1 and not table)


class Scalars(NamedTuple):
    """The numbers of one optimizer step; they enter the graph as one fp32 vector."""

    lr: float
    beta1_power: float
    beta2_power: float
    eps: float
    decay: float
    per_target: float

    def tensor(self) -> Tensor:
        """fp32 [6]."""
        return Tensor(np.array(self, np.float32))


class Adam(nn.Cell):
    """One optimizer step over all parameters, in place.

    With decoupled decay w <- w - lr * m^ / (sqrt(v^) + eps) - lr * decay * w; otherwise decay * w
    is added to the gradient. m^ and v^ are the bias-corrected moments.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
    """

    def __init__(self, weights: list[Parameter], config: OptimConfig):
        super().__init__()
        self.weights = ParameterTuple(weights)
        self.moment1 = self.weights.clone(prefix="adam_m", init="zeros")
        self.moment2 = self.weights.clone(prefix="adam_v", init="zeros")
        self.decays = tuple(
            config.weight_decay > 0 and decayed(weight, config.decay) for weight in weights
        )
        self.decoupled = config.name == "adamw"
        self.beta1 = Tensor(config.beta1, ms.float32)
        self.beta2 = Tensor(config.beta2, ms.float32)
        self.update = ops.Adam()
        self.numbers = config

    def scalars(self, lr: float, step: int, num_targets: float) -> Scalars:
        """The numbers of the step after `step` completed ones.

        The operator adds its epsilon before the bias correction of the second moment, so the
        epsilon is corrected here to stand where the paper has it.
        """
        power1, power2 = (b ** (step + 1) for b in (self.numbers.beta1, self.numbers.beta2))
        decay = self.numbers.weight_decay * (lr if self.decoupled else 1.0)
        eps = self.numbers.eps * math.sqrt(1 - power2)
        return Scalars(lr, power1, power2, eps, decay, 1.0 / max(num_targets, 1.0))

    def construct(self, grads, scalars_6):
        """Updates all weights.

        Args:
            grads: One gradient a weight.
            scalars_6: `Scalars` as a tensor.
        """
        lr, power1, power2 = scalars_6[0], scalars_6[1], scalars_6[2]
        eps, decay = scalars_6[3], scalars_6[4]
        done = ()
        for i in range(len(self.weights)):
            weight, grad = self.weights[i], grads[i]
            if self.decays[i] and self.decoupled:
                grad = ops.depend(grad, ops.assign(weight, weight * (1.0 - decay)))
            elif self.decays[i]:
                grad = grad + weight * decay
            result = self.update(
                weight,
                self.moment1[i],
                self.moment2[i],
                power1,
                power2,
                lr,
                self.beta1,
                self.beta2,
                eps,
                grad,
            )
            done = done + (result[0],)
        return done
