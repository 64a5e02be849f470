"""Steps that go wrong: what is skipped, told, counted and when the run ends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindplm.config import TrainConfig
from mindplm.errors import UserError
from mindplm.train.health import FILE, Health
from mindplm.train.step import LARGEST, Report
from mindplm.train.window import Window

ROWS = {"rows": np.arange(30, 42)}
NONE = np.zeros(0)


def report(loss: float, norm: float = 1.0, moved: bool = True, scale: float = 1.0) -> Report:
    return Report(loss, norm, moved, scale, 0, 0, NONE, NONE)


def health(folder: Path | None = None, **settings: Any) -> Health:
    return Health(TrainConfig(steps=9, output="x", **settings), folder, "data/train")


def warmed(**settings: Any) -> Health:
    made = health(**settings)
    for step in range(1, 31):
        made.see(step, report(2.0), ROWS)
    return made


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (2.0, math.inf), (math.inf, 1.0)])
def test_a_number_that_is_none_ends_the_run_and_names_step_and_rows(
    loss: float, norm: float, tmp_path: Path
) -> None:
    made = health(tmp_path)
    with pytest.raises(UserError) as error:
        made.see(7, report(loss, norm, moved=False), ROWS)
    text = str(error.value)
    assert f"step 7 has loss {loss} and gradient norm {norm}; not used; rows 30, 31, " in text
    assert "37 and 4 more of data/train" in text
    line = json.loads((tmp_path / FILE).read_text())
    assert (line["step"], line["event"], line["moved"]) == (7, "nan", False)
    assert line["rows"] == list(range(30, 42))
    assert line["loss"] is None or line["grad_norm"] is None


def test_skipped_steps_are_counted_and_told(tmp_path: Path, caplog: Any) -> None:
    made = health(tmp_path, on_nan="skip", max_skipped=3)
    for step in (1, 2, 4, 5):
        made.see(step, report(math.nan, moved=False), ROWS)
        if step == 2:
            made.see(3, report(2.0), ROWS)
    assert made.counts == {"overflows": 0, "skipped": 4, "spikes": 0}
    assert len((tmp_path / FILE).read_text().splitlines()) == 4
    with pytest.raises(UserError, match="the last 3 steps moved no weight"):
        made.see(6, report(math.nan, moved=False), ROWS)


def test_overflows_that_a_smaller_scale_mends_are_only_counted(tmp_path: Path) -> None:
    made = health(tmp_path)
    made.see(1, report(2.0, math.inf, moved=False, scale=1024.0), ROWS)
    made.see(2, report(math.nan, math.nan, moved=False, scale=2.0), ROWS)
    assert made.counts == {"overflows": 2, "skipped": 0, "spikes": 0}
    assert not (tmp_path / FILE).exists()
    with pytest.raises(UserError, match="step 3 has loss"):
        made.see(3, report(2.0, math.inf, moved=False, scale=1.0), ROWS)


def test_a_spike_is_told_and_does_not_raise_the_mean() -> None:
    made = warmed(spike_factor=3.0)
    made.see(31, report(6.5), ROWS)
    assert made.counts["spikes"] == 1 and made.mean == pytest.approx(2.0)
    made.see(32, report(5.5), ROWS)
    assert made.counts["spikes"] == 1 and made.mean > 2.0


def test_a_spike_can_end_the_run() -> None:
    made = warmed(spike_factor=3.0, on_spike="stop")
    with pytest.raises(UserError, match="loss 6.5 is more than 3 times 2, the mean of the last"):
        made.see(31, report(6.5), ROWS)


def test_a_spike_is_skipped_by_a_limit_that_the_step_gets() -> None:
    made = health(spike_factor=3.0, on_spike="skip")
    assert made.loss_limit == LARGEST, "too few losses for a mean"
    assert warmed(spike_factor=3.0).loss_limit == LARGEST
    made = warmed(spike_factor=3.0, on_spike="skip")
    assert made.loss_limit == pytest.approx(6.0)
    made.see(31, report(6.5, moved=False), ROWS)
    assert made.counts == {"overflows": 0, "skipped": 1, "spikes": 1}


def test_a_resumed_run_has_the_same_mean_and_counts() -> None:
    made = warmed(spike_factor=3.0, on_spike="skip")
    made.see(31, report(6.5, moved=False), ROWS)
    again = health(spike_factor=3.0, on_spike="skip")
    again.load(json.loads(json.dumps(made.state())))
    assert (again.loss_limit, again.counts) == (made.loss_limit, made.counts)


# --- one window of log lines ----------------------------------------------------------------------


def test_a_window_weighs_targets_and_tells_the_last_norm_and_the_speed() -> None:
    made = Window()
    for loss, norm, targets in ((1.0, 3.0, 10), (4.0, 4.0, 20), (math.nan, math.inf, 50)):
        info = {"targets": targets, "tokens": 64}
        made.add(report(loss, norm), info, flops=1e9)
    made.begin_s -= 0.5
    values = made.values(peak_flops=1e10)
    assert (values["train/loss"], values["train/grad_norm"]) == (3.0, math.inf)
    assert 160 <= values["train/step_ms"] < 300
    assert values["train/tokens_per_s"] == pytest.approx(64_000 / values["train/step_ms"])
    assert values["train/mfu"] == pytest.approx(0.1 * 1000 / values["train/step_ms"])


def test_a_window_tells_the_loss_of_each_task_that_occurred() -> None:
    made = Window(["lm", "infill", "write"])
    for nats, counts in (([2.0, 3.0, 0.0], [1, 2, 0]), ([4.0, 0.0, 0.0], [2, 0, 0])):
        step = report(1.0)._replace(task_nats=np.array(nats), task_targets=np.array(counts))
        made.add(step, {"targets": 3, "tokens": 4})
    values = made.values()
    assert values["task/lm"] == 2.0 and values["task/infill"] == 1.5
    assert "task/write" not in values and "train/mfu" not in values
