"""What is read and checked before the processes of a run are started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from conftest import ROOT

from mindplm import cli, launch, launch_job
from mindplm.errors import ConfigError
from mindplm.launch_job import Job, Place


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("launch"), steps=4)
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def test_the_place_is_read_from_the_environment() -> None:
    assert launch.place_of({}) == Place(1, 1, 0, "127.0.0.1", 8118, 600)
    environ = {"NPUS": "8", "NODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "10.0.0.1"}
    place = launch.place_of({**environ, "MASTER_PORT": "9000"})
    assert (place.world, place.node, place.address, place.port) == (32, 3, "10.0.0.1", 9000)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NPUS": "all"}, "NPUS=all, expected a whole number from 1 on"),
        ({"NPUS": "0"}, "NPUS=0, expected a whole number from 1 on"),
        ({"NODES": "2"}, "NODES=2 needs MASTER_ADDR"),
        ({"NODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2, expected 0 to NODES - 1 = 1"),
        ({"MASTER_PORT": "80"}, "MASTER_PORT=80, expected a whole number from 1024 on"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000, expected 1024 to 65535"),
    ],
)
def test_an_environment_without_sense_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        launch.place_of(environ)
    assert message in str(error.value)


def test_devices_are_data_parallel_unless_the_layout_says_otherwise(config: Path) -> None:
    found, overrides = launch.load(str(config), ["train.steps=5"], Place(2, 2))
    assert found.parallel.data == 4 and found.train.steps == 5
    assert overrides == ["train.steps=5", "parallel.data=4"]
    with pytest.raises(ConfigError, match="the layout needs 2 devices, NPUS x NODES = 4 x 1 = 4"):
        launch.load(str(config), ["parallel.data=2"], Place(4))
    with pytest.raises(ConfigError, match="train.batch_size=4 is not a multiple"):
        launch.load(str(config), [], Place(3))


def status(capsys: Any, config: Path, *overrides: str) -> tuple[int, str]:
    """Of the command line with two processes, for what is refused before they start."""
    before = os.environ.get("NPUS")
    os.environ["NPUS"] = "2"
    try:
        found = launch.main(["-c", str(config), *overrides])
    finally:
        os.environ.pop("NPUS")
        if before is not None:
            os.environ["NPUS"] = before
    return found, capsys.readouterr().err


def test_what_would_fail_on_one_process_is_found_before(config: Path, capsys: Any) -> None:
    for override, message in [
        ("data.seq_len=32", "is stale: seq_len was 64, is 32"),
        ("data.folder=nowhere", "nowhere"),
        (f"train.output={config}/run", "run.yaml is no folder that can be written"),
        ("train.resume=nowhere", "train.resume=nowhere: no such folder on"),
        ("optim.lr=0", "optim.lr=0.0, expected > 0"),
    ]:
        found, err = status(capsys, config, override)
        assert found == 2 and err.count("\n") == 1, err
        assert message in err and err.startswith("mindplm: error: ")


def test_a_full_disk_is_found_before(config: Path, monkeypatch: Any, capsys: Any) -> None:
    usage = launch.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: usage)
    found, err = status(capsys, config)
    assert found == 2
    assert "1,000 bytes are free" in err and "needed for 3 more checkpoints of" in err


def test_a_port_in_use_is_found_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} on .*: Address already in use"):
            launch.check_port("127.0.0.1", port)
    launch.check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="or an address of this machine"):
        launch.check_port("192.0.2.1", port)


@pytest.mark.parametrize(
    ("size", "layout"),
    [("1b", (32, 1, 4)), ("2b", (32, 1, 4)), ("5b", (8, 4, 32)), ("10b", (4, 8, 64))],
)
def test_shipped_settings_fit_their_machines(size: str, layout: tuple[int, ...]) -> None:
    path = ROOT / "configs" / "cpm_bee" / f"pretrain_{size}.yaml"
    config, words = launch.load(str(path), [], Place(8, 4))
    assert (config.parallel.data, config.parallel.model, config.accumulation) == layout
    assert words == [f"parallel.data={layout[0]}"]


def test_layouts_that_do_not_fit_are_refused() -> None:
    path = str(ROOT / "configs" / "cpm_bee" / "pretrain_10b.yaml")
    for overrides, place, message in [
        (["runtime.device=cpu"], Place(8, 4), "parallel.model=8 runs on Ascend only, this is CPU"),
        ([], Place(6), "6 devices .NPUS x NODES. cannot be cut into parts of .* = 8"),
        (["parallel.data=2"], Place(8, 4), "the layout needs 16 devices, NPUS x NODES = 8 x 4"),
        (["parallel.model=3"], Place(3), "parallel.model=3 does not divide model.num_heads=32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            launch.load(path, overrides, place)


# --- processes, with a stand-in for msrun ---------------------------------------------------------

# Starts workers as msrun does and ends the others when one fails; takes what each worker runs.
MSRUN = """
import os, subprocess, sys, time
workers = []
for rank, code in enumerate(sys.argv[2:]):
    env = {**os.environ, "MS_ROLE": "MS_WORKER", "RANK_ID": str(rank)}
    log = open(f"{sys.argv[1]}/worker_{rank}.log", "w")
    command = [sys.executable, "-c", "# mindplm\\n" + code]
    workers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
scheduler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("Start worker process with rank id:0", flush=True)
print("a line of rank 0", flush=True)
while any(worker.poll() != 0 for worker in workers):
    for worker in workers:
        if worker.poll():
            print(f"[ERROR] ME(1:2): Worker process {worker.pid} exit with exception. "
                  f"Error code: {worker.poll()}.", flush=True)
            time.sleep(60)
    time.sleep(0.05)
scheduler.kill()
"""
SLEEP = "import time; time.sleep(60)"
# Ends by itself with the status of a run that was interrupted.
STOPS = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *a: (time.sleep(0.3), print('saved'), sys.exit(130)))\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


def job(tmp_path: Path, monkeypatch: Any, *workers: str) -> Job:
    def command(place: Place, log_dir: Path, arguments: Any) -> list[str]:
        return [sys.executable, "-c", MSRUN, str(log_dir), *workers]

    monkeypatch.setattr(launch_job, "command", command)
    return Job(Place(len(workers)), tmp_path / "logs", [])


def assert_all_ended(made: Job) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not made._alive() and not any(map(launch_job._command_line, made._helpers)):
            break
        time.sleep(0.05)
    assert not made._alive() and made._msrun.poll() is not None
    assert made._helpers and not any(map(launch_job._command_line, made._helpers))


def test_a_rank_that_dies_is_named_with_its_last_lines(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    dies = "import os, time; print('the last words', flush=True); time.sleep(2); "
    made = job(tmp_path, monkeypatch, SLEEP, dies + "os.kill(os.getpid(), 9)")
    assert made.watch([]) == 1
    err = capfd.readouterr().err
    assert "mindplm: rank 1 on " in err and "was killed by SIGKILL; all are ended" in err
    assert err.endswith("    the last words\n")
    assert "a line of rank 0" in err and "Start worker" not in err and "[ERROR]" not in err
    assert "Start worker" in (tmp_path / "logs" / "msrun_0.log").read_text()
    assert_all_ended(made)


def test_the_status_of_a_rank_that_fails_is_that_of_the_job(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    made = job(tmp_path, monkeypatch, "import sys, time; time.sleep(2); sys.exit(2)", SLEEP)
    assert made.watch([]) == 2
    assert "rank 0 on " in (err := capfd.readouterr().err) and "ended with status 2" in err
    assert_all_ended(made)


def test_a_job_that_ends_well_has_status_0(tmp_path: Path, monkeypatch: Any) -> None:
    assert job(tmp_path, monkeypatch, "pass", "pass").watch([]) == 0


def test_a_request_to_stop_is_handed_on(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    made = job(tmp_path, monkeypatch, STOPS, STOPS)
    logs = [tmp_path / "logs" / f"worker_{rank}.log" for rank in (0, 1)]
    end = time.monotonic() + 30
    while not all(log.is_file() and log.read_text() for log in logs):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)
    assert made.watch([signal.SIGTERM]) == 130
    assert [log.read_text() for log in logs] == ["ready\nsaved\n"] * 2
    assert_all_ended(made)


def test_a_second_interrupt_ends_all_at_once(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    made = job(tmp_path, monkeypatch, SLEEP, SLEEP)
    while len(made._workers) < 2:
        made._find()
        time.sleep(0.05)
    assert made.watch([signal.SIGINT, signal.SIGINT]) == 130
    assert capfd.readouterr().err.endswith("mindplm: interrupted\n")
    assert_all_ended(made)


def test_without_workers_a_request_ends_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        launch_job, "command", lambda *a: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    made = Job(Place(2), tmp_path / "logs", [])
    assert made.watch([signal.SIGTERM]) == 130
    assert made._msrun.poll() is not None


def test_msrun_takes_this_interpreter() -> None:
    made = launch_job.command(
        Place(2, 3, 1, "10.0.0.1", 9000), Path("logs"), ["finetune", "-c", "x.yaml"]
    )
    assert made[-4:] == ["mindplm", "finetune", "-c", "x.yaml"]
    assert made[0] == sys.executable
    options = ["--worker_num=6", "--local_worker_num=2", "--node_rank=1", "--tail_worker_log=2"]
    assert set(options) < set(made)
    name = made[made.index("-m", 3) - 1]
    found = subprocess.run(
        [name, "-c", "import sys; print(sys.prefix)"],
        env={**os.environ, "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == sys.prefix
