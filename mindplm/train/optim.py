"""Adam with decoupled or L2 weight decay over fp32 moments."""

from __future__ import annotations

import math
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import Zero

from mindplm.config import OptimConfig

MASTER = "master."
"""Before a weight's name: its fp32 copy."""


def decayed(weight: Parameter, which: str) -> bool:
    """Whether weight decay applies: to everything, or to matrices, or to these but no tables."""
    table = weight.name.endswith(("embed.weight", "position_bias.weight"))
    return which == "all" or (weight.ndim > 1 and not (table and which == "matrices"))


class Rates(NamedTuple):
    """The numbers of one update that change from step to step."""

    lr: float
    """Learning rate with the bias corrections in it."""
    eps: float
    """Epsilon as the operator takes it: beside the root that is not corrected."""
    decay: float
    """What a weight loses, or what of it is added to its gradient."""


class Adam(nn.Cell):
    """One optimizer step over all parameters, in place.

    Weights in half precision follow fp32 masters, rounded after each step.

    With decoupled decay w <- w - lr * m^ / (sqrt(v^) + eps) - lr * decay * w; otherwise decay * w
    is added to the gradient. m^ and v^ are the bias-corrected moments.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
    """

    def __init__(self, weights: list[Parameter], config: OptimConfig):
        super().__init__()
        self.weights = ParameterTuple(weights)
        self.half = any(weight.dtype != ms.float32 for weight in weights)
        self.masters = ParameterTuple([_master(weight) for weight in weights])
        self.moment1 = ParameterTuple([zeros(weight, "adam_m.") for weight in weights])
        self.moment2 = ParameterTuple([zeros(weight, "adam_v.") for weight in weights])
        self.decays = tuple(
            config.weight_decay > 0 and decayed(weight, config.decay) for weight in weights
        )
        self.decoupled = config.name == "adamw"
        self.beta1 = Tensor(config.beta1, ms.float32)
        self.beta2 = Tensor(config.beta2, ms.float32)
        self.no_power = Tensor(0.0, ms.float32)
        self.update = ops.Adam()
        self.numbers = config

    def rates(self, lr: float, updates: int) -> Rates:
        """The numbers of the update after `updates` completed ones.

        The bias corrections are computed here: in fp32 the operator would lose half of the digits
        of 1 - beta2^n in the first steps. Its epsilon stands before the correction of the second
        moment, so it is corrected to stand where the paper has it.
        """
        # The betas as the operator sees them, so that the weights of its sums add up to one.
        left1, left2 = (
            1 - float(np.float32(beta)) ** (updates + 1)
            for beta in (self.numbers.beta1, self.numbers.beta2)
        )
        corrected = lr * math.sqrt(left2) / left1
        decay_rate = corrected if self.numbers.decay_corrected else lr
        return Rates(
            lr=corrected,
            eps=self.numbers.eps * (math.sqrt(left2) if self.numbers.eps_corrected else 1.0),
            decay=self.numbers.weight_decay * (decay_rate if self.decoupled else 1.0),
        )

    def construct(self, grads, rates_3, inverse_scale):
        """Updates all weights.

        Args:
            grads: One gradient a weight, in the weight's type or fp32.
            rates_3: `Rates` as a tensor.
            inverse_scale: One divided by the loss scale, which the gradients carry; used for half
                weights only.

        Returns:
            A number that is there when all weights have moved.
        """
        lr, eps, decay = rates_3
        done = lr
        for i in range(len(self.weights)):
            weight, master, grad = self.weights[i], self.masters[i], grads[i]
            if self.half:
                grad = grad.astype(ms.float32) * inverse_scale
            if self.decays[i] and self.decoupled:
                grad = ops.depend(grad, ops.assign(master, master * (1.0 - decay)))
            elif self.decays[i]:
                grad = grad + master * decay
            result = self.update(
                master,
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
            moved = result[0]
            if self.half:
                value = ops.depend(master, moved).astype(weight.dtype)
                moved = ops.assign(weight, value)
            done = ops.depend(done, moved)
        return done


def zeros(weight: Parameter, prefix: str) -> Parameter:
    """An fp32 parameter of a weight's shape, cut over devices as the weight is."""
    values = Tensor(shape=weight.shape, dtype=ms.float32, init=Zero())
    made = Parameter(values, name=prefix + weight.name, requires_grad=False)
    made.param_info = weight.param_info.clone()
    made.name, made.requires_grad = prefix + weight.name, False
    # As Parameter.clone does: what a compiler that cuts the weight cuts in the same way.
    info = weight.param_info
    info.cloned_obj = [*getattr(info, "cloned_obj", []), made]
    made.param_info.obj = made
    return made


def _master(weight: Parameter) -> Parameter:
    """The fp32 copy of a half weight that small updates add up in; an fp32 weight is its own."""
    if weight.dtype == ms.float32:
        return weight
    if weight.has_init:  # a weight that is filled later, such as a part of a cut one
        return zeros(weight, MASTER)
    values = weight.astype(ms.float32).asnumpy()
    return Parameter(Tensor(values), name=MASTER + weight.name, requires_grad=False)
