"""The command line: what it says, and with which status it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mindplm
from mindplm import checkpoint, cli, cli_write, families
from mindplm.config import GenerateConfig
from mindplm.errors import DataError
from mindplm.models.cpm_bee.config import PRESETS
from mindplm.strict import to_plain
from mindplm.yaml_io import parse_yaml

TEXT = """\
family: cpm_bee
model: {preset: tiny}
data: {folder: FOLDER/data, train: [{path: "embedded:poems"}]}
train: {steps: 10, output: FOLDER/run, batch_size: 8, micro_batch_size: 2}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT.replace("FOLDER", str(tmp_path)))
    return str(path)


def run(capsys: Any, *argv: str) -> tuple[int, str, str]:
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_loads_no_package() -> None:
    code = (
        "import sys; sys.argv = ['mindplm', '--help']\n"
        "from mindplm.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'mindspore', 'numpy', 'yaml', 'jieba', 'tqdm'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("vocab", "preprocess", "pretrain", "evaluate", "generate", "show", "list"):
        assert verb in done.stdout


def test_show_prints_settings_that_can_be_read_again(
    capsys: Any, config: str, tmp_path: Path
) -> None:
    status, out, _ = run(capsys, "show", "-c", config, "optim.lr=1e-3", "--debug", "train.steps=7")
    assert status == 0
    assert "# accumulation: batch_size / micro_batch_size / devices = 8 / 2 / 1 = 4" in out
    assert "# tokens of the run: 4,096 x 7 steps = 28,672" in out
    again = tmp_path / "again.yaml"
    again.write_text(out)
    shown = families.load_config(again)
    assert shown == families.load_config(config, ["optim.lr=1e-3", "train.steps=7"])
    count = families.family("cpm_bee").part("num_parameters")(shown.model)
    assert f"# parameters: {count:,}\n" in out
    status, out, _ = run(capsys, "show", "-c", config, "--keys")
    assert status == 0
    assert "optim.lr=0.0001  # Peak learning rate" in out
    assert "One of: noam, cosine, linear, constant, exponential." in out


def test_list_has_every_preset(capsys: Any) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    rows = {line.split()[1]: line.split() for line in out.splitlines() if len(line.split()) == 6}
    assert set(PRESETS) <= set(rows)
    assert rows["10b"][-1] == "9,616,080,896"


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["show", "-c", "CONFIG", "optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["show", "-c", "CONFIG", "optim.lr"], "'optim.lr' is not of the form key=value"),
        (
            ["show", "-c", "CONFIG", "a=b", "--keys", "steps"],
            "'steps' is not of the form key=value",
        ),
        (["show", "-c", "CONFIG", "--kiys"], "unknown argument --kiys"),
        (["show", "-c", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["show", "-c", "/"], "is a folder"),
        (["show"], "the following arguments are required: -c/--config"),
        (["paint"], "invalid choice: 'paint'"),
        ([], "required: VERB"),
        (["list", "a=b"], "unknown argument a=b"),
        (["generate", "-m", "nowhere", "--input", "x"], "nowhere: no such folder"),
        (["generate", "-m", "nowhere", "--record", "{"], "--record: not JSON"),
        (["generate", "-m", "nowhere", "--file", "gone.jsonl"], "gone.jsonl: No such file"),
        (["generate", "-m", "nowhere"], "one of the arguments --input --record --file is required"),
        (["evaluate", "-m", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    capsys: Any, config: str, argv: list[str], wanted: str
) -> None:
    status, out, err = run(capsys, *(config if text == "CONFIG" else text for text in argv))
    assert status == 2
    assert out == ""
    assert err.startswith("mindplm: error: ")
    assert err.count("\n") == 1
    assert wanted in err


@pytest.mark.parametrize(
    ("error", "status", "wanted"),
    [
        (DataError("a.jsonl:3: no <ans>\n"), 2, "mindplm: error: a.jsonl:3: no <ans>\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/y"), 2, "/y: No space left on device"),
        (KeyboardInterrupt(), 130, "mindplm: interrupted\n"),
        (OSError(errno.EIO, "Input/output error"), 1, "internal error: OSError: Input/output"),
        (RuntimeError("deep\n----\ntrouble"), 1, "RuntimeError: deep ---- trouble (--debug shows"),
        (ValueError("x" * 500), 1, "x" * 300 + " ... (--debug"),
    ],
)
def test_errors_end_with_their_status(
    capsys: Any, monkeypatch: Any, error: BaseException, status: int, wanted: str
) -> None:
    def fail(args: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "_list", fail)
    fail.__name__ = "_list"
    got, out, err = run(capsys, "list")
    assert got == status
    assert wanted in err
    assert err.count("\n") == 1
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            cli.main(["list", "--debug"])
        capsys.readouterr()
        with pytest.raises(type(error)):
            cli.main(["--debug", "list"])


def test_a_closed_pipe_is_no_traceback() -> None:
    line = f"{sys.executable} -m mindplm show -c configs/cpm_bee/tiny.yaml --keys | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=cli_root())
    assert done.stderr == ""


def cli_root() -> Path:
    return Path(mindplm.__file__).resolve().parent.parent


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    checkpoint.write(
        folder,
        family="cpm_bee",
        model_config=to_plain(PRESETS["tiny"]),
        weights={"a": np.zeros(2, np.float32)},
        tokenizer_files={"vocab.txt": b"x\n"},
        run={"generate": {"beams": 2}},
    )
    return folder


def parsed(*argv: str) -> Any:
    return cli._parse(["generate", "--input", "x", *argv])


def test_settings_of_generation_come_from_the_checkpoint_then_file_then_flags(
    saved: Path, tmp_path: Path
) -> None:
    settings, running, _ = cli_write.settings_of(parsed("-m", str(saved)))
    assert (settings.beams, running.device) == (2, "auto")
    argv = ["-m", str(saved), "--beams", "4", "generate.max_new_tokens=9", "runtime.device=cpu"]
    settings, running, _ = cli_write.settings_of(parsed(*argv))
    assert (settings.beams, settings.max_new_tokens, running.device) == (4, 9, "cpu")
    path = tmp_path / "some.yaml"
    path.write_text("family: cpm_bee\ngenerate: {beams: 3}\n")
    settings, _, _ = cli_write.settings_of(parsed("-m", str(saved), "-c", str(path)))
    assert settings.beams == 3
    argv = ["--stop", "a, b", "--stop", '"\n终]', "--strict", "--min-p", "0.1"]
    settings, _, _ = cli_write.settings_of(parsed("-m", str(saved), *argv))
    assert (settings.stop, settings.strict, settings.min_p) == (("a, b", '"\n终]'), True, 0.1)
    assert not settings.per_blank


def test_wrong_settings_of_generation_are_told(capsys: Any, saved: Path) -> None:
    argv = ["generate", "-m", str(saved), "--input", "x"]
    for more, wanted in [
        (["--stop", ""], "generate.stop=('',), expected a list of texts"),
        (["--beams", "1", "--num-best", "2"], "generate.num_best=2, expected at most"),
        (["--beams", "many"], "override generate.beams=many: generate.beams: expected a whole"),
        (["optim.lr=1"], "generate takes keys of generate and runtime only, got optim"),
        (["--temperature", "1"], "it needs generate.beams=1, got 2"),
    ]:
        status, _, err = run(capsys, *argv, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert wanted in err


def test_prompt_files_are_json_lines_and_errors_have_their_place(
    capsys: Any, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('"text"\n\n{"input": "a", "<ans>": ""}\n', encoding="utf-8")
    assert cli_write.read_records(str(path)) == ["text", {"input": "a", "<ans>": ""}]
    for data, wanted in [
        (b'"a"\n{"b": \n', "in.jsonl:2: not JSON"),
        (b"\n\n", "in.jsonl is empty"),
        (b"\xff", "in.jsonl:1: not UTF-8 text"),
        (b"[" * 100_000, "in.jsonl:1: not JSON that can be used: nested too deeply"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=wanted):
            cli_write.read_records(str(path))


def test_results_are_printed_or_written(capsys: Any, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"input": "1 < 2,", "<ans>": "春<<"}]
    config = GenerateConfig()
    args = cli._parse(["generate", "--input", "1 < 2,", "-m", "x"])
    cli_write.print_results(records, args, config)
    assert capsys.readouterr().out == "1 < 2,春<\n"
    args = cli._parse(["generate", "-m", "x", "--record", "{}"])
    cli_write.print_results(records, args, config)
    assert json.loads(capsys.readouterr().out) == records[0]
    out = tmp_path / "out.jsonl"
    cli_write.print_results(records, parsed("-m", "x", "--out", str(out)), config)
    assert json.loads(out.read_text(encoding="utf-8")) == records[0]


def test_vocab_writes_a_vocabulary(capsys: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("春眠不觉晓 spring sleep\n" * 9, encoding="utf-8")
    out = tmp_path / "vocab.txt"
    argv = ["vocab", "--input", str(text), "--size", "300", "--out", str(out)]
    status, shown, err = run(capsys, *argv)
    assert status == 0, err
    assert f"output: {out}" in shown
    assert "春" in out.read_text(encoding="utf-8").split("\n")


def test_public_names_are_lazy_and_callable(config: str) -> None:
    assert "load" in dir(mindplm)
    assert parse_yaml("a: 1", "x") == {"a": "1"}
    assert mindplm.load_config(config).family == "cpm_bee"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mindplm.nonsense  # noqa: B018
    code = (
        "import mindplm, sys\n"
        "assert 'mindspore' not in sys.modules and 'numpy' not in sys.modules\n"
        "from mindplm.train import metrics\n"
        "assert callable(mindplm.train) and mindplm.train.metrics is metrics\n"
        "assert callable(mindplm.generate)\n"
    )
    environment = {**os.environ, "GLOG_v": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
