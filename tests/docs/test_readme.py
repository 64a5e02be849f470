"""README.md against the code: its commands run, its files and verbs exist, its Python compiles.

Each block of shell commands has a mark on the line above it: `<!-- test: run -->` for light ones,
which run here in order in one folder, `<!-- test: syntax -->` for those that install or train long,
of which files, verbs and settings are checked.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from mindplm import families

README = ROOT / "README.md"
SHELL = ("bash", "sh", "shell", "console")
MARKS = ("run", "syntax")
_MARK = re.compile(r"<!-- test: (\w+) -->")
_VERBS_WITH_SETTINGS = ("preprocess", "pretrain", "evaluate", "show")
_PLACES = re.compile(r"(?:configs|scripts|tools|tests|mindplm|docs)/[\w./-]+")


class Block(NamedTuple):
    """A fenced block: line of its fence, language, mark (or what is wrong with it), text."""

    line: int
    language: str
    mark: str
    text: str


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"\s*(`{3,})(\w*)", lines[number])
        number += 1
        if not fence:
            continue
        first = number
        while number < len(lines) and not lines[number].strip().startswith(fence[1]):
            number += 1
        assert number < len(lines), f"line {first}: the block does not end"
        above = lines[first - 2].strip() if first > 1 else ""
        mark = _MARK.fullmatch(above)
        text_of = "\n".join(lines[first:number]) + "\n"
        found.append(Block(first, fence[2], mark[1] if mark else "", text_of))
        number += 1
    return found


def shell_blocks(text: str) -> list[Block]:
    """The blocks of shell commands.

    Raises:
        AssertionError: One has no mark, or an unknown one.
    """
    found = [block for block in blocks(text) if block.language in SHELL]
    for block in found:
        assert block.mark in MARKS, (
            f"line {block.line}: a shell block needs `<!-- test: run -->` or "
            f"`<!-- test: syntax -->` on the line above it, found {block.mark!r}"
        )
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command, continued lines joined and comments left out."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    """Files of ours that it names exist; the verb is known; the settings can be read."""
    for word in words:
        if _PLACES.fullmatch(word):
            assert (ROOT / word).exists(), f"{word} does not exist"
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words[:1] == ["mindplm"]:
        check_verb(words[1:])
    elif words and re.fullmatch(r".*/(preprocess_dataset|pretrain\w*)\.sh", words[0]):
        # The checkpoint that a reader has downloaded is not here.
        here = [word for word in words[2:] if not word.startswith("train.start=")]
        families.load_config(ROOT / words[1], here)


def check_verb(words: list[str]) -> None:
    """The arguments of `mindplm` are accepted; settings named with -c can be read."""
    from mindplm.cli import _parse

    if words[:1] in (["--help"], ["--version"]) or "--help" in words:
        return
    try:
        args = _parse(words)
    except SystemExit as error:
        raise AssertionError(f"mindplm {' '.join(words)}: not accepted") from error
    if args.verb in _VERBS_WITH_SETTINGS and args.config:
        families.load_config(ROOT / args.config, args.overrides)


def run_shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands in a folder where `mindplm` and `python` are this interpreter's."""
    tools = folder / "bin"
    if not tools.exists():
        tools.mkdir()
        for name, arguments in (("mindplm", "-m mindplm "), ("python", ""), ("python3", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
            (tools / name).chmod(0o755)
        for name in ("configs", "scripts", "tools", "README.md"):
            (folder / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MINDPLM_PYTHON": sys.executable,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def check_syntax(text: str) -> None:
    """`bash -n` accepts it."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_shell_block_is_marked_and_correct() -> None:
    assert README.is_file(), "README.md is missing"
    found = shell_blocks(README.read_text(encoding="utf-8"))
    assert {block.mark for block in found} == set(MARKS), "expected blocks of both kinds"
    for block in found:
        check_syntax(block.text)
        for words in commands(block.text):
            check_command(words)


def test_the_two_commands_stand_first() -> None:
    first = commands(shell_blocks(README.read_text(encoding="utf-8"))[0].text)
    assert [words[-1] for words in first[-2:]] == ["scripts/quickstart.sh", "scripts/test.sh"]


def test_light_commands_run(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for block in shell_blocks(README.read_text(encoding="utf-8")):
        if block.mark == "run":
            done = run_shell(block.text, folder)
            assert done.returncode == 0, f"line {block.line}: {done.stdout}\n{done.stderr}"


def test_python_blocks_compile() -> None:
    for block in blocks(README.read_text(encoding="utf-8")):
        if block.language == "python":
            compile(block.text, f"README.md:{block.line}", "exec")


def test_files_that_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", README.read_text(encoding="utf-8")):
        assert "://" in target or (ROOT / target).exists(), f"{target} does not exist"


# The checks themselves, on texts that must not pass.


def test_a_block_without_mark_is_refused() -> None:
    good = "text\n\n<!-- test: run -->\n```bash\nmindplm list\n```\n"
    assert [(block.mark, block.text) for block in shell_blocks(good)] == [("run", "mindplm list\n")]
    for bad in (
        "```bash\nmindplm list\n```\n",
        "<!-- test: run -->\n\n```bash\nmindplm list\n```\n",
        "<!-- test: skip -->\n```bash\nmindplm list\n```\n",
        good + "```sh\nmindplm list\n```\n",
    ):
        with pytest.raises(AssertionError, match="needs `<!-- test: run -->`"):
            shell_blocks(bad)


@pytest.mark.parametrize(
    "command",
    [
        "scripts/nowhere.sh",
        "mindplm fly -c configs/cpm_bee/tiny.yaml",
        "mindplm pretrain -c configs/cpm_bee/nowhere.yaml",
        "mindplm pretrain -c configs/cpm_bee/tiny.yaml train.stepz=3",
        "NPUS=1 scripts/pretrain_cpm_bee.sh configs/cpm_bee/tiny.yaml train.steps=many",
        "mindplm generate -m runs/a --inptu text",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises((AssertionError, ValueError, OSError)):
        for words in commands(command + "   # a comment"):
            check_command(words)


def test_a_failing_command_is_found(tmp_path: Path) -> None:
    done = run_shell("mindplm list\nmindplm show -c nowhere.yaml\nmindplm list\n", tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
