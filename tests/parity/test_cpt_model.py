"""The CPT network against the original's arrays: layers, both branches, gradients, heads."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from mindplm.models.cpt.cell import Cpt, CptLoss
from mindplm.models.cpt.config import from_original, parameter_shapes, rules
from mindplm.nn.loss import IGNORE
from mindplm.nn.values import load_model
from mindplm.weights.rules import to_ours, to_theirs

TAGS = [path.stem[len("config_") :] for path in golden_dirs("cpt", "config_*.json")]
FOLDER = golden_dirs("cpt", "config_*.json")[0].parent if TAGS else Path()
LOGITS = 2e-4
pytestmark = pytest.mark.skipif(not TAGS, reason="the golden set has no cpt folder")


def shifted(ids: np.ndarray, start: int = 102, pad: int = 0) -> np.ndarray:
    moved = np.concatenate([np.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return np.where(moved == IGNORE, pad, moved)


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(np.ascontiguousarray(array.astype(np.int32))) for array in arrays]


class Case:
    def __init__(self, tag: str):
        self.tag = tag
        self.config = from_original(json.loads((FOLDER / f"config_{tag}.json").read_text()))
        self.arrays = dict(np.load(FOLDER / f"forward_{tag}.npz"))
        self.model = Cpt(self.config)
        theirs = load_file(FOLDER / f"weights_{tag}.safetensors")
        ours = to_ours(rules(self.config), theirs, parameter_shapes(self.config))
        load_model(self.model, ours, tag)

    def logits(self, hidden) -> np.ndarray:
        flat = self.model.project(hidden.reshape((-1, hidden.shape[-1]))).asnumpy()
        return flat.reshape((*hidden.shape[:2], -1))


@pytest.fixture(params=TAGS, scope="module")
def case(request) -> Case:
    return Case(request.param)


def close(found, wanted: np.ndarray, what: object) -> None:
    assert np.abs(found.asnumpy() - wanted).max() < 5e-5, what


def test_every_layer_of_both_sides_agrees(case):
    a, model = case.arrays, case.model
    ids, types, spans = tensors(a["input_ids"], np.ones_like(a["input_ids"]), a["attention_mask"])
    states = model.states(ids, types, spans)
    for number, state in enumerate(states):
        close(state, a[f"enc_hidden_{number}"], number)
    close(states[model.shared], a["s_enc_out"], "shared")
    close(states[-1], a["u_dec_out"], "understanding")
    plain = model.states(ids, ops.zeros_like(types), spans)
    close(plain[-1], a["u_dec_out_type0"], "types 0")
    close(plain[model.shared], a["s_enc_out_type0"], "types 0")
    (decoder_ids,) = tensors(a["decoder_input_ids"])
    assert np.array_equal(shifted(a["labels"]), a["decoder_input_ids"])
    seen = ops.ones_like(decoder_ids)
    written = model.write(decoder_ids, seen, states[model.shared], spans)
    for number, state in enumerate(written):
        close(state, a[f"dec_hidden_{number}"], number)


def test_scores_of_both_branches_agree(case):
    a, model = case.arrays, case.model
    ids, types, spans = tensors(a["input_ids"], np.ones_like(a["input_ids"]), a["attention_mask"])
    decoder_ids, mask = tensors(a["decoder_input_ids"], a["decoder_attention_mask"])
    understood, written = model(ids, types, spans, decoder_ids)
    for found, name in ((understood, "mlm_u_logits"), (written, "gen_logits")):
        assert np.abs(case.logits(found) - a[name]).max() < LOGITS, name
    assert np.abs(case.logits(written) - a["mlm_g_logits"]).max() < LOGITS
    memory = model.states(ids, types, spans)[model.shared]
    masked = case.logits(model.write(decoder_ids, mask, memory, spans)[-1])
    real = a["decoder_attention_mask"] != 0
    assert np.abs(masked - a["gen_logits_decmask"])[real].max() < LOGITS
    (moved,) = tensors(shifted(a["input_ids"]))
    own = case.logits(model(ids, types, spans, moved)[1])
    assert np.abs(own - a["mlm_g_logits_autodec"]).max() < LOGITS


def gradients(case, columns: list[Tensor]) -> tuple[float, dict[str, np.ndarray]]:
    loss = CptLoss(case.model)
    weights = list(case.model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    value, grads = ms.jit(ops.value_and_grad(mean, None, weights))(*columns)
    return float(value.asnumpy()), {w.name: g.asnumpy() for w, g in zip(weights, grads)}


def compare(case, ours: dict[str, np.ndarray], file: str) -> None:
    theirs = to_theirs(
        rules(case.config), {**ours, "logits_bias": case.model.logits_bias.asnumpy()}
    )
    for name, wanted in np.load(FOLDER / file).items():
        found = theirs[name]
        if name.endswith("word_embeddings.weight"):
            found = found.copy()  # theirs gives the row of padding no gradient by the lookup
            found[0] = wanted[0]
        bound = 1e-3 * np.linalg.norm(wanted) + 1e-5
        assert np.linalg.norm(found - wanted) <= bound, name


def widened(array: np.ndarray, size: int, filling: int) -> np.ndarray:
    room = ((0, 0), (0, size - array.shape[1]))
    return np.pad(array, room, constant_values=filling)


def columns_of(source, previous, writes, labels) -> list[Tensor]:
    order = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
    return tensors(source, previous, writes, order, labels)


def test_loss_and_gradients_of_pretraining_agree(case):
    a = case.arrays
    labels = np.where(a["pt_loss_mask"] != 0, a["pt_target"], IGNORE)
    columns = columns_of(a["pt_source"], a["pt_prev"], a["pt_use_decoder"], labels)
    ids, spans, previous = tensors(a["pt_source"], a["pt_attn_mask"], a["pt_prev"])
    assert np.array_equal(a["pt_attn_mask"], a["pt_source"] != 0)
    branches = map(case.logits, case.model(ids, ops.ones_like(ids), spans, previous))
    own = np.where(a["pt_use_decoder"][:, None, None] != 0, *list(branches)[::-1])
    counted = a["pt_loss_mask"] != 0
    assert np.abs(own - a["pt_logits"])[counted].max() < LOGITS
    nats = (
        np.log(np.exp(own).sum(-1)) - np.take_along_axis(own, a["pt_target"][..., None], 2)[..., 0]
    )
    assert np.abs(nats - a["pt_token_ce"])[counted].max() < LOGITS
    value, ours = gradients(case, columns)
    assert value == pytest.approx(float(a["pt_loss"]), rel=1e-4)
    compare(case, ours, f"grads_pretrain_{case.tag}.npz")


def test_loss_and_gradients_of_writing_agree(case):
    """Both sides are padded to the same length, as rows of our training are."""
    a = case.arrays
    writes = np.ones(len(a["labels"]))
    size = max(a["input_ids"].shape[1], a["labels"].shape[1])
    ids = widened(np.where(a["attention_mask"] != 0, a["input_ids"], 0), size, 0)
    previous = widened(a["decoder_input_ids"], size, 0)
    labels = widened(a["labels"], size, IGNORE)
    value, ours = gradients(case, columns_of(ids, previous, writes, labels))
    assert value == pytest.approx(float(a["gen_loss"]), rel=1e-4)
    compare(case, ours, f"grads_gen_{case.tag}.npz")
    without = set(a["grad_none_gen"].tolist())
    theirs = to_theirs(
        rules(case.config), {**ours, "logits_bias": case.model.logits_bias.asnumpy()}
    )
    assert all(not theirs[name].any() for name in without if name in theirs)
