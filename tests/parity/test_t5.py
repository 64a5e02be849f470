"""T5 v1.0 and v1.1 against HF's arrays: states, biases, loss, gradients, span corruption."""

from __future__ import annotations

import json
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from mindplm.data import spans
from mindplm.models.t5.cell import T5, T5Loss
from mindplm.models.t5.config import fitted, from_original, parameter_shapes, rules
from mindplm.nn.position import distance_buckets
from mindplm.nn.values import load_model
from mindplm.weights.rules import to_ours, to_theirs

TAGS = [path.stem.split("_")[1] for path in golden_dirs("t5", "config_*.json")]
EVERY = pytest.mark.parametrize("tag", TAGS)


def golden(name: str):
    (path,) = golden_dirs("t5", name)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


@cache
def model_of(tag: str):
    config = from_original(golden(f"config_{tag}.json"))
    theirs = golden(f"weights_{tag}.safetensors")
    assert fitted(config, theirs) == config
    made = T5(config)
    load_model(made, to_ours(rules(config), theirs, parameter_shapes(config)), tag)
    return made, config


def check(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """By norm: scores of attention are not scaled here, so its errors grow with the values."""
    assert found.shape == wanted.shape, name
    assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted), name


def columns_of(wanted) -> list[Tensor]:
    names = ("input_ids", "attention_mask", "decoder_input_ids", "labels")
    return [Tensor(wanted[name].astype(np.int32)) for name in names]


@EVERY
def test_every_state_and_bias(tag):
    wanted = golden(f"forward_{tag}.npz")
    model, _ = model_of(tag)

    @ms.jit
    def run(ids, real, decoder_ids):
        order = ops.arange(30).astype(ms.int32)
        biases = (
            model.encoder.position_bias(order, order),
            model.decoder.position_bias(order, order),
        )
        states = model.encoder_states(ids, real)
        later = model.decoder_states(decoder_ids, states[-1], real)
        return states, later, biases, model.project(later[-1].reshape((-1, later[-1].shape[2])))

    ids, real, decoder_ids, labels = columns_of(wanted)
    shifted = np.zeros_like(wanted["labels"])
    shifted[:, 1:] = np.maximum(wanted["labels"], 0)[:, :-1]
    assert np.array_equal(shifted, wanted["decoder_input_ids"])
    states, later, biases, logits = run(ids, real, decoder_ids)
    seen = wanted["attention_mask"].astype(bool)
    for number, state in enumerate(states):
        name = f"enc_hidden_{number}"
        check(state.asnumpy()[seen], wanted[name][seen], name)
    for number, state in enumerate(later):
        check(state.asnumpy(), wanted[f"dec_hidden_{number}"], f"dec_hidden_{number}")
    for bias, side in zip(biases, ("encoder", "decoder")):
        golden_bias = wanted[f"{side}_position_bias_30"]
        shown = golden_bias > -1e30  # the decoder's holds its mask
        check(bias.asnumpy()[shown], golden_bias[shown], side)
    check(logits.asnumpy().reshape(wanted["logits"].shape), wanted["logits"], "logits")


@EVERY
def test_the_loss_and_every_gradient(tag):
    inputs, wanted = golden(f"forward_{tag}.npz"), golden(f"grads_{tag}.npz")
    model, config = model_of(tag)
    loss, weights = T5Loss(model), list(model.trainable_params())

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    value, grads = ms.jit(ops.value_and_grad(mean, None, weights))(*columns_of(inputs))
    np.testing.assert_allclose(float(value.asnumpy()), inputs["loss"], rtol=1e-4)
    theirs = to_theirs(rules(config), {w.name: g.asnumpy() for w, g in zip(weights, grads)})
    for name, array in wanted.items():
        off = np.linalg.norm(theirs[name] - array)
        assert off <= 2e-3 * np.linalg.norm(array) + 1e-6, name


BUCKETS = [
    c for p in golden_dirs("t5", "relative_buckets*.json") for c in json.loads(p.read_text())
]


@pytest.mark.parametrize("case", BUCKETS, ids=lambda c: f"{c['bidirectional']}-{c['num_buckets']}")
def test_buckets_of_distances(case):
    furthest = case["max_distance"]
    table = distance_buckets(case["num_buckets"], furthest, bidirectional=case["bidirectional"])
    apart = np.clip(case["relative_position"], -furthest, furthest)
    assert table[apart + furthest].tolist() == case["bucket"]


# --- span corruption ------------------------------------------------------------------------------

FILES = golden_dirs("t5", "span_corruption*.json")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_spans_that_are_cut_out(path):
    facts = json.loads(path.read_text())
    drawn = 0
    for case in facts["examples"]:
        if "noise_mask" not in case:
            continue
        mask = np.array(case["noise_mask"], bool)
        first, end = facts["first_sentinel_id"], facts["eos_id"]
        read, written = spans.corrupt(case["tokens"], mask, first, end)
        assert read == case["inputs_with_eos"] == [*case["inputs"], end]
        assert written == case["targets_with_eos"] == [*case["targets"], end]
        names = ("noise_segment_start_flags", "nonnoise_segment_start_flags")
        flags = [case[name] for name in names if name in case]
        if flags:
            drawn += 1
            found = spans.counts(len(mask), case["noise_density"], case["mean_noise_span_length"])
            assert (len(flags[0]) + 1, sum(flags[0]) + 1) == found
            assert spans.noise_mask(len(mask), *flags).tolist() == mask.tolist()
    assert drawn == sum("noise_density" in case for case in facts["examples"])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_lengths_that_fit(path):
    for case in json.loads(path.read_text())["length_helper"]:
        found = spans.raw_length(
            case["inputs_length"], case["noise_density"], case["mean_noise_span_length"]
        )
        assert list(found) == case["result"], case


def test_drawn_masks_have_the_wanted_share():
    rng = np.random.default_rng(3)
    for length in (2, 3, 10, 100, 568):
        mask = spans.draw_mask(length, rng)
        noise, runs = spans.counts(length)
        assert (len(mask), mask.sum()) == (length, noise)
        assert not mask[0] and (np.diff(mask.astype(int)) == 1).sum() == runs
