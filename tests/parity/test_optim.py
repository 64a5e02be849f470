"""Schedules and optimizer steps against the recorded ones of the original trainer."""

from __future__ import annotations

import json
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from conftest import golden_dirs
from mindspore import Parameter, Tensor, nn

from mindplm.config import OptimConfig
from mindplm.train.optim import Adam
from mindplm.train.scaler import LossScale
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, Report, TrainStep

FOLDERS = golden_dirs("cpm_bee", "optim")
SCHEDULES = json.loads((FOLDERS[0] / "schedules.json").read_text()) if FOLDERS else {}
RUNS = json.loads((FOLDERS[0] / "adam.json").read_text()) if FOLDERS else {}
CASES = [
    pytest.param(name, case, id=f"{name}-{case['warmup_iter']}-{case['num_iter']}")
    for name, found in SCHEDULES.items()
    if isinstance(found, list)
    for case in found
]


def test_there_are_cases():
    assert CASES and RUNS


@pytest.mark.parametrize(("name", "case"), CASES)
def test_learning_rates_are_exact(name, case):
    """Where theirs fails or swings to its end (a warm-up as long as the run), ours is steady."""
    warmup, total = case["warmup_iter"], case["end_iter"]
    config = OptimConfig(
        lr=case["start_lr"],
        warmup_steps=warmup,
        warmup_from_zero=name != "Noam",
        schedule=name.lower() if name != "NoDecay" else "constant",
        min_lr_ratio=0.0,
    )
    swings = name == "Cosine" and warmup >= total
    for number, wanted in enumerate(case.get("lr", [0.0] * (2 * total)), case["num_iter"]):
        ours = learning_rate(config, number, total)
        if "error" in case or (swings and number > warmup):
            assert 0 <= ours <= case["start_lr"], number
        else:
            assert ours == pytest.approx(wanted, rel=1e-13), number


# --- Adam -----------------------------------------------------------------------------------------


class FixedGradients(nn.Cell):
    """A loss whose gradients are the columns: the sum of products with the weights."""

    def __init__(self, arrays: list[np.ndarray]):
        super().__init__()
        self.weights = ms.ParameterTuple(
            [Parameter(Tensor(array), name=f"p{i}") for i, array in enumerate(arrays)]
        )

    def construct(self, *columns):
        total = Tensor(0.0, ms.float32)
        for i in range(len(columns)):
            total = total + (self.weights[i] * columns[i]).astype(ms.float32).sum()
        return total, Tensor(1.0, ms.float32)


def config_of(run: dict[str, Any]) -> OptimConfig:
    lr, warmup, _, _ = run["noam"]
    return OptimConfig(
        name="adamw" if run["decay"] == "decoupled" else "adam_l2",
        lr=lr,
        warmup_steps=warmup,
        schedule="noam",
        beta1=run["betas"][0],
        beta2=run["betas"][1],
        eps=run["eps"],
        weight_decay=run["weight_decay"],
        decay="all",
        clip_norm=run["clip"],
        loss_scale=run["loss_scale"] or 1.0,
    )


@pytest.mark.parametrize("tag", RUNS)
def test_optimizer_steps_agree(tag):
    """Relative 2e-6 or absolute 2e-7: the original's arithmetic is another sequence in fp32.

    Half runs' masters get an absolute 1e-5, as the original takes their bias corrections in fp32
    powers. Half weights are equal but for one unit in their last place, where a master is that
    near to the middle between two of them. The recorded gradients carry the loss scale: as a
    number of targets it goes in a second time, so that the step takes them as they are.
    """
    run = RUNS[tag]
    half = run["dtype"] == "torch.float16"
    arrays = np.load(FOLDERS[0] / "adam.npz")
    numbers = range(len(run["shapes"]))
    dtype = np.float16 if half else np.float32
    cell = FixedGradients([arrays[f"{tag}/p{i}_init"].astype(dtype) for i in numbers])
    config = config_of(run)
    optimizer = Adam(list(cell.weights), config)
    step = TrainStep(
        cell,
        optimizer,
        clip_norm=config.clip_norm,
        num_micro=1,
        scaler=LossScale(config, dynamic=half),
    )
    first = run["noam"][3]
    for t in range(run["steps"]):
        lr = learning_rate(config, first + t, 0)
        assert lr == pytest.approx(run["lr_used"][t], rel=1e-13)
        columns = {f"g{i}": arrays[f"{tag}/g{i}_step{t}"].astype(dtype) for i in numbers}
        scale = run["loss_scale"] or 1.0
        told = Numbers(scale, [optimizer.rates(lr, t)], t)
        report = Report.of(step(columns, set(), told).asnumpy())
        assert report.moved and report.updates == t + 1
        assert report.norm == pytest.approx(run["grad_norm_reported"][t], rel=1e-6)
        for i in numbers:
            for name, found in (
                ("p", cell.weights[i]),
                ("m", optimizer.moment1[i]),
                ("v", optimizer.moment2[i]),
                ("master", optimizer.masters[i]),
            ):
                if name == "master" and not half:
                    continue
                wanted = arrays[f"{tag}/{name}{i}_step{t}"]
                text = f"{name}{i} step {t}"
                if found.dtype == ms.float16:
                    near = np.spacing(np.abs(wanted).astype(np.float16))
                    np.testing.assert_array_less(np.abs(found.asnumpy() - wanted), 1.5 * near, text)
                else:
                    np.testing.assert_allclose(
                        found.asnumpy(),
                        wanted,
                        rtol=2e-6,
                        atol=1e-5 if half else 2e-7,
                        err_msg=text,
                    )


# --- loss scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", SCHEDULES.get("scaler", {}))
def test_loss_scales_are_exact(tag):
    case = SCHEDULES["scaler"][tag]
    config = OptimConfig(
        loss_scale=case["loss_scale"],
        loss_scale_factor=case["factor"],
        loss_scale_steps=case["steps"],
        schedule="noam",
        warmup_steps=1,
    )
    scaler = LossScale(config, dynamic=True)

    @ms.jit
    def adjust(ok):
        return scaler(ok)

    updates = 0
    trace = next(found for name, found in case.items() if name.startswith("trace"))
    assert len(trace) == len(case["overflow"]) > 0
    for overflow, (scale, good, iteration, _) in zip(case["overflow"], trace):
        told = float(adjust(Tensor(not overflow)).asnumpy())
        updates += not overflow
        assert told == float(scaler.scale.asnumpy()) == scale
        assert (float(scaler.good.asnumpy()), updates) == (good, iteration)
