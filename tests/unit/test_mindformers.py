"""MindFormers YAML files: what is read, what is refused; none of it needs MindFormers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from conftest import ROOT

from mindplm import cli, families
from mindplm.errors import ConfigError, DataError
from mindplm.integrations.mindformers_config import check_known, read_plan

CONFIG = ROOT / "configs" / "cpm_bee" / "mindformers" / "tiny.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Rows and their vocabulary."""
    path = tmp_path_factory.mktemp("mindformers")
    assert cli.main(["preprocess", "-c", str(tiny_run.write_run(path))]) == 0
    return path


def usual(folder: Path) -> list[str]:
    rows, vocab = folder / "rows" / "train", folder / "vocab.txt"
    return [f"train_dataset.data_loader.folder={rows}", f"callbacks.0.vocab_file={vocab}"]


def test_the_shipped_file_is_the_tiny_run(folder: Path) -> None:
    plan = read_plan(CONFIG, usual(folder))
    ours = families.load_config(ROOT / "configs" / "cpm_bee" / "tiny.yaml")
    given = {**plan.tree["optimizer"], **plan.tree["lr_schedule"], **plan.tree["runner_wrapper"]}
    for key, value in given.items():
        assert key == "type" or getattr(ours.optim, key) == value, key
    assert plan.tree["runner_config"]["batch_size"] == ours.train.batch_size
    assert plan.tree["seed"] == ours.runtime.seed
    loader = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["train_dataset"]["data_loader"]
    assert loader["steps"] == ours.train.steps
    assert loader["folder"] == f"{ours.data.folder}/train"
    sizes = plan.tree["model"]["model_config"]
    for key in ("hidden_size", "num_layers", "num_heads", "head_dim", "ffn_size"):
        assert sizes[key] == getattr(ours.model, key)


def test_values_get_their_types_and_paths_become_absolute(folder: Path) -> None:
    changes = ["lr_schedule.lr=1e-4", "use_parallel=false", "output_dir=out", "seed=7"]
    plan = read_plan(CONFIG, [*usual(folder), *changes])
    assert plan.tree["lr_schedule"]["lr"] == 1e-4
    assert plan.tree["use_parallel"] is False and plan.tree["seed"] == 7
    assert plan.output == Path("out").absolute()
    vocab = str(folder / "vocab.txt")
    assert plan.tree["callbacks"][0]["vocab_file"] == vocab
    assert plan.tree["processor"]["tokenizer"]["vocab_file"] == vocab
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert plan.tree["model"]["model_config"]["vocab_size"] == len([n for n in lines if n])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.model_config.hiden_size=8", "did you mean model.model_config.hidden_size?"),
        ("model.model_config.preset=huge", "model.model_config.preset=huge is not known"),
        ("model.model_config.vocab_size=9", "leave model.model_config.vocab_size out"),
        ("model.model_config.max_len=16", "has rows of 64 tokens"),
        ("model.arch.type=LlamaForCausalLM", "expected MindplmCpmBee"),
        ("optimizer.betas=[0.9, 0.95]", "unknown key optimizer.betas; did you mean optimizer.beta"),
        ("lr_schedule.learning_rate=1e-3", "unknown key lr_schedule.learning_rate"),
        ("lr_schedule.lr=fast", "lr_schedule.lr: expected a finite number"),
        ("lr_schedule.lr=-1", "lr=-1"),
        ("runner_wrapper.type=MFTrainOneStepCell", "use MindplmTrainStep"),
        ("runner_wrapper.type=", "ours is MindplmTrainStep"),
        ("runner_config.batch_size=0", "runner_config.batch_size=0"),
        ("callbacks.0.save_evry=3", "did you mean callbacks.0.save_every?"),
        ("callbacks=5", "callbacks must be a list"),
        ("train_dataset.data_loader.type=MindDataset", "expected MindplmRows"),
        ("train_dataset.data_loader.steps=-1", "data_loader.steps=-1"),
        ("train_dataset=", "missing section train_dataset.data_loader"),
        ("use_legacy=False", "use_legacy must be True"),
        ("processor.tokenizer.vocab_file=other.txt", "two vocabularies"),
        ("seed=x", "seed=x"),
    ],
)
def test_mistakes_are_named(folder: Path, change: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_plan(CONFIG, [*usual(folder), change])
    assert told in str(caught.value)
    assert change.partition("=")[0] in str(caught.value) or CONFIG.name in str(caught.value)


def test_rows_of_another_vocabulary_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="was made with another vocabulary"):
        read_plan(CONFIG, usual(folder)[:1])
    with pytest.raises(DataError, match="no such folder of prepared rows"):
        read_plan(CONFIG, [f"train_dataset.data_loader.folder={folder / 'none'}"])


def test_unknown_sections_are_refused(folder: Path) -> None:
    plan = read_plan(CONFIG, [*usual(folder), "optimiser.type=AdamW"])
    with pytest.raises(ConfigError, match="unknown key optimiser; did you mean optimizer?"):
        check_known(plan.tree, [key for key in plan.tree if key != "optimiser"], plan.source)


def run(*words: str) -> tuple[int, str]:
    """The program in a process where MindFormers is not installed."""
    code = (
        "import runpy, sys; sys.modules['mindformers'] = None; sys.argv[0] = sys.argv[1]; "
        "sys.argv[1:] = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    tool = str(ROOT / "tools" / "run_mindformers.py")
    done = subprocess.run(
        [sys.executable, "-c", code, tool, *words], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stderr


def test_a_missing_package_names_the_extra(folder: Path) -> None:
    status, told = run("-c", str(CONFIG), *usual(folder))
    assert status == 2 and "install mindplm[mindformers]" in told
    assert "Traceback" not in told and len(told.strip().splitlines()) == 1
