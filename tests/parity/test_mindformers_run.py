"""A run of MindFormers' Trainer with our parts against our own trainer on the same rows.

Where MindFormers is not installed these tests are skipped; its releases need MindSpore 2.9.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_run
import yaml
from conftest import ROOT

import mindplm
from mindplm import cli
from mindplm.checkpoint import RunFolder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mindformers") is None,
    reason="mindformers is not installed (pip install mindplm[mindformers])",
)
STEPS = 20
TOKENIZER = """
import sys
from mindplm.integrations import mindformers
from mindformers.models.build_tokenizer import build_tokenizer
made = build_tokenizer({"type": "MindplmCpmBeeTokenizer", "vocab_file": sys.argv[1]})
text = "The moon \\u660e\\u6708 < \\u5149"
ids = made(text)["input_ids"]
assert ids == made.bee.encode(text.replace("<", "<<"))[0], ids
assert made.decode(ids) == text and made.bos_token_id == made.bee.bos_id
assert len(made) == made.bee.vocab_size
assert made("\\u9f98")["input_ids"] == [made.bee.unk_id]
"""


class Runs(NamedTuple):
    """The folders of both runs, where MindFormers' was started, and the settings of ours."""

    theirs: Path
    ours: Path
    started_in: Path
    config: Path


def start(words: list[str], folder: Path) -> str:
    """Runs a Python program in a folder; returns what it printed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> Runs:
    """20 steps by MindFormers and by us."""
    folder = tmp_path_factory.mktemp("mindformers")
    config = tiny_run.write_run(folder, steps=STEPS)
    assert cli.main(["preprocess", "-c", str(config)]) == 0
    ours = yaml.safe_load(config.read_text(encoding="utf-8"))
    theirs = yaml.safe_load((ROOT / "configs/cpm_bee/mindformers/tiny.yaml").read_text())
    theirs["output_dir"] = "theirs"
    theirs["runner_config"] = {"epochs": 2, "batch_size": 4, "sink_mode": False}
    theirs["model"]["model_config"] = {"type": "MindplmCpmBeeConfig", **ours["model"]}
    theirs["train_dataset"]["data_loader"].update(folder="rows/train", steps=STEPS // 2)
    theirs["processor"]["tokenizer"]["vocab_file"] = "vocab.txt"
    theirs["callbacks"] = [{"type": "MindplmRecorder", "save_every": 15}]
    theirs["optimizer"] = {"type": "MindplmAdam"}
    theirs["lr_schedule"] = {"type": "MindplmSchedule", **ours["optim"]}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(theirs), encoding="utf-8")
    start([str(ROOT / "tools" / "run_mindformers.py"), "-c", "theirs.yaml"], folder)
    assert cli.main(["pretrain", "-c", str(config)]) == 0
    return Runs(folder / "theirs", folder / "run", folder, config)


def losses(run: Path) -> list[float]:
    return [r["train/loss"] for r in tiny_run.numbers(run) if "train/loss" in r]


def test_losses_equal_those_of_our_own_trainer(runs: Runs) -> None:
    """Two epochs of ten steps against twenty steps, schedule, clipping and decay included."""
    theirs, ours = losses(runs.theirs), losses(runs.ours)
    assert len(theirs) == len(ours) == STEPS
    assert ours[-1] < ours[0] - 0.2
    assert np.abs(np.array(theirs) - ours).max() < 1e-4


def test_weights_and_state_equal_too_and_the_checkpoint_loads(runs: Runs) -> None:
    theirs, ours = tiny_run.newest(runs.theirs), tiny_run.newest(runs.ours)
    assert RunFolder(runs.theirs).steps() == [15, STEPS]
    assert theirs.model() == ours.model()
    for left, right in [(theirs.weights(), ours.weights()), (arrays(theirs), arrays(ours))]:
        assert left.keys() == right.keys()
        for name, array in left.items():
            assert np.linalg.norm(array - right[name]) <= 1e-4 * np.linalg.norm(right[name]), name
    model, tokenizer = mindplm.load(runs.theirs)
    record = {"input": "床前", "<ans>": ""}
    written = mindplm.generate(model, tokenizer, [record], max_new_tokens=4)
    assert set(written[0]) == {"input", "<ans>"}


def arrays(checkpoint: Any) -> dict[str, np.ndarray]:
    state = checkpoint.train()
    assert state is not None and state.step == state.meta["updates"] == STEPS
    return state.arrays


def test_our_trainer_goes_on_from_its_checkpoint(runs: Runs, tmp_path: Path) -> None:
    begin = f"train.resume={RunFolder(runs.theirs).path_of(15)}"
    command = ["pretrain", "-c", str(runs.config), f"train.output={tmp_path / 'on'}", begin]
    assert cli.main(command) == 0
    assert losses(tmp_path / "on") == pytest.approx(losses(runs.ours)[15:], abs=1e-4)


def test_nothing_is_written_outside_the_output_folder(runs: Runs) -> None:
    known = {"train.jsonl", "valid.jsonl", "vocab.txt", "run.yaml", "rows", "run"}
    assert {p.name for p in runs.started_in.iterdir()} - known == {"theirs", "theirs.yaml"}
    assert (runs.theirs / "log").is_dir()


def test_tokenizer_gives_our_ids(runs: Runs, tmp_path: Path) -> None:
    start(["-c", TOKENIZER, str(runs.started_in / "vocab.txt")], tmp_path)
