"""The scripts in scripts/: the quickstart at a small scale, usage errors, what they install."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
SMALL = (
    "train.steps=2",
    "train.batch_size=2",
    "train.micro_batch_size=0",
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.head_dim=8",
    "model.ffn_size=32",
    "data.repeat=1",
    "data.train.0.path=corpus.jsonl",
    "data.train.1.path=corpus.jsonl",
    "data.train.2.path=corpus.jsonl",
    "data.valid.0.path=corpus.jsonl",
    "generate.max_new_tokens=8",
)
CORPUS = [
    "床前看月光，疑是地上霜。\n举头望山月，低头思故乡。",
    "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。",
    "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。",
]


def run(folder: Path, *words: str, cwd: Path | None = None, **variables: str):
    """Runs one of the scripts in a copy of the project with this interpreter."""
    environment = {
        **{name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"},
        "PYTHONPATH": str(ROOT),
        "MINDPLM_PYTHON": sys.executable,
        **variables,
    }
    return subprocess.run(
        [str(folder / "scripts" / words[0]), *words[1:]],
        cwd=cwd or folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project in a folder with a space in its name, with a small corpus."""
    folder = tmp_path_factory.mktemp("scripts") / "a copy"
    folder.mkdir()
    for name in ("scripts", "configs", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    lines = [json.dumps({"text": text}) + "\n" for text in CORPUS * 4]
    (folder / "corpus.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_script_is_well_written(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    text = path.read_text()
    if path.name == "common.sh":
        return
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.slow
def test_quickstart_twice(copy: Path, tmp_path: Path) -> None:
    """All of its steps with a small model; the second time nothing is prepared or trained again."""
    first = run(copy, "quickstart.sh", *SMALL, cwd=tmp_path, POEMS="2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"\d of 2 poems are well-formed", first.stdout)
    places = dict(
        line.split(None, 1)
        for line in first.stdout.splitlines()
        if line.startswith(("checkpoint ", "metrics ", "TensorBoard "))
    )
    assert len(places) == 3
    assert (copy / "runs/cpm_bee_tiny/loss.png").is_file()
    for place in places.values():
        assert (copy / place).exists(), place
    metrics = (copy / places["metrics"]).read_text()
    again = run(copy, "quickstart.sh", *SMALL, cwd=tmp_path, POEMS="2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "up to date" in again.stdout + again.stderr
    assert (copy / places["metrics"]).read_text() == metrics, "it was trained again"
    assert _answers(first.stdout) == _answers(again.stdout)


def _answers(output: str) -> str:
    return output.partition("== 4/5")[2]


def test_preprocess_uses_the_callers_folder(copy: Path, tmp_path: Path) -> None:
    shutil.copyfile(copy / "corpus.jsonl", tmp_path / "corpus.jsonl")
    config = str(copy / "configs/cpm_bee/tiny.yaml")
    done = run(copy, "preprocess_dataset.sh", config, *SMALL, "data.folder=my rows", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my rows" / "train" / "report.json").is_file()


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["preprocess_dataset.sh"], {}, "usage: scripts/preprocess_dataset.sh CONFIG"),
        (["pretrain_cpm_bee.sh"], {}, "usage: [NPUS=1] scripts/pretrain.sh CONFIG"),
        (["pretrain_cpm_bee.sh", "x.yaml"], {"NODES": "2"}, "NODES=2 needs MASTER_ADDR"),
        (["pretrain_cpm_bee.sh", "x.yaml"], {"NPUS": "all"}, "NPUS=all, expected a whole number"),
        (["pretrain_cpm_bee.sh", "x.yaml"], {}, "x.yaml"),
        (["finetune_cpm_bee.sh"], {}, "usage: [NPUS=1] scripts/finetune_cpm_bee.sh CONFIG"),
        (["test.sh"], {"MINDPLM_PYTHON": "nopython"}, "MINDPLM_PYTHON=nopython: not found"),
        (["quickstart.sh", "train.stepz=3"], {}, "unknown key train.stepz"),
    ],
)
def test_mistakes_are_told_in_a_line(copy: Path, words, variables, message) -> None:
    done = run(copy, *words, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def _fake_python(path: Path, version: str, log: Path) -> None:
    """An interpreter of another version that only notes what it is asked to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$@" >> "{log}"\n'
        'case "$1 $2" in\n'
        f'  "-c import sys; sys.exit"*) exec "{sys.executable}" -c '
        f'"import sys; sys.version_info = {version}; $(printf %s "${{2#import sys; }}")" ;;\n'
        f'  "-c "*) shift; exec "{sys.executable}" -c "import sys; sys.prefix = '
        f'\'{path.parent.parent}\'\n$1" "${{@:2}}" ;;\n'
        "esac\n"
    )
    path.chmod(0o755)


def test_an_active_environment_gets_each_state_of_the_project_once(copy, tmp_path) -> None:
    log, venv = tmp_path / "log", tmp_path / "my env"
    _fake_python(venv / "bin" / "python", "(3, 11)", log)

    def installs(script: str) -> list[str]:
        log.write_text("")
        done = run(copy, script, "x.yaml", MINDPLM_PYTHON="", VIRTUAL_ENV=str(venv))
        assert done.returncode == 0, done.stderr
        return [line for line in log.read_text().splitlines() if " install " in line]

    assert installs("preprocess_dataset.sh") == [f"-m pip install -q -e {copy}"]
    assert installs("preprocess_dataset.sh") == []
    assert installs("test.sh") == [f"-m pip install -q -e {copy}[dev]"]
    assert installs("test.sh") == installs("preprocess_dataset.sh") == []
    with (copy / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert installs("preprocess_dataset.sh") == [f"-m pip install -q -e {copy}"]


def test_an_active_environment_of_another_version_is_refused(copy, tmp_path) -> None:
    venv = tmp_path / "old"
    _fake_python(venv / "bin" / "python", "(3, 13)", tmp_path / "log")
    done = run(copy, "quickstart.sh", MINDPLM_PYTHON="", VIRTUAL_ENV=str(venv))
    assert done.returncode == 2
    assert "does not have Python 3.9 to 3.12" in done.stderr
