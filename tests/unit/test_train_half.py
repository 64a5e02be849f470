"""Half precision and recomputation of a whole small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from mindplm import cli, families, train
from mindplm.checkpoint import RunFolder
from mindplm.train.metrics import read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("half"), steps=8)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def losses(config: Path, output: Path, *overrides: str) -> np.ndarray:
    settings = [f"train.output={output}", "optim.schedule=constant", "model.num_layers=1"]
    settings += overrides
    train.pretrain(families.load_config(config, settings))
    records = read_metrics(output / "metrics.jsonl")
    return np.array([record["train/loss"] for record in records if "train/loss" in record])


@pytest.fixture(scope="module")
def wide(config: Path) -> np.ndarray:
    return losses(config, config.parent / "wide", "train.save_every=4")


def test_half_precision_learns_as_fp32_does_and_goes_on_bitwise(
    config: Path, wide: np.ndarray, tmp_path: Path
) -> None:
    half = ["runtime.dtype=float16", "optim.loss_scale=2048", "optim.loss_scale_steps=3"]
    found = losses(config, tmp_path / "half", *half, "train.save_every=4")
    np.testing.assert_allclose(found, wide, atol=0.02)
    assert found[-1] < found[0] - 0.1
    records = read_metrics(tmp_path / "half" / "metrics.jsonl")
    scales = [record["train/loss_scale"] for record in records if "train/loss_scale" in record]
    assert scales[:3] == [2048, 2048, 4096]
    weights = tiny_run.newest(tmp_path / "half").weights()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert any((a != a.astype(np.float16)).any() for a in weights.values()), "masters are kept"
    begin = f"train.resume={RunFolder(tmp_path / 'half').path_of(4)}"
    again = losses(config, tmp_path / "again", *half, begin)
    np.testing.assert_array_equal(again, found[4:])
    tiny_run.assert_same_state(
        tiny_run.newest(tmp_path / "again"), tiny_run.newest(tmp_path / "half")
    )


def test_an_overflow_is_counted_and_the_next_steps_are_right(
    config: Path, wide: np.ndarray, tmp_path: Path
) -> None:
    half = ["runtime.dtype=float16", "optim.loss_scale=268435456"]
    found = losses(config, tmp_path / "run", *half, "train.steps=12")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    last = [record for record in records if "train/loss_scale" in record][-1]
    assert 1 <= last["train/overflows"] < 12
    assert last["train/loss_scale"] == 2.0 ** (28 - last["train/overflows"])
    assert np.isfinite(found).all()
    state = tiny_run.newest(tmp_path / "run").train()
    assert state is not None and state.step == 12
    assert state.meta["updates"] == 12 - last["train/overflows"]


def test_a_run_can_change_its_precision(
    config: Path, wide: np.ndarray, tmp_path: Path, capsys: Any
) -> None:
    begin = f"train.resume={RunFolder(config.parent / 'wide').path_of(4)}"
    half = ["runtime.dtype=float16", "optim.loss_scale=2048"]
    found = losses(config, tmp_path / "run", begin, *half)
    np.testing.assert_allclose(found, wide[4:], atol=0.02)
    assert "runtime.dtype was float32, is float16: other steps" in capsys.readouterr().err
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[0]["train/loss_scale"] == 2048, "not the 1 of the fp32 run"


def test_recomputation_changes_nothing(config: Path, wide: np.ndarray, tmp_path: Path) -> None:
    found = losses(config, tmp_path / "run", "parallel.recompute=true")
    np.testing.assert_allclose(found, wide, rtol=1e-6)


def test_bfloat16_is_refused_on_a_cpu(config: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["pretrain", "-c", str(config), "runtime.dtype=bfloat16", f"train.output={tmp_path}/x"]
    assert cli.main(argv) == 2
    assert "runtime.dtype=bfloat16 does not run on CPU" in capsys.readouterr().err
