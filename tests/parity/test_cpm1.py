"""CPM-1 against the original's arrays: logits, losses, gradients, resets, cache, tasks."""

from __future__ import annotations

import json
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from mindplm.data.cpm1_tasks import document_positions
from mindplm.models.cpm1.cell import network
from mindplm.models.cpm1.config import flavour_of, from_original, parameter_shapes, rules
from mindplm.nn.causal import CausalLoss, CausalPrefill, CausalStep
from mindplm.nn.distill import DistillLoss
from mindplm.nn.loss import distance, soft_nll
from mindplm.nn.values import load_model
from mindplm.weights.rules import to_ours, to_theirs

CLOSE = {"rtol": 2e-4, "atol": 2e-4}
TAGS = [path.stem.split("_")[1] for path in golden_dirs("cpm1", "config_*.json")]
EVERY = pytest.mark.parametrize("tag", TAGS)
PAD = 5


def golden(name: str):
    (path,) = golden_dirs("cpm1", name)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


def config_of(tag: str):
    theirs = golden(f"config_{tag}.json")
    return from_original({k: v for k, v in theirs.items() if not k.endswith("_id")})


@cache
def model_of(tag: str):
    config = config_of(tag)
    made = network(config)
    theirs = golden(f"weights_megatron_{tag}.safetensors")
    load_model(made, to_ours(rules(config), theirs, parameter_shapes(config)), tag)
    return made


def columns_of(ids: np.ndarray, labels: np.ndarray, *spans: np.ndarray) -> list[Tensor]:
    order = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    positions, numbers = spans or (order, np.ones_like(ids))
    targets = np.where(labels == PAD, -100, labels)
    return [Tensor(np.asarray(a, np.int32)) for a in (ids, positions, numbers, order, targets)]


def logits_of(model, columns) -> np.ndarray:
    @ms.jit
    def run(*columns):
        hidden = model(*columns)
        return model.project(hidden.reshape((-1, hidden.shape[2])))

    return run(*columns[:3]).asnumpy().reshape(*columns[0].shape, -1)


@EVERY
def test_both_kinds_of_names_give_the_same_weights(tag):
    config = config_of(tag)
    found = []
    for flavour in ("megatron", "hf"):
        theirs = golden(f"weights_{flavour}_{tag}.safetensors")
        assert flavour_of(theirs) == flavour
        chosen = rules(config, flavour)
        found.append(to_ours(chosen, theirs, parameter_shapes(config)))
        back = to_theirs(chosen, found[-1])
        assert all(np.array_equal(back[name], array) for name, array in theirs.items())
    assert all(np.array_equal(array, found[1][name]) for name, array in found[0].items())


@EVERY
def test_logits_and_losses(tag):
    wanted = golden(f"forward_{tag}.npz")
    columns = columns_of(wanted["input_ids"], wanted["labels"])
    model = model_of(tag)
    logits = logits_of(model, columns)
    np.testing.assert_allclose(logits, wanted["logits"], **CLOSE)
    np.testing.assert_allclose(logits, wanted["hf_logits"], **CLOSE)
    losses, real = (part.asnumpy() for part in CausalLoss(model).tokens(*columns))
    assert np.array_equal(real.reshape(columns[0].shape), wanted["loss_mask"])
    losses = losses.reshape(columns[0].shape) * wanted["loss_mask"]
    np.testing.assert_allclose(losses, wanted["token_losses"] * wanted["loss_mask"], **CLOSE)
    np.testing.assert_allclose(losses.sum() / real.sum(), wanted["loss"], rtol=1e-4)
    by_row = losses.sum(1) / wanted["loss_mask"].sum(1)
    np.testing.assert_allclose(by_row, wanted["per_sample_loss"], rtol=1e-4)
    labels = np.full_like(wanted["hf_labels"], PAD)
    labels[:, :-1] = np.where(wanted["hf_labels"] < 0, PAD, wanted["hf_labels"])[:, 1:]
    shifted = columns_of(wanted["input_ids"], labels)
    total, count = CausalLoss(model)(*shifted)
    np.testing.assert_allclose(float(total / count), wanted["hf_loss"], rtol=1e-4)


@EVERY
def test_every_gradient(tag):
    inputs, wanted = golden(f"forward_{tag}.npz"), golden(f"grads_{tag}.npz")
    model = model_of(tag)
    loss, weights = CausalLoss(model), list(model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    compute = ms.jit(ops.value_and_grad(mean, None, weights))
    value, grads = compute(*columns_of(inputs["input_ids"], inputs["labels"]))
    np.testing.assert_allclose(float(value.asnumpy()), inputs["loss"], rtol=1e-4)
    ours = {w.name: g.asnumpy() for w, g in zip(weights, grads)}
    theirs = to_theirs(rules(config_of(tag)), ours)
    assert set(theirs) == set(wanted)
    for name, array in wanted.items():
        off = np.linalg.norm(theirs[name] - array)
        assert off <= 1e-3 * np.linalg.norm(array) + 1e-7, name


@EVERY
@pytest.mark.parametrize(("restart", "apart"), [(True, True), (True, False), (False, True)])
def test_documents_in_a_row(tag, restart, apart):
    wanted = golden(f"forward_{tag}.npz")
    prefix = f"reset_pos{int(restart)}_att{int(apart)}_"
    if prefix + "logits" not in wanted:
        pytest.skip(f"{tag} holds no arrays {prefix}*")
    ids = wanted["reset_input_ids"]
    end = golden(f"config_{tag}.json")["eod_id"]
    found = document_positions(ids, end, restart=restart, apart=apart)
    assert np.array_equal(found.positions, wanted[prefix + "position_ids"])
    order = np.arange(ids.shape[1])
    mask = (order[:, None] >= order) & (found.spans[:, :, None] == found.spans[:, None])
    golden_mask = wanted[prefix + "attention_mask"][:, 0].astype(bool)
    assert np.array_equal(np.broadcast_to(golden_mask, mask.shape), mask)
    assert np.array_equal(wanted[prefix + "loss_mask"] == 0, ids == end)
    columns = columns_of(ids, ids, found.positions, found.spans)
    np.testing.assert_allclose(
        logits_of(model_of(tag), columns), wanted[prefix + "logits"], **CLOSE
    )


@EVERY
def test_the_cache_and_what_follows_it(tag):
    wanted = golden(f"forward_{tag}.npz")
    model, length = model_of(tag), int(wanted["cache_prefill_len"])
    steps = wanted["cache_step_logits"].shape[1]
    ids = wanted["input_ids"][:1]
    assert length + steps == ids.shape[1]
    read = [column[:, :length] for column in columns_of(ids, ids)[:3]]
    _, *caches = CausalPrefill(model)(*read)
    for cache_bhsk, name in zip(caches, ("cache_k0", "cache_v0")):
        np.testing.assert_allclose(cache_bhsk.asnumpy(), wanted[name], **CLOSE)
    written = [
        Tensor(np.zeros_like(cache.asnumpy()[:, :, :1].repeat(steps, 2))) for cache in caches
    ]
    step = CausalStep(model)
    for number in range(steps):
        place = length + number
        filled = (np.arange(length + steps) <= place).astype(np.int32)[None]
        inputs = ([ids[0, place]], [place], [place], filled, [0])
        inputs = [Tensor(np.asarray(a, np.int32)) for a in inputs]
        logits, *written = step(*inputs, *caches, *written)
        np.testing.assert_allclose(
            logits.asnumpy(), wanted["cache_step_logits"][:, number], **CLOSE
        )


# --- distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", golden_dirs("cpm1", "distill*.npz"), ids=lambda p: p.stem)
def test_distillation_losses(path):
    wanted = dict(np.load(path))
    num = wanted["student_logits"].shape[2]
    labels = wanted["labels"][:, 1:].reshape(-1)
    real = (labels >= 0).astype(np.float32)

    def shifted(name: str) -> Tensor:
        return Tensor(wanted[name][:, :-1].reshape(-1, num))

    own, guide = shifted("student_logits"), shifted("teacher_logits")

    def mean(losses) -> float:
        return float((losses.asnumpy() * real).sum() / real.sum())

    soft = mean(soft_nll(own, guide))
    np.testing.assert_allclose(soft, wanted["soft_ce"], rtol=1e-5)
    for name in wanted:
        if name.startswith("kl_times_Tsq_T"):
            whole = (Tensor(wanted[f"{n}_logits"].reshape(-1, num)) for n in ("student", "teacher"))
            apart = distance(*whole, float(name.split("_T")[-1])).asnumpy()
            apart = apart[wanted["labels"].reshape(-1) >= 0].mean()
            np.testing.assert_allclose(apart, wanted[name], rtol=1e-4, err_msg=name)
    one_hot = np.full((len(labels), num), -1e4, np.float32)
    one_hot[np.arange(len(labels)), np.maximum(labels, 0)] = 1e4
    hard = mean(soft_nll(own, Tensor(one_hot)))
    np.testing.assert_allclose(hard, wanted["hard_ce"], rtol=1e-5)
    np.testing.assert_allclose((hard + soft) / 2, wanted["half_half"], rtol=1e-5)

    def total(logits):
        return (soft_nll(logits, guide) * Tensor(real)).sum() / float(real.sum())

    grads = ops.grad(total)(own).asnumpy().reshape(wanted["labels"].shape[0], -1, num)
    np.testing.assert_allclose(grads, wanted["soft_ce_grad"][:, :-1], atol=1e-6)
    hits = (own.asnumpy().argmax(1) == labels)[real > 0]
    assert [hits.sum(), real.sum()] == wanted["acc_correct_total"].tolist()


@pytest.mark.skipif(not TAGS, reason="the golden set has no cpm1 folder")
def test_a_student_equal_to_its_teacher_is_at_no_distance():
    tag = TAGS[0]
    inputs = golden(f"forward_{tag}.npz")
    columns = columns_of(inputs["input_ids"], inputs["labels"])
    student = network(config_of(tag))
    for own, given in zip(student.get_parameters(), model_of(tag).get_parameters()):
        own.set_data(given.value())
    teacher = network(config_of(tag))
    for own, given in zip(teacher.get_parameters(), model_of(tag).get_parameters()):
        own.set_data(given.value())
    loss = DistillLoss(student, teacher, hard=0.5, soft=9.0, temperature=2.0)
    total, count = loss(*columns)
    np.testing.assert_allclose(float(total / count), inputs["loss"] / 2, rtol=1e-4)
    assert not any(weight.requires_grad for weight in teacher.get_parameters())
