"""Learning rates of the original programs of GPT-1 and CPM-1."""

from __future__ import annotations

import json

import pytest
from conftest import golden_dirs

from mindplm.config import OptimConfig
from mindplm.train.schedule import learning_rate


def cases(family: str, pattern: str) -> list[dict]:
    return [case for path in golden_dirs(family, pattern) for case in json.loads(path.read_text())]


GPT1 = cases("gpt1", "schedules*.json")
CPM1 = [(case, form) for case in cases("cpm1", "lr*.json") for form in ("finetune", "pretrain")]


@pytest.mark.parametrize("case", [c for c in GPT1 if "x" in c], ids=lambda c: c["schedule"])
def test_factors_of_gpt1(case):
    shape = case["schedule"].split("_")[-1]
    total = 10_000
    config = OptimConfig(
        lr=1.0, schedule=shape, schedule_form="gpt1", warmup_steps=round(case["warmup"] * total)
    )
    for x, factor in zip(case["x"], case["factor"]):
        assert learning_rate(config, round(x * total) - 1, total) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("case", [c for c in GPT1 if "lr" in c], ids=lambda c: c["schedule"])
def test_rates_of_the_paper(case):
    assert "cosine" in case["schedule"]
    config = OptimConfig(
        lr=case["peak"], warmup_steps=case["warmup_updates"], warmup_from_zero=True, min_lr_ratio=0
    )
    for step, rate in enumerate(case["lr"]):
        assert learning_rate(config, step, case["total"]) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("case", "form"), CPM1, ids=lambda v: v if isinstance(v, str) else v["style"]
)
def test_rates_of_cpm1(case, form):
    config = OptimConfig(
        lr=case["start_lr"],
        schedule=case["style"],
        schedule_form="cpm1" if form == "finetune" else "cpm1_pretrain",
        warmup_steps=case["warmup_iter"],
        min_lr_ratio=case["min_lr"] / case["start_lr"],
    )
    for step, rate in enumerate(case[form + "_variant"]):
        found = learning_rate(config, step, case["num_iters"])
        assert found == pytest.approx(rate, rel=1e-9, abs=1e-15), step
