"""What a run tells of itself on request, and what it does when its numbers are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from mindplm import cli, families, train
from mindplm.checkpoint import RunFolder
from mindplm.config import TrainConfig
from mindplm.errors import UserError
from mindplm.train.metrics import read_metrics
from mindplm.train.trainer import target_tasks


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("probe"), steps=6)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def pretrain(config: Path, output: Path, *overrides: str) -> None:
    settings = [f"train.output={output}", "model.num_layers=1", *overrides]
    train.pretrain(families.load_config(config, settings))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tables_times_and_checkpoints_by_the_clock(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    asked = ["train.inspect_every=3", "train.profile=2:5", "runtime.peak_tflops=0.001"]
    clock = ["train.save_every=0", "train.save_every_minutes=1e-6", "train.keep_last=0"]
    pretrain(config, output, *asked, *clock)
    assert RunFolder(output).steps() == [1, 2, 3, 4, 5, 6]
    rows = lines(output / "inspect.jsonl")
    weights = tiny_run.newest(output).weights()
    assert [row["step"] for row in rows] == [3] * len(weights) + [6] * len(weights)
    for row in rows[len(weights) :]:
        array = weights[row["name"]]
        assert row["value"]["mean"] == pytest.approx(array.mean(), rel=1e-4, abs=1e-6)
        assert row["value"]["max"] == pytest.approx(array.max())
        assert row["gradient"]["std"] > 0
    times = lines(output / "profile" / "steps_0.jsonl")
    assert [entry["step"] for entry in times] == [2, 3, 4]
    assert all(entry["compute_ms"] > 0 and entry["wait_ms"] >= 0 for entry in times)
    for record in read_metrics(output / "metrics.jsonl"):
        if "train/loss" in record:
            assert 0 < record["train/mfu"] < 1e4 and record["train/memory_gb"] > 0.05
            assert {"task/train/lm", "task/train/write", "task/train/infill"} & set(record)


def test_a_run_whose_numbers_are_none_stops_or_skips(config: Path, tmp_path: Path) -> None:
    wild = ["optim.lr=1e30", "optim.clip_norm=0", "optim.schedule=constant"]
    with pytest.raises(UserError, match=r"step 2 has loss \S+ and gradient norm \S+; not used"):
        pretrain(config, tmp_path / "stop", *wild)
    assert RunFolder(tmp_path / "stop").steps() == []
    skip = ["train.on_nan=skip", "train.max_skipped=3"]
    with pytest.raises(UserError, match="step 4: the last 3 steps moved no weight"):
        pretrain(config, tmp_path / "skip", *wild, *skip)
    events = lines(tmp_path / "skip" / "events.jsonl")
    assert [(event["step"], event["event"], event["moved"]) for event in events] == [
        (2, "nan", False),
        (3, "nan", False),
        (4, "nan", False),
    ]
    assert all(len(event["rows"]) == 4 for event in events)


def test_targets_have_the_task_of_their_span() -> None:
    columns = {
        "spans": np.array([[0, 0, 1, 1, 2, 0], [0, 0, 0, 0, 0, 0]], np.int32),
        "target_pos": np.array([[1, 2, 4, 0], [3, 0, 0, 0]], np.int32),
        "targets": np.array([[7, 8, 9, -100], [5, -100, -100, -100]], np.int32),
    }
    found = target_tasks(columns, [[4, 2, 6], [3]])
    np.testing.assert_array_equal(found, [[4, 2, 6, -1], [3, -1, -1, -1]])


@pytest.mark.parametrize("text", ["10", "5:5", "0:3", "a:b", "3:2", "1:2:3", "-1:4"])
def test_a_range_of_steps_without_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected two step numbers such as 10:20"):
        TrainConfig(steps=9, output="x", profile=text)
