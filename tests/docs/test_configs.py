"""Each shipped config is shown by the command line; the lists of dependencies agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from mindplm import cli, families

CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
BOUND = re.compile(r"([\w-]+)\s*([^#;\s]*)")


def beginning(path: Path, folder: Path) -> list[str]:
    """Overrides that let a run which begins with a checkpoint begin with one that is there."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "start" not in tree["train"]:
        return []
    head = {"family": tree["family"], "tokenizer": ["vocab.txt"]}
    config = {"hidden_size": 16, "num_heads": 2, "head_dim": 8, "ffn_size": 16, "num_layers": 1}
    (folder / "model.yaml").write_text(yaml.safe_dump({**head, "config": config}))
    (folder / "vocab.txt").write_text("a\nb\n")
    return [f"train.start={folder}"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_show(path: Path, capsys, tmp_path: Path) -> None:
    overrides = beginning(path, tmp_path)
    assert cli.main(["show", "-c", str(path), *overrides]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^# parameters: [\d,]+$", shown, re.MULTILINE)
    again = families.config_from_dict(yaml.safe_load(shown), "shown")
    assert again == families.load_config(path, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_task_files_of_a_config_are_there(path: Path) -> None:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = [*tree["data"].get("train", []), *(tree.get("finetune") or {}).get("tasks", [])]
    assert all((ROOT / item["task"]).is_file() for item in named if "task" in item)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_header_gives_the_command(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"-c {name}" in line for line in header)


def test_each_family_has_a_tiny_config() -> None:
    for name in families.FAMILIES:
        assert ROOT / "configs" / name / "tiny.yaml" in CONFIGS


def requirements(lines: list[str]) -> dict[str, str]:
    """Name to bounds."""
    found = [BOUND.match(line) for line in lines if line.strip() and not line.startswith("#")]
    return {match[1].lower(): match[2] for match in found if match}


def test_requirements_hold_what_the_package_needs() -> None:
    """Each with a reason, in bounds that the package allows too."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = requirements(lines)
    assert all("#" in line for line in lines if line.strip())
    text = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert section
    core = requirements(re.findall(r'"([^"]+)"', section[1]))
    optional = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    groups = re.findall(r"^(?!dev)\w+ = \[(.*)\]$", optional, re.MULTILINE)
    extra = requirements(re.findall(r'"([^"]+)"', " ".join(groups)))
    assert set(named) == set(core) | set(extra)
    for name, bound in core.items():
        if name == "mindspore":
            assert (named[name], bound) == ("==2.9.0", ">=2.9,<2.11")
        else:
            assert named[name] == bound, name


def test_the_texts_of_the_project_name_no_registry() -> None:
    hosts = re.compile(r"\b(?:pypi|npmjs|anaconda|tuna|aliyun|huaweicloud)\.[a-z.]+", re.IGNORECASE)
    files = [ROOT / "requirements.txt", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    for path in [*files, *(ROOT / "scripts").iterdir()]:
        assert not hosts.search(path.read_text(encoding="utf-8")), path
