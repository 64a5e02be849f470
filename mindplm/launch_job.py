"""The processes of a training run on one machine: msrun starts them, this module watches them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mindplm.errors import FAULT, INTERRUPTED, OK, ConfigError

_LAST_LINES = 20
_FAILED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_GRACE_S = 4.0
"""Time for the others to say their last words after one has died."""
_STOP_S = 600.0
"""Time to finish the step and to save after a request to stop."""


@dataclass(frozen=True)
class Place:
    """This machine's part of a run.

    Attributes:
        local: Processes here, one a device.
        nodes: Machines.
        node: Number of this one.
        address: Of the first machine.
        port: Where the processes meet.
        timeout_s: How long they wait for each other at the start.
    """

    local: int
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 8118
    timeout_s: int = 600

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.local * self.nodes


def command(place: Place, log_dir: Path, arguments: Sequence[str]) -> list[str]:
    """The call of msrun for a verb of `mindplm`."""
    return [
        *(sys.executable, "-m", "mindspore.parallel.cluster.run"),
        f"--worker_num={place.world}",
        f"--local_worker_num={place.local}",
        f"--master_addr={place.address}",
        f"--master_port={place.port}",
        f"--node_rank={place.node}",
        f"--log_dir={log_dir}",
        f"--cluster_time_out={place.timeout_s}",
        f"--tail_worker_log={place.node * place.local}",
        "--join=True",
        *(_python_name(), "-m", "mindplm", *arguments),
    ]


def _python_name() -> str:
    """The name by which msrun finds this interpreter in the first folder of the path."""
    for name in ("python", "python3"):
        if (Path(sys.executable).parent / name).exists():
            return name
    raise ConfigError(f"{sys.executable}: there is no python or python3 beside it, as msrun needs")


class Job:
    """The processes of this machine.

    Args:
        place: This machine's part.
        log_dir: Where each rank's output goes.
        arguments: The verb and what follows it.
    """

    def __init__(self, place: Place, log_dir: Path, arguments: Sequence[str]):
        self.place, self.log_dir = place, log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._msrun = subprocess.Popen(
            command(place, log_dir, arguments),
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is for this process to hand on
        )
        self._workers: dict[int, int] = {}
        self._helpers: set[int] = set()
        self._failed: tuple[int, int] | None = None
        self._reader = threading.Thread(target=self._read, args=(self._msrun.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        """Shows what rank 0 tells and keeps all; msrun's own complaints are only kept."""
        with open(self.log_dir / f"msrun_{self.place.node}.log", "w", encoding="utf-8") as log:
            for line in stream:
                log.write(line)
                log.flush()
                match = _FAILED.search(line)
                if match and self._failed is None:
                    self._failed = int(match[1]), int(match[2])
                elif self._failed is None and not _is_noise(line):
                    with contextlib.suppress(OSError):
                        sys.stderr.write(line)
                        sys.stderr.flush()

    def watch(self, stops: list[int]) -> int:
        """Waits for the end; returns the exit status.

        Args:
            stops: Signals that this process got so far; grows meanwhile.
        """
        handed, deadline = 0, float("inf")
        while self._msrun.poll() is None and self._failed is None:
            self._find()
            if len(stops) > handed:
                handed += 1
                second = handed > 1 and stops[handed - 1] == signal.SIGINT
                if second or not self._workers:
                    break
                if handed == 1:  # a second one would end a rank at once
                    deadline = time.monotonic() + _STOP_S
                    self.send(signal.SIGTERM)
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if self._msrun.poll() == 0:
            self._reader.join(timeout=5)
            return OK
        end = time.monotonic() + (_GRACE_S if self._failed else 0)
        while time.monotonic() < end and self._alive():
            time.sleep(0.1)
        status = self._report(bool(stops))
        self.kill()
        return status

    def _find(self) -> None:
        """Learns which processes there are; msrun does not tell."""
        if len(self._workers) == self.place.local and self._helpers:
            return
        for pid in _children(self._msrun.pid):
            environ = _environ(pid)
            if environ.get("MS_ROLE") == "MS_WORKER" and environ.get("RANK_ID", "").isdecimal():
                if "mindplm" in _command_line(pid):
                    self._workers[pid] = int(environ["RANK_ID"])
            else:
                self._helpers.add(pid)

    def _alive(self) -> list[int]:
        return [pid for pid in self._workers if _command_line(pid)]

    def _report(self, stopped: bool) -> int:
        """Says which rank died, and how; returns the exit status."""
        if self._failed is None:
            say("interrupted" if stopped else f"msrun failed; see {self.log_dir}")
            return INTERRUPTED if stopped else FAULT
        pid, code = self._failed
        if code == INTERRUPTED:
            return INTERRUPTED
        if stopped and code == -signal.SIGTERM:  # the request came before a rank could take it
            say("interrupted")
            return INTERRUPTED
        rank = self._workers.get(pid)
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        say(f"rank {'?' if rank is None else rank} on {socket.gethostname()} {how}; all are ended")
        path = self.log_dir / f"worker_{rank}.log"
        if rank is not None and path.is_file():
            say(f"its last lines, of {path}:")
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            sys.stderr.writelines(f"    {line}\n" for line in lines[-_LAST_LINES:])
        return code if code > 0 else FAULT

    def send(self, number: int) -> None:
        """Sends a signal to all workers here."""
        for pid in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Ends every process of the job here, at once."""
        self._find()
        self.send(signal.SIGKILL)
        helpers = [pid for pid in self._helpers if _command_line(pid)]
        for pid in [*helpers, self._msrun.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._msrun.wait()


def _is_noise(line: str) -> bool:
    return bool(re.match(r"\[(WARNING|INFO|ERROR)\] ME\(|Start (scheduler|worker) process", line))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _children(pid: int) -> list[int]:
    """Processes that a process has started, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _environ(pid: int) -> dict[str, str]:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in data.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs}


def _command_line(pid: int) -> str:
    """Empty for a process that has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def say(text: str) -> None:
    """A line for the person who started the run."""
    print(f"mindplm: {text}", file=sys.stderr, flush=True)
