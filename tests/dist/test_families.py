"""Every family under msrun as a user starts it: two processes equal one, and a run of two goes on.

BERT and CPT, whose batches are drawn anew at each use, run by default; MINDPLM_ALL_FAMILIES=1 runs
the others too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
from conftest import SELDOM
from test_data_parallel import assert_near, assert_near_weights, launch, losses

from mindplm import families, train
from mindplm.checkpoint import RunFolder
from mindplm.finetune import prepare_rows

STEPS, SAVED = 4, 2
DEFAULT = ("bert", "cpt")
# eps keeps the rounding of gradients that are almost 0 from becoming whole steps.
CONFIG = """\
family: {family}
model: {{preset: tiny, num_layers: 2, dropout: 0.1}}
runtime: {{device: cpu}}
data: {{folder: "{folder}/rows", seq_len: 48, train: [{{path: "{folder}/train.jsonl"}}]}}
optim: {{lr: 2e-3, eps: 1e-3, schedule: constant}}
train: {{output: "{folder}/one", steps: {steps}, batch_size: 4, log_every: 1,
  save_every: {saved}, keep_last: 0}}
"""
NAMES = [
    pytest.param(name, marks=() if name in DEFAULT else SELDOM)
    for name in families.FAMILIES
    if name != "cpm_bee"  # that is test_data_parallel
]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_and_their_run_goes_on(name: str, tmp_path: Path) -> None:
    tiny_run.write_lines(tmp_path / "train.jsonl", tiny_run.texts(40))
    path = tmp_path / "run.yaml"
    text = CONFIG.format(family=name, folder=tmp_path, steps=STEPS, saved=SAVED)
    path.write_text(text, encoding="utf-8")
    one, two, again = (tmp_path / run for run in ("one", "two", "again"))
    config = families.load_config(path)
    prepare_rows(config)
    train.pretrain(config)
    status, out = tiny_run.finish(launch(path, two, "model.num_layers=2"), timeout=240)
    assert status == 0, out
    assert "x 2 device(s)" in out
    assert list(losses(one)) == list(range(1, STEPS + 1))
    assert_near(losses(one), losses(two), rel=1e-6)
    assert_near_weights(one, two, STEPS, atol=1e-5)
    begin = RunFolder(two).path_of(SAVED)
    overrides = [f"train.output={again}", f"train.resume={begin}"]
    train.pretrain(families.load_config(path, overrides))
    rest = {step: loss for step, loss in losses(two).items() if step > SAVED}
    assert_near(rest, losses(again), rel=1e-6)
    assert_near_weights(two, again, STEPS, atol=1e-5)
