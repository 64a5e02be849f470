"""The CPM-Bee network against the original's arrays: every layer, the loss and all gradients."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from mindplm.data.packing import COLUMNS, columns_from_batch
from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
from mindplm.models.cpm_bee.config import from_openbmb, parameter_shapes, rules
from mindplm.nn.mask import packed_mask
from mindplm.nn.values import load_model
from mindplm.weights.rules import to_ours, to_theirs

CASES = golden_dirs("cpm_bee", "model_*")
HALF = [case for case in CASES if "half_hidden" in np.load(case / "outputs.npz").files]
LOGITS, LOSS, GRADIENT = 5e-5, 1e-5, 1e-5


class Case:
    """One golden set with our model on it."""

    def __init__(self, folder: Path, dtype=ms.float32):
        self.folder = folder
        self.info = json.loads((folder / "info.json").read_text())
        self.inputs = dict(np.load(folder / "inputs.npz"))
        self.outputs = dict(np.load(folder / "outputs.npz"))
        self.config = from_openbmb(self.info["config"])
        theirs = load_file(folder / "weights.safetensors")
        if self.info["embedding_recipe_seed"] is not None:
            random = np.random.RandomState(self.info["embedding_recipe_seed"])
            shape = (self.config.vocab_size, self.config.hidden_size)
            table = random.standard_normal(shape) * self.info["embedding_std"]
            theirs["input_embedding.weight"] = table.astype(np.float32)
        arrays = to_ours(rules(self.config), theirs, parameter_shapes(self.config))
        self.model = CpmBee(self.config, dtype)
        load_model(self.model, arrays, folder.name)
        num_rel, num_ext = self.inputs["segment_rel"].shape[1], len(self.inputs["ext_ids"])
        columns = columns_from_batch(
            self.inputs,
            max_rel=num_rel + 3,
            max_ext=num_ext + 4,
            max_targets=self.inputs["inputs"].shape[1],
        )
        self.columns = [Tensor(columns[name]) for name in COLUMNS]
        num = self.inputs["inputs"].shape[1]
        self.real = np.arange(num)[None] < self.inputs["length"][:, None]


@pytest.fixture(params=CASES, ids=lambda folder: folder.name, scope="module")
def case(request):
    return Case(request.param)


def test_there_are_cases():
    assert CASES


def test_masks_and_buckets_are_exact(case):
    _, _, context, samples, segments, spans, counts, offsets, length, relation = case.columns[:10]
    pairs = case.real[:, :, None] & case.real[:, None, :]
    mask = packed_mask(context != 0, samples, spans, length).asnumpy()
    assert np.array_equal(mask, case.outputs["attention_mask"])
    order = ops.arange(segments.shape[1]).astype(ms.int32).expand_dims(0)
    query = (order, segments, counts, offsets, samples, spans)
    index = case.model.position_bias.index(query, (order, segments, samples, spans), relation)
    wanted = case.outputs["bias_index"]
    assert np.array_equal(np.broadcast_to(index.asnumpy(), wanted.shape)[pairs], wanted[pairs])
    if "position_bias" in case.outputs:
        bias = case.model.position_bias(index).asnumpy().transpose(0, 2, 3, 1)
        golden = case.outputs["position_bias"].transpose(0, 2, 3, 1)
        assert np.abs(bias - golden)[pairs].max() < LOGITS


def test_every_layer_agrees(case):
    model, columns = case.model, case.columns
    bias, row = model.bias(columns[:10])
    x = model.embed(columns[0], columns[1])
    assert np.abs(x.asnumpy() - case.outputs["embed"])[case.real].max() < LOGITS
    for number, block in enumerate(model.blocks):
        x = block(x, bias, row)
        if f"layer{number}" in case.outputs:
            wanted = case.outputs[f"layer{number}"]
            assert np.abs(x.asnumpy() - wanted).max() < LOGITS, number
    hidden = model.final_norm(x).asnumpy()
    assert np.abs(hidden - case.outputs["hidden"]).max() < LOGITS


def test_logits_agree(case):
    hidden = case.model(*case.columns[:10])
    width, num_ext = hidden.shape[-1], len(case.inputs["ext_ids"])
    logits = case.model.project(hidden.reshape((-1, width)), *case.columns[12:]).asnumpy()
    num_classes = case.config.vocab_size + num_ext
    assert (logits[:, num_classes:] < -1e29).all()
    logits = logits[:, :num_classes].reshape((*hidden.shape[:2], -1))
    if "logits" in case.outputs:
        assert np.abs(logits - case.outputs["logits"]).max() < LOGITS
        return
    at = tuple(case.outputs["sel_pos"].T)
    chosen = np.take_along_axis(logits[at], case.outputs["top_index"].astype(np.int64), 1)
    assert np.abs(chosen - case.outputs["top_values"]).max() < LOGITS
    top = logits[at].max(-1)
    total = top + np.log(np.exp(logits[at] - top[:, None]).sum(-1))
    assert np.abs(total - case.outputs["logsumexp"]).max() < LOGITS


def gradients(case):
    loss = CpmBeeLoss(case.model)
    weights = list(case.model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    gradient = ops.value_and_grad(mean, None, weights)

    @ms.jit
    def run(*columns):
        return gradient(*columns)

    value, grads = run(*case.columns)
    return float(value.asnumpy()), {w.name: g.asnumpy() for w, g in zip(weights, grads)}


def test_loss_and_every_gradient_agree(case):
    value, ours = gradients(case)
    assert abs(value - case.info["loss"]) < LOSS
    theirs = to_theirs(rules(case.config), ours)
    golden = load_file(case.folder / "grads.safetensors")
    missing = set(theirs) - set(golden)
    for name, wanted in golden.items():
        excess = np.abs(theirs[name] - wanted) - 1e-4 * np.abs(wanted)
        assert excess.max() < GRADIENT, name
    if missing:
        assert missing == {"input_embedding.weight"}
        part = dict(np.load(case.folder / "embedding_grad.npz"))
        table = theirs["input_embedding.weight"]
        assert np.abs(table[part["rows"]] - part["grad_rows"]).max() < GRADIENT
        assert np.abs(table.sum(0) - part["col_sum"]).max() < 10 * GRADIENT
        norms = np.sqrt((table.astype(np.float64) ** 2).sum(1))
        assert np.abs(norms - part["row_norm"]).max() < GRADIENT


def test_token_losses_agree(case):
    losses = CpmBeeLoss(case.model).token_losses(*case.columns).asnumpy()
    places, targets = case.columns[10].asnumpy(), case.columns[11].asnumpy()
    losses = losses.reshape(places.shape)
    wanted = np.take_along_axis(case.outputs["token_loss"], places.astype(np.int64), 1)
    assert np.abs(losses - wanted)[targets != -100].max() < LOGITS


@pytest.mark.parametrize("folder", HALF, ids=lambda folder: folder.name)
def test_half_precision_is_near(folder):
    """The original's half outputs were made on another device; its README says 0.05."""
    case = Case(folder, ms.float16)
    hidden = case.model(*case.columns[:10]).asnumpy().astype(np.float32)
    wanted = case.outputs["half_hidden"].astype(np.float32)
    assert np.abs(hidden - wanted)[case.real].max() < 0.05
