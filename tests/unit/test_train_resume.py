"""A run that was stopped, killed or damaged goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import tiny_run
from tiny_run import assert_same_state, finish, last_step, newest, numbers

from mindplm import cli
from mindplm.checkpoint import RunFolder

STEPS = 12
WAIT_S = 240.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    """Settings beside a finished run of twelve steps with checkpoints at 8 and 12."""
    config = tiny_run.write_run(tmp_path_factory.mktemp("run"), steps=STEPS)
    text = config.read_text().replace("log_every: 1", "log_every: 1, save_every: 4, eval_every: 6")
    text = text.replace("num_layers: 2,", "num_layers: 2, dropout: 0.1,")
    config.write_text(text)
    tiny_run.run("preprocess", config)
    tiny_run.run("pretrain", config)
    return config


def wait_for(process: Any, reached: Callable[[], bool]) -> bool:
    """Waits until a condition holds; False if the process ends before."""
    end = time.monotonic() + WAIT_S
    while not reached():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.002)
    return True


def stopped(
    config: Path, output: Path, step: int, number: int, *, saved: bool = False
) -> tuple[int, str]:
    """Starts a run and sends it a signal when it has reported a step, and perhaps saved one."""
    process = tiny_run.start("pretrain", config, f"train.output={output}")
    going = wait_for(
        process,
        lambda: last_step(output) >= step and (not saved or bool(RunFolder(output).steps())),
    )
    if going:
        process.send_signal(number)
    status, out = finish(process)
    assert going, out
    return status, out


def assert_same_runs(left: Path, right: Path) -> None:
    assert numbers(left) == numbers(right)
    assert_same_state(newest(left), newest(right))


def test_two_whole_runs_are_the_same(whole: Path, tmp_path: Path) -> None:
    tiny_run.run("pretrain", whole, f"train.output={tmp_path / 'again'}")
    assert_same_runs(whole.parent / "run", tmp_path / "again")
    steps = [record["step"] for record in numbers(tmp_path / "again") if "train/loss" in record]
    assert steps == list(range(1, STEPS + 1))


def test_a_killed_run_goes_on_bitwise(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    status, _ = stopped(whole, output, 6, signal.SIGKILL, saved=True)
    assert status == -signal.SIGKILL
    # Validation follows step 6, and the checkpoint of step 8 takes as long as that of step 4 did.
    assert newest(output).train().step == 4  # type: ignore[union-attr]
    out = tiny_run.run("pretrain", whole, f"train.output={output}")
    assert f"resume      step 4 of {output}/checkpoints/step-00000004" in out
    assert_same_runs(whole.parent / "run", output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_run_saves_and_goes_on_bitwise(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "stopped"
    status, out = stopped(whole, output, 2, number)
    assert status == 130, out
    # MindSpore turns SIGINT into SIGTERM while a graph runs.
    assert re.search("warning: (SIGINT|SIGTERM): the run stops after this step and saves;", out)
    assert out.endswith("mindplm: interrupted\n")
    state = newest(output).train()
    assert state is not None and 2 <= state.step == last_step(output) < STEPS
    tiny_run.run("pretrain", whole, f"train.output={output}")
    assert_same_runs(whole.parent / "run", output)


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = numbers(whole.parent / "run")
    out = tiny_run.run("pretrain", whole)
    assert f"checkpoint: {whole.parent}/run/checkpoints/step-{STEPS:08d}" in out
    assert numbers(whole.parent / "run") == before


# --- damage ---------------------------------------------------------------------------------------


def all_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_a_flipped_byte_is_named_and_the_checkpoint_before_it_goes_on_bitwise(
    whole: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "damaged"
    shutil.copytree(whole.parent / "run", output)
    folder, before = (RunFolder(output).path_of(step) for step in (12, 8))
    argv = ["pretrain", "-c", str(whole), f"train.output={output}"]
    rng = random.Random(1)
    found = list(all_files(folder))
    assert len(found) >= 7
    for path in found:
        kept = path.read_bytes()
        for _ in range(3):
            flip(path, rng)
            capsys.readouterr()
            assert cli.main(argv) == 2, path
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1, err
            assert f"{path} " in err and f"train.resume={before}" in err
            path.write_bytes(kept)
    flip(folder / "weights.safetensors", rng)
    advice = f"train.resume={before}"
    out = tiny_run.run("pretrain", whole, f"train.output={output}", advice)
    assert f"resume      step 8 of {before}" in out
    assert_same_runs(whole.parent / "run", output)
    tiny_run.run("pretrain", whole, f"train.output={output}")  # and the folder is in order again


def test_a_run_without_a_good_checkpoint_says_so(whole: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "damaged"
    shutil.copytree(whole.parent / "run", output)
    for step in (8, 12):
        flip(RunFolder(output).path_of(step) / "vocab.txt", random.Random(2))
    assert cli.main(["pretrain", "-c", str(whole), f"train.output={output}"]) == 2
    err = capsys.readouterr().err
    assert "step-00000012/vocab.txt is damaged" in err
    assert "there is no good checkpoint before it" in err


# --- ten kills ------------------------------------------------------------------------------------

KILLS = 10
MANY = 60


def half_written(run_folder: Path) -> list[str]:
    folder = run_folder / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if name.startswith(".")]


def saved_beyond(run_folder: Path, step: int) -> bool:
    return any(number > step for number in RunFolder(run_folder).steps())


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """A checkpoint each step, of 25 MB, so that a good part of the time goes into writing."""
    config = tiny_run.write_run(tmp_path, steps=MANY, hidden=256, ffn=1024)
    text = config.read_text().replace("log_every: 1", "log_every: 1, eval_every: 30")
    config.write_text(text.replace("batch_size: 4", "batch_size: 2"))
    tiny_run.run("preprocess", config)
    tiny_run.run("pretrain", config, f"train.output={tmp_path / 'whole'}")
    output = tmp_path / "killed"
    rng = random.Random(0)
    hits = done = 0
    for number in range(KILLS):
        process = tiny_run.start("pretrain", config, f"train.output={output}", "train.save_every=1")
        begun = wait_for(process, lambda step=done: saved_beyond(output, step))
        if number % 2:  # any moment; otherwise one inside a write
            time.sleep(rng.uniform(0, 0.3))
        else:
            begun = begun and wait_for(
                process, lambda: any("tmp-" in n for n in half_written(output))
            )
            time.sleep(rng.uniform(0, 0.03))
        process.kill()
        status, out = finish(process)
        assert begun and status == -signal.SIGKILL, out
        hits += bool(half_written(output))
        left = half_written(output)
        state = newest(output).train()
        assert state is not None and done < state.step < MANY
        print(f"kill {number + 1}: step {state.step}, half a checkpoint: {left}")
        assert not half_written(output), "newest() clears what a killed process left"
        done = state.step
    assert hits >= 3, "the kills shall hit writes"
    tiny_run.run("pretrain", config, f"train.output={output}", "train.save_every=1")
    assert_same_runs(tmp_path / "whole", output)
    assert len(RunFolder(output).steps()) == 2
