"""Optimizer steps and schedules against their formulas."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindplm.config import OptimConfig
from mindplm.train.optim import Adam, decayed
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, Report, TrainStep

SHAPES = {
    "embed.weight": (5, 4),
    "position_bias.weight": (3, 2),
    "blocks.0.attn.q.weight": (4, 4),
    "blocks.0.attn_norm.weight": (4,),
    "final_norm.weight": (4,),
}
MATRICES = {"blocks.0.attn.q.weight"}


class Products(nn.Cell):
    """A loss whose gradients are the columns."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        made = [Parameter(Tensor(array), name=name) for name, array in arrays.items()]
        self.weights = ms.ParameterTuple(made)

    def construct(self, *columns):
        total = Tensor(0.0, ms.float32)
        for i in range(len(columns)):
            total = total + (self.weights[i] * columns[i]).sum()
        return total, Tensor(1.0, ms.float32)


def normal(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}


def numbers(optimizer: Adam, lr: float, updates: int) -> Numbers:
    return Numbers(1.0, [optimizer.rates(lr, updates)], updates)


class Formula:
    """Adam in float64, as its paper writes it."""

    def __init__(self, arrays: dict[str, np.ndarray], config: OptimConfig, decay: set[str]):
        self.w = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.m = {name: np.zeros(array.shape) for name, array in arrays.items()}
        self.v = {name: np.zeros(array.shape) for name, array in arrays.items()}
        self.config, self.decay, self.steps = config, decay, 0

    def __call__(self, grads: dict[str, np.ndarray], lr: float) -> float:
        config = self.config
        self.steps += 1
        grads = {name: grad.astype(np.float64) for name, grad in grads.items()}
        norm = math.sqrt(sum((grad**2).sum() for grad in grads.values()))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, grad in grads.items():
            grad = grad * factor
            strength = config.weight_decay if name in self.decay else 0.0
            if config.name == "adam_l2":
                grad = grad + strength * self.w[name]
                strength = 0.0
            self.m[name] = config.beta1 * self.m[name] + (1 - config.beta1) * grad
            self.v[name] = config.beta2 * self.v[name] + (1 - config.beta2) * grad**2
            m = self.m[name] / (1 - config.beta1**self.steps)
            v = self.v[name] / (1 - config.beta2**self.steps)
            step = lr * m / (np.sqrt(v) + config.eps) + lr * strength * self.w[name]
            self.w[name] = self.w[name] - step
        return norm


@pytest.mark.parametrize("clip", [0.0, 2.0, 1e6])
@pytest.mark.parametrize("name", ["adamw", "adam_l2"])
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_steps_follow_the_formula(name, decay, clip):
    """A large epsilon and decay, so that a wrong place of either shows."""
    config = OptimConfig(
        name=name, decay=decay, weight_decay=0.5, eps=0.1, clip_norm=clip, beta2=0.99
    )
    arrays = normal(0)
    cell = Products(arrays)
    optimizer = Adam(list(cell.weights), config)
    step = TrainStep(cell, optimizer, clip_norm=clip, num_micro=1)
    formula = Formula(arrays, config, set(SHAPES) if decay == "all" else MATRICES)
    for t in range(6):
        grads, lr = normal(t + 1), 0.01 * (t + 1)
        report = Report.of(step(grads, set(), numbers(optimizer, lr, t)).asnumpy())
        assert report.norm == pytest.approx(formula(grads, lr), rel=1e-6)
        for weight in cell.weights:
            wanted = formula.w[weight.name]
            np.testing.assert_allclose(weight.asnumpy(), wanted, rtol=0, atol=2e-6)


def test_without_decay_nothing_decays():
    config = OptimConfig(weight_decay=0.0, decay="all")
    arrays = normal(0)
    cell = Products(arrays)
    step = TrainStep(cell, Adam(list(cell.weights), config), clip_norm=1.0, num_micro=1)
    zero = {name: np.zeros_like(array) for name, array in arrays.items()}
    step(zero, set(), numbers(step.optimizer, 0.1, 0))
    for weight in cell.weights:
        np.testing.assert_array_equal(weight.asnumpy(), arrays[weight.name])


def test_only_matrices_decay_unless_all_shall():
    weights = list(Products(normal(0)).weights)
    assert {w.name for w in weights if decayed(w, "matrices")} == MATRICES
    assert {w.name for w in weights if decayed(w, "all")} == set(SHAPES)


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_begins_with_a_step_that_moves(schedule):
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule=schedule)
    found = [learning_rate(config, step, 20) for step in range(5)]
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_falls_to_its_last_part(schedule, warmup):
    config = OptimConfig(lr=2.0, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.1)
    found = [learning_rate(config, step, 20) for step in range(warmup, 21)]
    assert found[0] == pytest.approx(2.0) and found[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(found, found[1:]))
    assert learning_rate(config, (warmup + 20) // 2, 20) == pytest.approx(1.1)
    assert learning_rate(config, 50, 20) == pytest.approx(0.2)


def test_noam_peaks_at_the_end_of_its_warm_up():
    config = OptimConfig(lr=2.0, warmup_steps=16, schedule="noam")
    found = [learning_rate(config, step, 0) for step in range(65)]
    assert found[0] == 0 and found[16] == max(found) == pytest.approx(0.5)
    assert found[64] == pytest.approx(0.25)


def test_a_run_shorter_than_its_warm_up_is_no_trouble():
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(config, 4, 5) == pytest.approx(0.5)
    assert 0 < learning_rate(config, 10, 5) <= 1
