"""Two processes by msrun, started as a user starts them, against one process on the same data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from conftest import ROOT

from mindplm import cli, families, train
from mindplm.checkpoint import RunFolder, read

STEPS, LONG, KILL_AFTER = 20, 60, 30
COMMON = ("model.num_layers=1", "optim.schedule=constant", "train.keep_last=0")
START_S = 240.0
"""Patience with a machine that others use too."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("ranks"), steps=STEPS)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def one(config: Path, output: Path, *overrides: str) -> None:
    """Trains in this process."""
    settings = [f"train.output={output}", *COMMON, *overrides]
    train.pretrain(families.load_config(config, settings))


def launch(config: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    """Starts two processes with the script."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return subprocess.Popen(
        [
            *(str(ROOT / "scripts" / "pretrain_cpm_bee.sh"), str(config)),
            *(f"train.output={output}", *COMMON, *overrides),
        ],
        env={
            **os.environ,
            "NPUS": "2",
            "MASTER_PORT": str(port),
            "MINDPLM_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two(config: Path, output: Path, *overrides: str) -> str:
    status, out = tiny_run.finish(launch(config, output, *overrides), timeout=START_S)
    assert status == 0, out
    return out


def losses(run: Path, name: str = "train/loss") -> dict[int, float]:
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[name] for record in records if name in record}


def assert_near(left: dict[int, float], right: dict[int, float], rel: float) -> None:
    assert left.keys() == right.keys()
    for step, loss in left.items():
        assert right[step] == pytest.approx(loss, rel=rel), step


def assert_near_weights(left: Path, right: Path, step: int, atol: float) -> None:
    ours, theirs = (RunFolder(run).path_of(step) for run in (left, right))
    arrays = read(theirs).weights()
    for name, array in read(ours).weights().items():
        np.testing.assert_allclose(arrays[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def single(config: Path) -> Path:
    """A run of one process, long enough for the tests of resuming."""
    output = config.parent / "one"
    one(config, output, f"train.steps={LONG}", "train.save_every=10", "train.eval_every=20")
    return output


@pytest.fixture(scope="module")
def double(config: Path) -> Path:
    output = config.parent / "two"
    out = two(config, output, "train.save_every=10")
    assert "1 x 2 rows x 2 device(s)" in out
    assert (output / "logs" / "worker_0.log").is_file()
    assert (output / "logs" / "worker_1.log").is_file()
    return output


def test_two_processes_equal_one(single: Path, double: Path) -> None:
    first = {step: loss for step, loss in losses(single).items() if step <= STEPS}
    assert list(first) == list(range(1, STEPS + 1))
    assert_near(first, losses(double), rel=1e-6)
    valid = losses(double, "valid/loss")
    assert valid[STEPS] == pytest.approx(losses(single, "valid/loss")[STEPS], rel=1e-6)
    tasks = [name for name in tiny_run.numbers(double)[0] if name.startswith("task/")]
    assert tasks
    for name in tasks:
        other = {step: loss for step, loss in losses(single, name).items() if step <= STEPS}
        assert_near(other, losses(double, name), rel=1e-5)
    assert_near_weights(single, double, STEPS, atol=1e-5)


def test_a_run_of_two_goes_on_as_one(config: Path, double: Path, tmp_path: Path) -> None:
    begin = RunFolder(double).path_of(10)
    one(config, tmp_path / "run", f"train.resume={begin}")
    rest = {step: loss for step, loss in losses(double).items() if step > 10}
    assert_near(rest, losses(tmp_path / "run"), rel=1e-6)
    assert_near_weights(double, tmp_path / "run", STEPS, atol=1e-5)


def worker(run: Path, rank: int) -> int:
    """The process of a rank, found by what it runs and by its environment."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            environ = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = str(run).encode() in command and b"MS_ROLE=MS_WORKER" in environ
        if ours and b"RANK_ID=%d" % rank in environ:
            return int(path.name)
    raise AssertionError(f"there is no rank {rank}")


def reached(process: subprocess.Popen[str], output: Path, step: int) -> None:
    end = time.monotonic() + START_S
    while tiny_run.last_step(output) < step:
        assert process.poll() is None and time.monotonic() < end, tiny_run.finish(process)[1]
        time.sleep(0.01)


def test_a_request_to_stop_is_agreed_on_and_saves(
    config: Path, double: Path, tmp_path: Path
) -> None:
    output = tmp_path / "stopped"
    shutil.copytree(RunFolder(double).path_of(STEPS), RunFolder(output).path_of(STEPS))
    process = launch(config, output, "train.steps=100000", "train.eval_every=0")
    reached(process, output, STEPS + 3)
    process.send_signal(signal.SIGTERM)
    status, out = tiny_run.finish(process, timeout=60)
    assert status == 130, out
    for rank in (0, 1):
        log = (output / "logs" / f"worker_{rank}.log").read_text()
        assert "warning: SIGTERM: the run stops after this step and saves" in log
    state = tiny_run.newest(output).train()
    assert state is not None and state.step == tiny_run.last_step(output)


def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(
    config: Path, single: Path, tmp_path: Path
) -> None:
    """And so a run of one process goes on as two."""
    output = tmp_path / "killed"
    start = RunFolder(single).path_of(STEPS)
    shutil.copytree(start, RunFolder(output).path_of(STEPS))
    command = (f"train.steps={LONG}", "train.save_every=5", "train.eval_every=20")
    process = launch(config, output, *command)
    reached(process, output, KILL_AFTER)
    os.kill(worker(output, 1), signal.SIGKILL)
    killed_s = time.monotonic()
    status, out = tiny_run.finish(process, timeout=60)
    took_s = time.monotonic() - killed_s
    assert status == 1 and took_s < 60, out
    assert "mindplm: rank 1 on " in out and "was killed by SIGKILL; all are ended" in out
    log = (output / "logs" / "worker_0.log").read_text()
    assert "error: rank 1 is gone without a word" in log
    assert KILL_AFTER <= tiny_run.last_step(output) < LONG
    out = two(config, output, *command)
    assert "resume      step " in out
    rest = {step: loss for step, loss in losses(single).items() if step > STEPS}
    assert_near(rest, losses(output), rel=1e-4)
    valid = {step: loss for step, loss in losses(single, "valid/loss").items() if step > STEPS}
    assert_near(valid, losses(output, "valid/loss"), rel=1e-4)
