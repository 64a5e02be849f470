"""Adapters on a network: what is swapped, what stays, what is trained."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindplm.config_lora import LoraConfig
from mindplm.errors import CheckpointError, ConfigError
from mindplm.models.cpm_bee.config import PRESETS, num_parameters, parameter_shapes
from mindplm.nn.attention import Attention
from mindplm.nn.block import Block
from mindplm.nn.dropout import dropout_step, told
from mindplm.nn.feed_forward import GatedFeedForward
from mindplm.nn.init import initialise
from mindplm.nn.layers import Linear, RMSNorm
from mindplm.nn.lora import (
    LoraLinear,
    add_lora,
    chosen,
    linears,
    load_lora,
    lora_parameters,
)
from mindplm.nn.values import to_arrays

SIZES = {"std": 0.3, "out_std": 0.3, "dtype": ms.float32}


class Network(nn.Cell):
    """Two blocks, and a projection at the top."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.CellList([self.block() for _ in range(2)])
        self.head = Linear(8, 5, std=0.3, dtype=ms.float32)

    @staticmethod
    def block() -> Block:
        norms = [RMSNorm(8, 1e-6, dtype=ms.float32) for _ in range(2)]
        attention, feed = Attention(8, 2, 6, **SIZES), GatedFeedForward(8, 10, **SIZES)
        return Block(norms[0], attention, norms[1], feed)

    def construct(self, x):
        bias, row = ops.zeros((1, 1, 1, x.shape[1])), ops.ones((1, 1, 1))
        for block in self.blocks:
            x = block(x, bias, row)
        return self.head(x)


def network() -> Network:
    made = Network()
    initialise(made, 3)
    return made


X = Tensor(np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32))


def randomise(net: nn.Cell, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {p.name: rng.normal(size=p.shape).astype(np.float32) for p in lora_parameters(net)}
    load_lora(net, values, "random")
    return values


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["attn.q"], ["blocks.0.attn.q", "blocks.1.attn.q"]),
        (["q", "head"], ["blocks.0.attn.q", "blocks.1.attn.q", "head"]),
        (["blocks.1.attn.?"], [f"blocks.1.attn.{n}" for n in "qkvo"]),
        (["ffn.*", "1.attn.o"], [f"blocks.0.ffn.{n}" for n in ("gate", "up", "down")]
         + ["blocks.1.attn.o"] + [f"blocks.1.ffn.{n}" for n in ("gate", "up", "down")]),
    ],
)  # fmt: skip
def test_targets_are_ends_of_names(targets, wanted) -> None:
    assert chosen(list(linears(network())), targets) == wanted


def test_a_target_that_is_none_is_told_with_what_there_is() -> None:
    for target in ("attn.z", "ttn.q", "norm", "blocks.2.attn.q"):
        with pytest.raises(ConfigError, match="lora.targets: .*attn.q.*ffn.up.*head"):
            add_lora(network(), ["attn.q", target], rank=2, alpha=4)


@pytest.mark.parametrize("preset", ["1b", "2b", "5b", "10b"])
def test_adapters_of_the_published_sizes_are_less_than_a_hundredth(preset: str) -> None:
    config, lora = PRESETS[preset], LoraConfig()
    shapes = parameter_shapes(config)
    names = [n[: -len(".weight")] for n in shapes if ".attn." in n or ".ffn." in n]
    found = chosen(names, lora.targets)
    assert len(found) == 2 * len(config.attention_layers)
    count = sum(lora.rank * sum(shapes[f"{name}.weight"]) for name in found)
    assert 0 < count < 0.01 * num_parameters(config)


def test_adapters_add_nothing_at_first_and_the_base_is_frozen() -> None:
    net = network()
    names = [p.name for p in net.get_parameters()]
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    out = net(X).asnumpy()
    made = add_lora(net, ["attn.q", "ffn.up"], rank=3, alpha=6, seed=5)
    assert np.array_equal(net(X).asnumpy(), out)
    assert list(made) == [f"blocks.{i}.{n}" for i in range(2) for n in ("attn.q", "ffn.up")]
    trained = [p.name for p in net.trainable_params()]
    assert trained == [f"{name}.lora_{end}" for name in made for end in "ab"]
    after = {p.name: p.asnumpy() for p in net.get_parameters() if p.name in before}
    assert [p.name for p in net.get_parameters() if p.name not in trained] == names
    assert all(np.array_equal(before[name], after[name]) for name in names)
    with pytest.raises(ConfigError, match="has adapters already"):
        add_lora(net, ["attn.v"], rank=3, alpha=6)


def test_the_start_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> dict[str, bytes]:
        net = network()
        add_lora(net, ["attn.q", "o"], rank=3, alpha=6, seed=seed)
        return {name: array.tobytes() for name, array in to_arrays(lora_parameters(net)).items()}

    assert start(1) == start(1)
    assert start(1) != start(2)


def test_the_output_is_that_of_the_formula() -> None:
    net = network()
    made = add_lora(net, ["head"], rank=2, alpha=3, gain=lambda width: width + 1.0)
    values = randomise(net)
    cell = made["head"]
    flat = X.asnumpy().reshape(-1, 8)
    low = flat @ values["head.lora_a"].T @ values["head.lora_b"].T
    wanted = flat @ cell.weight.asnumpy().T + low * (3 / 2 * 9)
    np.testing.assert_allclose(cell(X).asnumpy().reshape(-1, 5), wanted, rtol=1e-5, atol=1e-5)


def test_only_adapters_get_gradients_and_training_moves_them() -> None:
    net = network()
    add_lora(net, ["attn.v", "ffn.down"], rank=2, alpha=4)
    randomise(net)

    def loss(x):
        return (net(x) ** 2).sum()

    gradient = ops.value_and_grad(loss, None, net.trainable_params())

    @ms.jit
    def run(x):
        return gradient(x)

    value, grads = run(X)
    assert len(grads) == 8
    assert all(np.abs(g.asnumpy()).max() > 0 for g in grads)
    weight, step = net.trainable_params()[1], 1e-3
    for place in [(0, 0), (3, 1)]:
        moved = weight.asnumpy().copy()
        sides = []
        for sign in (1, -1):
            moved[place] += sign * step
            ops.assign(weight, Tensor(moved))
            sides.append(float(loss(X).asnumpy()))
            moved[place] -= sign * step
        ops.assign(weight, Tensor(moved))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert abs(slope - grads[1].asnumpy()[place]) < 2e-2 * max(1, abs(slope))
    assert np.isfinite(float(value.asnumpy()))


def test_dropout_is_for_steps_of_training_only() -> None:
    net = network()
    cell = add_lora(net, ["head"], rank=2, alpha=4, dropout=0.5)["head"]
    randomise(net)
    step = dropout_step(net)
    calm = cell(X).asnumpy()
    without = network()
    add_lora(without, ["head"], rank=2, alpha=4)
    assert dropout_step(without) is None
    ops.assign(step, Tensor(told(3)))
    first = cell(X).asnumpy()
    ops.assign(step, Tensor(told(4)))
    assert not np.array_equal(cell(X).asnumpy(), first)
    ops.assign(step, Tensor(told(3)))
    assert np.array_equal(cell(X).asnumpy(), first)
    many = Tensor(np.repeat(X.asnumpy(), 300, axis=0))
    shaken = cell(many).asnumpy().reshape(2, 300, *calm.shape[1:])
    assert not np.array_equal(shaken[0, 0], shaken[0, 1])
    spread = shaken.std(axis=1) / 300**0.5
    assert (np.abs(shaken.mean(axis=1) - calm) < 6 * spread + 1e-5).all()


def test_adapters_of_another_shape_are_refused() -> None:
    net = network()
    add_lora(net, ["attn.q"], rank=2, alpha=4)
    values = to_arrays(lora_parameters(net))
    with pytest.raises(CheckpointError, match=r"blocks.0.attn.q.lora_a has shape \(3, 8\)"):
        load_lora(net, {**values, "blocks.0.attn.q.lora_a": np.zeros((3, 8), np.float32)}, "x")
    values.pop("blocks.1.attn.q.lora_b")
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        load_lora(net, values, "x")
    assert sum(isinstance(cell, LoraLinear) for _, cell in net.cells_and_names()) == 2
