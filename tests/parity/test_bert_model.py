"""The BERT network against the original's arrays: layers, both losses, gradients, steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, nn, ops
from safetensors.numpy import load_file

from mindplm.config import OptimConfig
from mindplm.models.bert.cell import Bert, BertLoss
from mindplm.models.bert.config import from_original, parameter_shapes, rules
from mindplm.nn.values import from_arrays, load_model
from mindplm.train.optim import Adam
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, Report, TrainStep
from mindplm.weights.rules import to_ours, to_theirs

TAGS = [path.stem[len("config_") :] for path in golden_dirs("bert_mlm", "config_*.json")]
KINDS = ("masked_only", "all_tokens")
FOLDER = golden_dirs("bert_mlm", "config_*.json")[0].parent if TAGS else Path()
needs_set = pytest.mark.skipif(not TAGS, reason="the golden set has no bert_mlm folder")


def columns_of(arrays, labels: np.ndarray, *, types=None, mask=None) -> dict[str, np.ndarray]:
    """One span a row; padding has no span and is seen by nobody, as with the original's mask."""
    ids = arrays["input_ids"].astype(np.int32)
    spans = arrays["attention_mask"] if mask is None else mask
    types = arrays["token_type_ids"] if types is None else types
    order = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    columns = {
        "ids": ids,
        "types": types.astype(np.int32),
        "positions": order,
        "spans": spans.astype(np.int32),
        "target_pos": order,
        "targets": labels.astype(np.int32),
    }
    return {name: np.ascontiguousarray(array) for name, array in columns.items()}


class PaddedLookup(nn.Cell):
    """The word table as the original has it: the row of padding gets no gradient by the lookup.

    That shows only where padding is predicted, which nothing but `all_tokens` does.
    """

    def __init__(self, table: nn.Cell, pad_id: int):
        super().__init__(auto_prefix=False)
        self.weight, self.pad_id = table.weight, pad_id

    def construct(self, ids):
        rows = ops.gather(self.weight, ids, 0)
        return ops.where((ids == self.pad_id).expand_dims(-1), ops.stop_gradient(rows), rows)


class Case:
    def __init__(self, tag: str):
        self.tag = tag
        settings = json.loads((FOLDER / f"config_{tag}.json").read_text())
        self.config, self.pad_id = from_original(settings), settings["pad_token_id"]
        self.arrays = dict(np.load(FOLDER / f"forward_{tag}.npz"))
        self.theirs = load_file(FOLDER / f"weights_{tag}.safetensors")
        self.model = Bert(self.config)
        self.load()
        self.model.encoder.embed = PaddedLookup(self.model.encoder.embed, self.pad_id)
        self.model.encoder.embed.weight.name = "encoder.embed.weight"  # moving it renamed it

    def load(self) -> None:
        ours = to_ours(rules(self.config), self.theirs, parameter_shapes(self.config))
        load_model(self.model, ours, self.tag)

    def columns(self, kind: str) -> dict[str, np.ndarray]:
        return columns_of(self.arrays, self.arrays[f"labels_{kind}"])

    def logits(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        hidden = self.model(*map(Tensor, list(columns.values())[:4]))
        flat = self.model.project(hidden.reshape((-1, self.config.hidden_size)))
        return flat.asnumpy().reshape((*columns["ids"].shape, -1))


@pytest.fixture(params=TAGS, scope="module")
def case(request) -> Case:
    return Case(request.param)


@needs_set
def test_every_layer_and_the_logits_agree(case):
    columns = case.columns("masked_only")
    states = case.model.encoder(*map(Tensor, list(columns.values())[:4]))
    assert f"hidden_{len(states)}" not in case.arrays
    for number, state in enumerate(states):
        wanted = case.arrays[f"hidden_{number}"]
        assert np.abs(state.asnumpy() - wanted).max() < 2e-5, number
    assert np.abs(case.logits(columns) - case.arrays["logits"]).max() < 1e-4


@needs_set
def test_attention_of_the_first_layer_agrees(case):
    columns = [Tensor(a) for a in list(case.columns("masked_only").values())[:4]]
    encoder = case.model.encoder
    attn = encoder.blocks[0].attn
    x = encoder.start(*columns[:3])
    scores = ops.matmul(attn.query(x), attn.split(attn.k(x)).swapaxes(-1, -2)).asnumpy()
    seen = columns[3].asnumpy()[:, None, None] != 0
    scores = np.where(seen, scores.astype(np.float64), -np.inf)
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    assert np.abs(probabilities - case.arrays["attention_probs_0"]).max() < 1e-5


@needs_set
def test_without_types_and_mask_all_positions_are_seen(case):
    plain = np.zeros_like(case.arrays["input_ids"])
    columns = columns_of(case.arrays, plain, types=plain, mask=plain + 1)
    wanted = case.arrays["logits_no_types_no_mask"]
    assert np.abs(case.logits(columns) - wanted).max() < 1e-4


@needs_set
@pytest.mark.parametrize("kind", KINDS)
def test_loss_perplexity_and_every_gradient_agree(case, kind):
    loss = BertLoss(case.model)
    weights = list(case.model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    compute = ms.jit(ops.value_and_grad(mean, None, weights))
    value, grads = compute(*map(Tensor, case.columns(kind).values()))
    assert float(value.asnumpy()) == pytest.approx(float(case.arrays[f"loss_{kind}"]), rel=1e-5)
    perplexity = math.exp(float(value.asnumpy()))
    assert perplexity == pytest.approx(float(case.arrays[f"perplexity_{kind}"]), rel=1e-4)
    theirs = to_theirs(rules(case.config), {w.name: g.asnumpy() for w, g in zip(weights, grads)})
    golden = dict(np.load(FOLDER / f"grads_{kind}_{case.tag}.npz"))
    copies = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(golden) | copies == set(theirs) | copies
    for name, wanted in golden.items():
        bound = 1e-4 * np.linalg.norm(wanted) + 1e-6
        assert np.linalg.norm(theirs[name] - wanted) <= bound, name


TRACES = golden_dirs("bert_mlm", "train_trace_*.json")


def first_moments(case: Case) -> dict[str, np.ndarray]:
    """Moments after the first step, whose learning rate is 0.

    The recorded run did not clear the gradients of the two losses that it had computed before, so
    its first step saw their sum; masked_only is the one that it trained on.
    """
    sets = [dict(np.load(FOLDER / f"grads_{kind}_{case.tag}.npz")) for kind in KINDS]
    theirs = {name: sets[0][name] + sets[1][name] for name in sets[0]}
    ours = to_ours(rules(case.config), theirs, parameter_shapes(case.config))
    first = {f"adam_m.{name}": 0.1 * grad for name, grad in ours.items()}
    return first | {f"adam_v.{name}": 0.001 * grad * grad for name, grad in ours.items()}


@needs_set
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_steps_of_the_optimizer_give_the_traced_losses_and_weights(path):
    info = json.loads(path.read_text())
    case = Case(path.stem[len("train_trace_") :])
    config = OptimConfig(
        lr=3e-3,
        eps=1e-6,
        eps_corrected=False,
        weight_decay=0.0,
        schedule="linear",
        warmup_steps=info["warmup"],
        warmup_from_zero=True,
        min_lr_ratio=0.0,
    )
    optimizer = Adam(list(case.model.trainable_params()), config)
    moments = [*optimizer.moment1, *optimizer.moment2]
    from_arrays(moments, first_moments(case), "after the first step")
    step = TrainStep(BertLoss(case.model), optimizer, clip_norm=0.0, num_micro=1)
    columns = case.columns("masked_only")
    targets = int((columns["targets"] >= 0).sum())
    for done, entry in enumerate(info["trace"]):
        lr = learning_rate(config, done, info["total"])
        assert lr == pytest.approx(entry["lr"], rel=1e-9)
        if done:
            numbers = Numbers(targets, [optimizer.rates(lr, done)], done - 1)
            report = Report.of(step(columns, set(), numbers).asnumpy())
            assert report.moved and report.loss == pytest.approx(entry["loss"], rel=1e-4), done
    after = FOLDER / f"weights_after_train_{case.tag}.safetensors"
    if after.is_file():
        arrays = {w.name: w.asnumpy() for w in case.model.get_parameters()}
        theirs = to_theirs(rules(case.config), arrays)
        for name, wanted in load_file(after).items():
            if name in theirs:
                assert np.abs(theirs[name] - wanted).max() < 1e-4, name


@needs_set
def test_the_learning_rates_of_the_project_agree():
    for path in golden_dirs("bert_mlm", "lr*.json"):
        for entry in json.loads(path.read_text()):
            config = OptimConfig(
                lr=entry["base_lr"],
                schedule="linear",
                warmup_steps=entry["num_warmup_steps"],
                warmup_from_zero=True,
                min_lr_ratio=0.0,
            )
            total = entry["num_training_steps"]
            found = [learning_rate(config, n, total) for n in range(len(entry["lr_at_step"]))]
            np.testing.assert_allclose(found, entry["lr_at_step"], rtol=1e-9, atol=1e-18)


def test_there_are_cases():
    assert TAGS or not golden_dirs("bert_mlm", "*")
