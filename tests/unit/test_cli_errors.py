"""What a user can do wrong: one line that names value and place, status 2, no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import tiny_run
from conftest import ROOT
from tiny_run import write_lines

from mindplm import cli
from mindplm.checkpoint import RunFolder

GOOD = {"input": "a", "<ans>": "b"}


class Place:
    """A folder with corpus, vocabulary, settings, prepared rows and a run of two steps."""

    def __init__(self, folder: Path, config: Path):
        self.folder, self.config = folder, config
        self.run_folder = folder / "run"

    def __call__(self, verb: str, *overrides: str) -> list[str]:
        return [verb, "-c", str(self.config), *overrides]


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Place:
    folder = tmp_path_factory.mktemp("made")
    config = tiny_run.write_run(folder, steps=2)
    place = Place(folder, config)
    assert cli.main(place("preprocess")) == 0
    assert cli.main(place("pretrain", "train.save_every=1")) == 0
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """Another one, with the same run, that a test may spoil."""
    config = tiny_run.write_run(tmp_path / "copy", steps=2)
    shutil.copytree(made.run_folder, config.parent / "run")
    copy = Place(config.parent, config)
    assert cli.main(copy("preprocess")) == 0
    return copy


def refused(capsys: Any, argv: list[str], *wanted: str) -> str:
    """Runs a command that must fail; checks status and form of what it says, and returns that."""
    capsys.readouterr()
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err and "internal error" not in err, err
    assert err.count("mindplm: error: ") == 1 and err.endswith("\n")
    line = err[err.index("mindplm: error: ") :]
    assert line.count("\n") == 1, line
    assert err.endswith(line)
    for text in wanted:
        assert text in line, line
    return line


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["preprocess", "pretrain"])
def test_settings(capsys: Any, place: Place, verb: str) -> None:
    def check(override: str, *wanted: str) -> None:
        refused(capsys, place(verb, override), *wanted)

    check("train.stepz=3", "override train.stepz=3: unknown key train.stepz", "train.steps?")
    check("train.steps=many", "train.steps=many", "expected a whole number, got 'many'")
    check("train.steps=0", "train.steps=0, expected >= 1")
    check("data.train=[]", "data.train is empty")
    check("data.train=poems", "data.train: expected a list")
    check("tokenizer.path=gone.txt", "gone.txt: no such vocabulary file (tokenizer.path)")
    text = place.config.read_text()
    place.config.write_text(text + "optimm: {lr: 1}\n")
    refused(capsys, place(verb), f"{place.config}:", "optimm", "optim?")
    place.config.write_text(text.replace("lr: 1e-2", "lr: fast"))
    refused(capsys, place(verb), str(place.config), "optim.lr", "'fast'")
    place.config.write_text(text + "a: [\n")
    refused(capsys, place(verb), str(place.config))
    place.config.write_text("")
    refused(capsys, place(verb), str(place.config), "empty")
    place.config.unlink()
    refused(capsys, place(verb), f"{place.config}: no such file")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("model.vocab_size=100", "model.vocab_size=100, but "),
        ("runtime.dtype=bfloat16", "runtime.dtype=bfloat16 does not run on CPU"),
        ("runtime.device=gpu", "runtime.device=gpu cannot be used"),
        ("runtime.threads=9999", "runtime.threads=9999, expected at most"),
        ("parallel.data=2", "parallel.data=2, but the number of processes is 1"),
        ("model.ffn_size=64", "model.ffn_size was 48, is 64"),
        ("train.resume=never", "has checkpoints up to step 2 and train.resume=never"),
        ("train.resume=gone", "train.resume=gone: no such folder"),
    ],
)
def test_settings_that_training_cannot_use(
    capsys: Any, made: Place, override: str, wanted: str
) -> None:
    refused(capsys, made("pretrain", override), wanted)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    capsys: Any, made: Place, tmp_path: Path
) -> None:
    wild = ["optim.lr=1e30", "optim.clip_norm=0", "optim.warmup_steps=0", "train.save_every=1"]
    output = f"train.output={tmp_path / 'run'}"
    refused(capsys, made("pretrain", *wild, output, "train.steps=5"), "step 2 has loss", "optim.lr")
    assert RunFolder(tmp_path / "run").steps() == [1]


# --- texts and records ----------------------------------------------------------------------------

# What a line holds, why it is counted, and what is said of it beside file and line.
BAD_LINES: list[tuple[str, str, str]] = [
    ('{"input": "a", "<ans>": ', "broken JSON", "broken JSON at column 25"),
    ('{"input": "a"}', "no <ans>", "record without <ans> (keys: input)"),
    ('{"input": "1 < 2", "<ans>": "b"}', "invalid text", "that '<' opens at position 2: '1 < 2'"),
    ('{"input": "<moon>", "<ans>": "b"}', "unknown tag", "record.input: unknown tag <moon>"),
    ('{"input": ["a"], "<ans>": "b"}', "wrong type", "record.input is a list"),
    ('{"input": "%s", "<ans>": "b"}' % ("明" * 99), "too long", "tokens, seq_len is 64"),
    ('["a"]', "wrong type", "a value of type list; expected an object"),
    ("", "empty line", "the line is empty"),
]


def records(place: Place, lines: list[str]) -> list[str]:
    path = place.folder / "records.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    source = f'data.train=[{{path: "{path}", tasks: {{record: 1}}}}]'
    return place("preprocess", source, "data.lenient=false")


@pytest.mark.parametrize(("line", "reason", "wanted"), BAD_LINES, ids=[b[1] for b in BAD_LINES])
def test_a_file_of_which_nothing_can_be_used(
    capsys: Any, place: Place, line: str, reason: str, wanted: str
) -> None:
    refused(capsys, records(place, [line]), f"{place.folder}/records.jsonl:1: ", wanted)


def test_what_cannot_be_used_is_counted_with_its_place_where_work_can_go_on(
    capsys: Any, place: Place
) -> None:
    lines = [json.dumps(GOOD)] * 10 + [line for line, _, _ in BAD_LINES]
    assert cli.main(records(place, lines)) == 0
    err = capsys.readouterr().err
    report = json.loads((place.folder / "rows" / "train" / "report.json").read_text())
    assert report["num_invalid"] == len(BAD_LINES) and report["instances"] == 20
    for number, (_, reason, wanted) in enumerate(BAD_LINES, 11):
        entry = report["invalid"][reason]
        (first,) = (text for text in entry["first"] if f"records.jsonl:{number}: " in text)
        assert wanted in first
        assert first in err and f"{entry['count']} not used: {reason}" in err


def test_files_that_are_not_there_or_empty(capsys: Any, place: Place) -> None:
    path = place.folder / "train.jsonl"
    path.write_text("")
    refused(capsys, place("preprocess"), f"{path}: the file is empty")
    path.unlink()
    refused(capsys, place("preprocess", "data.folder=" + str(place.folder / "new")),
            f"{path}: no such file")  # fmt: skip
    refused(capsys, place("preprocess", f'data.train=[{{path: "{place.folder}"}}]'), "is a folder")
    pattern = f"{place.folder}/*.jsonx"
    refused(capsys, place("preprocess", f'data.train=[{{path: "{pattern}"}}]'),
            f"{pattern}: no file matches")  # fmt: skip
    refused(capsys, place("preprocess", 'data.train=[{path: "embedded:prose"}]'), "prose", "poems")


def test_an_empty_file_among_others_is_counted(capsys: Any, place: Place) -> None:
    write_lines(place.folder / "more.jsonl", [])
    sources = f'[{{path: "{place.folder}/train.jsonl"}}, {{path: "{place.folder}/more.jsonl"}}]'
    assert cli.main(place("preprocess", f"data.train={sources}")) == 0
    report = json.loads((place.folder / "rows" / "train" / "report.json").read_text())
    (first,) = report["invalid"]["empty file"]["first"]
    assert first == f"{place.folder}/more.jsonl: the file is empty"
    assert first in capsys.readouterr().err


def test_an_unknown_task(capsys: Any, place: Place) -> None:
    source = f'data.train=[{{path: "{place.folder}/train.jsonl", tasks: {{sing: 1}}}}]'
    refused(capsys, place("preprocess", source), "task 'sing' is not known", "train.jsonl")


@pytest.mark.parametrize("gone", ["<ans>", "</n>", "<unk>"])
def test_a_vocabulary_without_special_tokens(capsys: Any, place: Place, gone: str) -> None:
    path = place.folder / "vocab.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines.remove(gone)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused(capsys, place("preprocess"), str(path), gone)


def test_a_vocabulary_that_is_none(capsys: Any, place: Place) -> None:
    path = place.folder / "vocab.txt"
    path.write_bytes(b"<pad>\n\xff\n")
    refused(capsys, place("preprocess"), f"{path}:2: not UTF-8")
    path.write_text("")
    refused(capsys, place("preprocess"), str(path))


# --- prepared rows --------------------------------------------------------------------------------


def test_rows_that_are_not_there(capsys: Any, place: Place) -> None:
    shutil.rmtree(place.folder / "rows")
    refused(capsys, place("pretrain"), f"{place.folder}/rows/", "run preprocess first")


def change_vocabulary(place: Place) -> None:
    path = place.folder / "vocab.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[-2:] = lines[:-3:-1]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_source(place: Place) -> None:
    write_lines(place.folder / "train.jsonl", tiny_run.texts(41))


STALE: list[tuple[Callable[[Place], None], str, str]] = [
    (lambda place: None, "data.seq_len=48", "seq_len was 64, is 48"),
    (lambda place: None, "runtime.seed=7", "seed was 1234, is 7"),
    (change_vocabulary, "train.log_every=1", "another vocabulary"),
    (change_source, "train.log_every=1", "the files of source train changed"),
]


@pytest.mark.parametrize(("change", "override", "wanted"), STALE, ids=[s[2] for s in STALE])
def test_stale_rows_are_refused_and_can_be_made_anew(
    capsys: Any, place: Place, change: Callable[[Place], None], override: str, wanted: str
) -> None:
    change(place)
    output = f"train.output={place.folder / 'new'}"
    argv = place("pretrain", override, output)
    refused(capsys, argv, f"{place.folder}/rows/", "is stale: ", wanted, "prepare the data again")
    assert cli.main(place("preprocess", override)) == 0
    refused(capsys, [*argv, "train.resume=gone"], "gone")  # nothing else is wrong


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(len(data)).randrange(len(data))] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train.mindrecord0", "train.mindrecord0.db", "index.npz"])
def test_damaged_rows(capsys: Any, place: Place, name: str) -> None:
    path = place.folder / "rows" / "train" / name
    output = f"train.output={place.folder / 'new'}"
    flip(path)
    refused(capsys, place("pretrain", output), f"{path} is damaged", "prepare the data again")
    path.unlink()
    refused(capsys, place("pretrain", output), f"{path} is missing", "prepare the data again")
    assert cli.main(place("preprocess")) == 0  # notices it and makes them anew
    assert path.is_file()


# --- folders that cannot be written ---------------------------------------------------------------


def test_outputs_that_are_files(capsys: Any, place: Place) -> None:
    path = place.folder / "vocab.txt"
    refused(capsys, place("pretrain", f"train.output={path}"), f"train.output={path} is a file")
    refused(capsys, place("pretrain", f"train.output={path}/run"), f"{path}/run: Not a directory")
    refused(capsys, place("preprocess", f"data.folder={path}"), f"{path} is a file")
    (place.folder / "mine" / "train").mkdir(parents=True)
    (place.folder / "mine" / "train" / "notes.txt").write_text("mine")
    refused(capsys, place("preprocess", f"data.folder={place.folder}/mine"),
            f"{place.folder}/mine/train: exists and holds no prepared rows")  # fmt: skip
    assert (place.folder / "mine" / "train" / "notes.txt").read_text() == "mine"


def test_read_only_folders(capsys: Any, place: Place) -> None:
    locked = place.folder / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    refused(capsys, place("preprocess", f"data.folder={locked}"), str(locked))
    refused(capsys, place("pretrain", f"train.output={locked}/run"), str(locked))
    refused(capsys, place("pretrain", f"train.output={locked}"), str(locked))


def test_two_runs_in_one_folder(capsys: Any, made: Place) -> None:
    with RunFolder(made.run_folder).only_process():
        refused(capsys, made("pretrain"), str(made.run_folder), "is in use by another process")


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own with little room; the test is skipped where it cannot be had."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no command mount")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_no_space_for_rows(capsys: Any, monkeypatch: Any, place: Place, foreseen: bool) -> None:
    """Told before anything is written, or when writing fails."""
    if not foreseen:
        monkeypatch.setattr("mindplm.data.row_writer.MIN_FREE_BYTES", 0)
    with small_disk(place.folder / "disk", "1m") as disk:
        refused(capsys, place("preprocess", f"data.folder={disk}"), str(disk), "no space left")
        assert os.listdir(disk) == [] if foreseen else [".mindplm-work-train"]


def test_no_space_for_checkpoints(capsys: Any, place: Place) -> None:
    """The first checkpoints fit; the one that does not is not there, those before it are good."""
    size = sum(f.stat().st_size for f in RunFolder(place.run_folder).path_of(1).rglob("*"))
    with small_disk(place.folder / "disk", f"{size * 5 // 2 + (256 << 10)}") as disk:
        more = ["train.save_every=1", "train.keep_last=0", "train.steps=9"]
        argv = place("pretrain", f"train.output={disk / 'run'}", *more)
        refused(capsys, argv, f"{disk}/run", "no space left", "is untouched")
        found = RunFolder(disk / "run").newest()
        assert found is not None and found.train() is not None
        assert not [n for n in os.listdir(disk / "run" / "checkpoints") if n.startswith(".")]


# --- writing and measuring ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["evaluate"], ["generate", "--input", "x"]])
def test_checkpoints_that_are_not_there_or_damaged(
    capsys: Any, place: Place, verb: list[str]
) -> None:
    refused(capsys, [*verb, "-m", "gone"], "gone: no such folder")
    empty = place.folder / "empty"
    empty.mkdir()
    refused(capsys, [*verb, "-m", str(empty)], f"{empty}/manifest.json is missing")
    folder = RunFolder(place.run_folder).path_of(2)
    flip(folder / "weights.safetensors")
    damaged = f"{folder}/weights.safetensors is damaged"
    refused(capsys, [*verb, "-m", str(folder)], damaged)
    refused(capsys, [*verb, "-m", str(place.run_folder)], damaged, "step-00000001")


def test_prompts(capsys: Any, made: Place) -> None:
    generate = ["generate", "-m", str(made.run_folder)]

    def check(record: Any, *wanted: str) -> None:
        refused(capsys, [*generate, "--record", json.dumps(record)], "prompt 1", *wanted)

    check({"input": "a"}, 'the record has no key "<ans>"')
    check({"input": 3, "<ans>": ""}, "record.input is a number")
    check({"input": "a", "<ans>": {}}, "record.<ans> holds no text to write")
    generate.append("--strict")
    check({"input": "1 < 2", "<ans>": ""}, "record.input", "that '<' opens at position 2: '1 < 2'")
    check({"input": "<moon>", "<ans>": ""}, "record.input: unknown tag <moon>")
    refused(capsys, [*generate, "--input", "z9" * 3000], "prompt 1 has ", "2048", "2047")


def test_outputs_of_writing(capsys: Any, made: Place, monkeypatch: Any) -> None:
    """A bad place for the output is told before the model is read."""
    monkeypatch.setattr("mindplm.generate.load", None)
    argv = ["generate", "-m", str(made.run_folder), "--max-new-tokens", "1"]
    lines = made.folder / "one.jsonl"
    write_lines(lines, [{"input": "a", "<ans>": ""}])
    path = made.folder / "no" / "such" / "out.jsonl"
    for what in (["--input", "a"], ["--file", str(lines)]):
        refused(capsys, [*argv, *what, "--out", str(path)], f"{path}: there is no folder")
        refused(capsys, [*argv, *what, "--out", str(made.folder)], f"{made.folder} is a folder")
    assert not path.parent.exists()


@pytest.mark.parametrize("size", ["0", "-1", "x", "1.5"])
def test_batch_sizes(capsys: Any, size: str) -> None:
    for argv in (["generate", "--input", "a"], ["score", "--record", "{}"]):
        refused(capsys, [*argv, "-m", "x", "--batch-size", size], "--batch-size", f"'{size}'")


def test_records_that_cannot_be_used_do_not_stop_the_others(capsys: Any, made: Place) -> None:
    source, out = made.folder / "some.jsonl", made.folder / "some-out.jsonl"
    good = {"input": "a", "<ans>": "b", "options": {"<option_0>": "x", "<option_1>": "y"}}
    lines = [json.dumps(value) for value in (good, {"input": 3, "<ans>": "b"}, "text", good)]
    source.write_text("\n".join([*lines, "", '{"input": ']))
    model = ["-m", str(made.run_folder), "--file", str(source)]
    generate = ["generate", *model, "--max-new-tokens", "2"]

    def run(argv: list[str]) -> tuple[list[Any], str]:
        capsys.readouterr()
        assert cli.main(argv) == 2
        text, error = capsys.readouterr()
        assert "Traceback" not in error
        return [json.loads(line) for line in text.splitlines()], error.splitlines()[-1]

    shown, error = run(generate)
    assert error == (
        "mindplm: error: 2 of 5 records could not be used; see their errors in their places"
    )
    assert ["error" in line for line in shown] == [False, True, False, False, True]
    assert shown[1]["error"].startswith(f"{source}:2: record.input is a number")
    assert shown[4]["error"].startswith(f"{source}:6: not JSON")
    assert shown[0] == shown[3]
    error = run([*generate, "--out", str(out)])[1]
    assert f"2 of 5 records could not be used; see their errors in {out}" in error
    assert [json.loads(line) for line in out.read_text().splitlines()] == shown
    source.write_text("\n".join([*lines, "", '{"input": ']))
    for more, key in (([], "nats"), (["--choose"], "best")):
        shown, error = run(["score", *model, *more])
        assert "3 of 5 records could not be used" in error
        kinds = ["error" if "error" in line else key if key in line else "?" for line in shown]
        assert kinds == [key, "error", "error", key, "error"]
        for place, line in zip((2, 3, 6), (shown[i] for i in (1, 2, 4))):
            assert line["error"].startswith(f"{source}:{place}: ")
    source.write_text(lines[0])
    assert cli.main(generate) == 0


def test_a_graph_that_cannot_be_compiled_leaves_nothing_behind(tmp_path: Path) -> None:
    """The framework writes what it could not compile; not into the user's folder."""
    code = """
import mindplm.runtime
from mindplm.config import RuntimeConfig
mindplm.runtime.setup(RuntimeConfig(device="cpu"))
import mindspore as ms

class Bad(ms.nn.Cell):
    def construct(self, x):
        return x + [y for y in undefined_name]

try:
    Bad()(ms.Tensor(1.0))
except Exception as error:
    print("failed:", type(error).__name__)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=env, capture_output=True, text=True
    )
    assert "failed:" in done.stdout, done.stderr
    assert not list(here.iterdir())
