"""Measuring checkpoints: what is summed, and that training reports the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import tiny_run
from mindspore import nn

from mindplm import checkpoint, cli, evaluate, families
from mindplm.errors import CheckpointError, ConfigError, DataError
from mindplm.evaluate import Evaluator, Score


def test_a_score_is_normalised_by_tokens_and_by_characters():
    score = Score(nats=12.0, num_targets=4, num_chars=6, num_rows=2)
    assert (score.per_target, score.per_char) == (3.0, 2.0)
    assert str(score) == (
        "2.0000 nats per character, 3.0000 per token (perplexity 20.1) over 6 characters, "
        "4 tokens, 2 rows"
    )
    assert json.loads(json.dumps(score.to_dict()))["per_char"] == 2.0
    assert "perplexity" in str(Score(1e6, 1, 1, 1))


class Sums(nn.Cell):
    """Stands for a loss: the values are the losses, negative ones are not counted."""

    def construct(self, values):
        real = (values >= 0).astype(ms.float32)
        return (values * real).sum(), real.sum()


def batches(values: np.ndarray, size: int) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    made = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        full = np.full((size, values.shape[1]), -1.0, np.float32)
        full[: len(part)] = part
        made.append(({"values": full}, {"chars": 3 * len(part), "rows": list(range(len(part)))}))
    return made


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_size_of_batches_changes_nothing(size):
    values = np.abs(np.random.default_rng(0).standard_normal((7, 5))).astype(np.float32)
    values[2, 1:] = -1
    score = Evaluator(Sums())(batches(values, size), total=1, progress=False)
    assert score.nats == pytest.approx(values[values >= 0].sum(), rel=1e-6)
    assert (score.num_targets, score.num_chars, score.num_rows) == (31, 21, 7)


def test_rows_that_predict_nothing_are_refused():
    with pytest.raises(DataError, match="predict nothing"):
        Evaluator(Sums())(batches(np.full((2, 3), -1.0), 2), total=1, progress=False)


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("evaluate"), steps=3)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    assert cli.main(["pretrain", "-c", str(path)]) == 0
    return path


def test_a_checkpoint_has_the_loss_that_training_reported(config: Path, capsys: Any):
    folder = config.parent / "run"
    score = evaluate.run(folder)
    (reported,) = (r for r in tiny_run.numbers(folder) if "valid/loss" in r)
    assert score.per_target == pytest.approx(reported["valid/loss"], rel=1e-6)
    assert score.per_char == pytest.approx(reported["valid/per_char"], rel=1e-6)
    capsys.readouterr()
    assert cli.main(["evaluate", "-m", str(folder)]) == 0
    assert capsys.readouterr().out == f"{score}\n"


def test_the_size_of_its_batches_changes_nothing(config: Path):
    whole = evaluate.run(config.parent / "run")
    small = evaluate.run(
        config.parent / "run", families.load_config(config, ["train.micro_batch_size=1"])
    )
    assert small.nats == pytest.approx(whole.nats, rel=1e-6)
    assert small.num_targets == whole.num_targets and small.num_rows == whole.num_rows


def test_settings_that_do_not_fit_are_refused(config: Path, tmp_path: Path):
    saved = checkpoint.read(config.parent / "run")
    parts = {"family": saved.family, "weights": saved.weights()}
    vocab = (saved.folder / "vocab.txt").read_bytes()
    made = {"model_config": saved.model_config, "tokenizer_files": {"vocab.txt": vocab}}
    checkpoint.write(tmp_path / "bare", **parts, **made)
    with pytest.raises(ConfigError, match="bare has no run.yaml; give the settings of a run"):
        evaluate.run(tmp_path / "bare")
    made["tokenizer_files"] = {"vocab.txt": vocab + b"extra\n"}
    checkpoint.write(tmp_path / "other", **parts, **made, run=saved.run)
    with pytest.raises(CheckpointError, match="vocab.txt has .* entries, model.vocab_size is"):
        evaluate.run(tmp_path / "other")
    without = families.load_config(config, ["data.valid=[]"])
    with pytest.raises(ConfigError, match="data.valid names no sources"):
        evaluate.run(config.parent / "run", without)


def test_rows_of_another_vocabulary_are_refused(config: Path, tmp_path: Path):
    """The rows must be those of the checkpoint's vocabulary, not of the run's present file."""
    copy = tmp_path / "vocab.txt"
    shutil.copy(config.parent / "vocab.txt", copy)
    lines = copy.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n", encoding="utf-8")
    saved = checkpoint.read(config.parent / "run")
    checkpoint.write(
        tmp_path / "saved",
        family=saved.family,
        model_config=saved.model_config,
        weights=saved.weights(),
        tokenizer_files={"vocab.txt": copy.read_bytes()},
        run=saved.run,
    )
    with pytest.raises(DataError, match="stale: it was made with another vocabulary"):
        evaluate.run(tmp_path / "saved")
