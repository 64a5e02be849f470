"""The training loop in one process: what it writes, when, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from mindplm import cli, families, train
from mindplm.checkpoint import RunFolder
from mindplm.data.loader import RowStream
from mindplm.data.records import open_folder
from mindplm.train import loop
from mindplm.train.metrics import read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("loop"), steps=6)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def pretrain(config: Path, output: Path, *overrides: str) -> loop.Result:
    return train.pretrain(families.load_config(config, [f"train.output={output}", *overrides]))


@pytest.fixture(scope="module")
def whole(config: Path) -> loop.Result:
    return pretrain(config, config.parent / "run", "train.eval_every=2", "train.save_every=2")


def test_a_run_leaves_checkpoints_reports_and_a_curve(config: Path, whole: loop.Result) -> None:
    run = RunFolder(config.parent / "run")
    assert (whole.step, whole.interrupted) == (6, False)
    assert whole.checkpoint == run.path_of(6) and run.steps() == [4, 6]
    assert whole.curve is not None and whole.curve.read_bytes().startswith(b"\x89PNG")
    assert list((run.root / "tensorboard").iterdir())
    records = read_metrics(run.root / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "valid/loss" in r] == [2, 4, 6]
    assert whole.valid is not None and whole.valid.per_target == records[-1]["valid/loss"]
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert losses[-1] < losses[0]


def test_a_line_holds_the_mean_over_the_targets_since_the_last_one(
    config: Path, whole: loop.Result, tmp_path: Path
) -> None:
    pretrain(config, tmp_path / "run", "train.log_every=4")
    each = tiny_run.numbers(config.parent / "run")
    losses = [record["train/loss"] for record in each if "train/loss" in record]
    long = [r for r in tiny_run.numbers(tmp_path / "run") if "train/loss" in r]
    assert [record["step"] for record in long] == [4, 6]
    rows = open_folder(config.parent / "rows" / "train")
    with RowStream(rows, seed=1234, batch_size=4) as stream:
        counts = [next(stream)[1]["targets"] for _ in range(6)]
    for record, part in zip(long, (slice(0, 4), slice(4, 6))):
        wanted = np.average(losses[part], weights=counts[part])
        assert record["train/loss"] == pytest.approx(wanted, rel=1e-6)
    assert [r["step"] for r in tiny_run.numbers(tmp_path / "run") if "valid/loss" in r] == [6]


def test_micro_batches_change_nothing(config: Path, whole: loop.Result, tmp_path: Path) -> None:
    result = pretrain(config, tmp_path / "run", "train.micro_batch_size=1")
    one, other = (
        tiny_run.newest(config.parent / "run"),
        tiny_run.newest(result.checkpoint.parents[1]),
    )
    for name, array in one.weights().items():
        difference = np.linalg.norm(other.weights()[name] - array)
        assert difference <= 1e-5 * np.linalg.norm(array), name
    assert result.valid is not None and whole.valid is not None
    assert result.valid.per_target == pytest.approx(whole.valid.per_target, rel=1e-5)


def test_a_run_can_be_made_longer(config: Path, tmp_path: Path) -> None:
    constant = ["optim.schedule=constant", "train.save_every=0"]
    pretrain(config, tmp_path / "run", *constant, "train.steps=3")
    pretrain(config, tmp_path / "run", *constant)
    pretrain(config, tmp_path / "other", *constant)
    longer, straight = (
        [r for r in tiny_run.numbers(tmp_path / name) if "train/loss" in r]
        for name in ("run", "other")
    )
    assert longer == straight
    tiny_run.assert_same_state(
        tiny_run.newest(tmp_path / "run"), tiny_run.newest(tmp_path / "other")
    )


def test_another_run_can_be_gone_on_with(config: Path, whole: loop.Result, tmp_path: Path) -> None:
    begin = f"train.resume={RunFolder(config.parent / 'run').path_of(4)}"
    result = pretrain(config, tmp_path / "branch", begin)
    assert result.step == 6 and RunFolder(tmp_path / "branch").steps() == [6]
    assert RunFolder(config.parent / "run").steps() == [4, 6]
    tiny_run.assert_same_arrays(
        tiny_run.newest(tmp_path / "branch").weights(),
        tiny_run.newest(config.parent / "run").weights(),
    )


def test_what_changes_the_steps_to_come_is_told(
    config: Path, whole: loop.Result, tmp_path: Path, capsys: Any
) -> None:
    begin = f"train.resume={RunFolder(config.parent / 'run').path_of(4)}"
    for overrides, wanted in [
        ([], None),
        (["optim.lr=1e-3"], "optim.lr was 0.01, is 0.001"),
        (["train.batch_size=2"], "train.batch_size was 4, is 2"),
    ]:
        capsys.readouterr()
        output = tmp_path / str(wanted)[:10]
        pretrain(config, output, begin, *overrides, "train.steps=4")
        err = capsys.readouterr().err
        assert ("warning" in err) == bool(wanted), err
        assert wanted is None or wanted in err
