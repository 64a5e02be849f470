"""LoRA on CPM-Bee against the original's arrays: file, outputs, loss, gradients, merging."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import golden_dirs
from safetensors.numpy import load_file
from test_cpm_bee_model import GRADIENT, LOGITS, LOSS, Case, gradients

from mindplm import adapters
from mindplm.config_lora import LoraConfig
from mindplm.convert import convert_lora
from mindplm.models.cpm_bee.config import lora_gain, lora_rules
from mindplm.nn.lora import LoraLinear, add_lora, load_lora, lora_parameters
from mindplm.nn.values import load_model, to_arrays
from mindplm.tensors import LazyArray
from mindplm.weights.rules import to_theirs
from mindplm.weights.sources import open_tensors

CASES = [path.parent for path in golden_dirs("cpm_bee", "lora*/delta.safetensors")]


class LoraCase:
    """One golden set: its base with the adapters of its file."""

    def __init__(self, folder: Path, out: Path):
        self.info = json.loads((folder / "info.json").read_text())
        self.delta = folder / "delta.safetensors"
        self.outputs = dict(np.load(folder / "outputs.npz"))
        self.grads = load_file(folder / "grads.safetensors")
        report = convert_lora(self.delta, out, alpha=self.info["alpha"], verify=True)
        assert report.verified == report.tensors == len(self.info["saved_keys"])
        self.adapter = adapters.read(out)
        self.base = folder.parent / self.info["base_model"]
        self.case = Case(self.base)

    def hidden_and_logits(self) -> tuple[np.ndarray, np.ndarray]:
        case = self.case
        hidden = case.model(*case.columns[:10])
        width, num_ext = hidden.shape[-1], len(case.inputs["ext_ids"])
        logits = case.model.project(hidden.reshape((-1, width)), *case.columns[12:]).asnumpy()
        classes = case.config.vocab_size + num_ext
        return hidden.asnumpy(), logits[:, :classes].reshape((*hidden.shape[:2], -1))

    def swap(self) -> dict[str, LoraLinear]:
        lora = self.adapter.lora
        return add_lora(
            self.case.model, lora.targets, rank=lora.rank, alpha=lora.alpha, gain=lora_gain
        )

    def values(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(array) for name, array in self.adapter.arrays.items()}


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def lora(request, tmp_path):
    return LoraCase(request.param, tmp_path / "adapter")


@pytest.mark.skipif(not CASES, reason="this golden folder holds no LoRA sets")
def test_the_settings_are_the_default_of_the_original(lora):
    default, info = LoraConfig(), lora.info
    assert (default.rank, default.alpha) == (info["r"], info["alpha"])
    assert default.dropout == info["dropout"]
    assert lora.adapter.lora == default
    assert [f"project_{target[-1]}" for target in default.targets] == info["modified_modules"]


def test_files_of_all_flavours_hold_the_same_bits(lora, tmp_path):
    golden = load_file(lora.delta)
    forms = {"openbmb": "{}", "hf": "cpmbee.{}", "peft": "base_model.model.cpmbee.{}.weight"}
    for flavour, form in forms.items():
        named = {
            form.format(n.replace(".lora.", ".") if flavour == "peft" else n): a
            for n, a in golden.items()
        }
        convert_lora(lora.adapter.folder, tmp_path / flavour, back=flavour, verify=True)
        found, _ = open_tensors(tmp_path / flavour)
        assert set(named) == set(found)
        for name, array in named.items():
            assert np.asarray(found[name]).tobytes() == array.tobytes()
        again = tmp_path / f"{flavour}-again"
        assert convert_lora(tmp_path / flavour, again).flavour == flavour
        left, right = adapters.read(again).arrays, lora.values()
        assert {n: np.asarray(a).tobytes() for n, a in left.items()} == {
            n: a.tobytes() for n, a in right.items()
        }


def test_outputs_loss_and_gradients_agree(lora):
    before = lora.hidden_and_logits()
    lora.case = Case(lora.base)  # adapters go onto a network that nothing was compiled of
    lora.swap()
    fresh = lora.hidden_and_logits()
    assert all(np.array_equal(a, b) for a, b in zip(before, fresh))  # B begins with zeros
    model = lora.case.model
    load_lora(model, lora.values(), "golden")
    hidden, logits = lora.hidden_and_logits()
    assert np.abs(hidden - lora.outputs["hidden"]).max() < LOGITS
    assert np.abs(logits - lora.outputs["logits"]).max() < LOGITS
    assert np.abs(logits - before[1]).max() > 0.01  # the adapters do something
    trained = [p.name for p in model.trainable_params()]
    assert trained == [p.name for p in lora_parameters(model)]
    loss, ours = gradients(lora.case)
    assert abs(loss - lora.info["loss"]) < LOSS
    theirs = to_theirs(lora_rules(), ours)
    assert set(theirs) == set(lora.grads) == set(lora.info["trainable"])
    for name, wanted in lora.grads.items():
        assert (np.abs(theirs[name] - wanted) - 1e-4 * np.abs(wanted)).max() < GRADIENT, name


def test_merged_weights_give_the_outputs_of_the_adapters(lora):
    model = lora.case.model
    arrays = to_arrays(model.get_parameters())
    weights = {n: LazyArray(a.shape, a.dtype, a.copy) for n, a in arrays.items()}
    merged = {n: np.array(a) for n, a in adapters.merge(weights, lora.adapter).items()}
    changed = {n for n in merged if not np.array_equal(merged[n], arrays[n])}
    assert changed == {n[: -len(".lora_a")] + ".weight" for n in lora.values() if n[-1] == "a"}
    lora.swap()
    load_lora(model, lora.values(), "golden")
    apart = lora.hidden_and_logits()
    lora.case = Case(lora.base)
    load_model(lora.case.model, merged, "merged")
    for one, other in zip(apart, lora.hidden_and_logits()):
        assert np.abs(one - other).max() < 1e-5 * max(1.0, np.abs(one).max())


def test_the_first_matrices_are_those_of_the_original(lora):
    made = lora.swap()
    for cell in made.values():
        first, second = cell.lora_a.asnumpy(), cell.lora_b.asnumpy()
        bound = first.shape[1] ** -0.5
        assert not second.any()
        assert 0.9 * bound < np.abs(first).max() <= bound
        assert abs(first.std() - bound / 3**0.5) < 0.15 * bound
    for low, high, deviation in lora.info["initial_lora_A_min_max_std"].values():
        bound = lora.info["dim_model"] ** -0.5
        assert -bound <= low and high <= bound
        assert abs(deviation - bound / 3**0.5) < 0.15 * bound
