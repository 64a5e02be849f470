"""Distillation: the student comes nearer to its teacher, which stays as it is."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindplm import checkpoint, strict
from mindplm.config import DistillConfig, OptimConfig, RuntimeConfig
from mindplm.errors import ConfigError
from mindplm.models.gpt1.cell import network
from mindplm.models.gpt1.config import Gpt1Config
from mindplm.nn.init import initialise
from mindplm.nn.loss import distance
from mindplm.nn.values import to_arrays
from mindplm.runtime import setup
from mindplm.tokenizers.bpe_vocab import build
from mindplm.train.optim import Adam
from mindplm.train.step import Numbers, Report, TrainStep
from mindplm.train.teacher import distilled

TOKENIZER = build(["the cat sat on the mat"] * 3, 120, min_char_count=1)
SMALL = Gpt1Config(
    vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_heads=2, ffn_size=32, num_layers=1,
    max_len=24,
)  # fmt: skip
LARGE = dataclasses.replace(SMALL, hidden_size=24, ffn_size=48, num_layers=2)


def run_of(folder, **distill) -> SimpleNamespace:
    """The part of a run's settings that the teacher depends on."""
    return SimpleNamespace(
        family="gpt1",
        distill=DistillConfig(str(folder), **distill),
        data=SimpleNamespace(seq_len=16),
        runtime=RuntimeConfig(device="cpu"),
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    setup(RuntimeConfig(device="cpu"))
    folder = tmp_path_factory.mktemp("teacher") / "large"
    model = network(LARGE)
    initialise(model, 5)
    for weight in model.get_parameters():
        if weight.name == "embed.weight":
            weight.set_data(weight * 10.0)
    checkpoint.write(
        folder,
        family="gpt1",
        model_config=strict.to_plain(LARGE),
        weights=to_arrays(model.get_parameters()),
        tokenizer_files=TOKENIZER.files(),
    )
    return folder


def test_a_student_follows_its_teacher(teacher):
    student = network(SMALL)
    initialise(student, 1)
    loss = distilled(student, run_of(teacher, hard=0.0, soft=1.0, temperature=2.0), TOKENIZER)
    names = [weight.name for weight in student.get_parameters()]
    before = to_arrays(loss.teacher.get_parameters())
    before = {name: array.copy() for name, array in before.items()}
    assert all(name.startswith("teacher.") for name in before)
    optim = OptimConfig(lr=1e-2)
    adam = Adam(list(student.trainable_params()), optim)
    step = TrainStep(loss, adam, clip_norm=1.0, num_micro=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SMALL.vocab_size, (4, 16)).astype(np.int32)
    order = np.tile(np.arange(16, dtype=np.int32), (4, 1))
    columns = {"ids": ids, "positions": order, "spans": np.ones_like(ids), "target_pos": order,
               "targets": ids[:, ::-1].copy()}  # fmt: skip
    losses = []
    for number in range(25):
        numbers = Numbers(ids.size, [adam.rates(optim.lr, number)], number)
        losses.append(Report.of(step(columns, set(), numbers).asnumpy()).loss)
    assert losses[-1] < losses[0] / 2
    after = to_arrays(loss.teacher.get_parameters())
    assert all(np.array_equal(after[name], array) for name, array in before.items())
    assert [weight.name for weight in student.get_parameters()] == names
    inputs = [Tensor(columns[name]) for name in ("ids", "positions", "spans")]
    scores = [m.project(m(*inputs).reshape((-1, m.embed.weight.shape[1])))
              for m in (student, loss.teacher)]  # fmt: skip
    apart = float(distance(*scores, 2.0).mean())
    assert apart < losses[-2]


def test_teachers_that_do_not_fit_are_refused(teacher):
    student = network(SMALL)
    other = build(["another text of other words"] * 3, 120, min_char_count=1)
    with pytest.raises(ConfigError, match=r"bpe\.json is another vocabulary"):
        distilled(student, run_of(teacher), other)
    run = run_of(teacher)
    run.data.seq_len = 32
    with pytest.raises(ConfigError, match="reads 24 tokens at most, data.seq_len=32"):
        distilled(student, run, TOKENIZER)
    run.family = "bert"
    with pytest.raises(ConfigError, match="bert cannot be distilled; accepted: cpm1, gpt1"):
        distilled(student, run, TOKENIZER)
    assert distilled(student, SimpleNamespace(distill=None), TOKENIZER) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hard": -1.0}, "hard"),
        ({"hard": 0.0, "soft": 0.0}, "both 0"),
        ({"temperature": 0.0}, "> 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        DistillConfig("folder", **values)
