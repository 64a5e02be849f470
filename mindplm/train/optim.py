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

    per_target: float
    """Factor on the loss sum and so on its gradients."""
    lr: float
    """Learning rate with the bias corrections in it."""
    eps: float
    """Epsilon as the operator takes it: beside the root that is not corrected."""
    decay: float
    """What a weight loses, or what of it is added to its gradient."""

    def tensor(self) -> Tensor:
        """fp32 [4]."""
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
        self.no_power = Tensor(0.0, ms.float32)
        self.update = ops.Adam()
        self.numbers = config

    def scalars(self, lr: float, step: int, num_targets: float) -> Scalars:
        """The numbers of the step after `step` completed ones.

        The bias corrections are computed here: in fp32 the operator would lose half of the digits
        of 1 - beta2^n in the first steps. Its epsilon stands before the correction of the second
        moment, so it is corrected to stand where the paper has it.
        """
        # The betas as the operator sees them, so that the weights of its sums add up to one.
        left1, left2 = (
            1 - float(np.float32(beta)) ** (step + 1)
            for beta in (self.numbers.beta1, self.numbers.beta2)
        )
        return Scalars(
            per_target=1.0 / max(num_targets, 1.0),
            lr=lr * math.sqrt(left2) / left1,
            eps=self.numbers.eps * (math.sqrt(left2) if self.numbers.eps_corrected else 1.0),
            decay=self.numbers.weight_decay * (lr if self.decoupled else 1.0),
        )

    def construct(self, grads, scalars_4):
        """Updates all weights.

        Args:
            grads: One gradient a weight.
            scalars_4: `Scalars` as a tensor.
        """
        _, lr, eps, decay = scalars_4
        done: tuple[Tensor, ...] = ()
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
                self.no_power,
                self.no_power,
                lr,
                self.beta1,
                self.beta2,
                eps,
                grad,
            )
            done = done + (result[0],)
        return done
