"""The watch over the processes of a run, with threads and processes that only hold connections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from mindplm.runtime import Runtime
from mindplm.train.ranks import Gather, Watch

# A process of the given rank that is told where rank 0 listens and watches until it is ended.
PEER = """
import sys, time
import numpy as np
from mindplm.runtime import Runtime, setup_log
from mindplm.train.ranks import Watch
setup_log()
rank, port = int(sys.argv[1]), int(sys.argv[2])
watch = Watch(Runtime("CPU", [], rank, 3), lambda *v: np.array([[127, 0, 0, 1, port]]))
print("ready", flush=True)
if sys.argv[3] == "wait":
    watch.first(sys.exit)
    sys.exit("it went on")
if sys.argv[3] != "stay":
    sys.stdin.readline()
    watch.close(None if sys.argv[3] == "bye" else "optim.lr=0,\\n expected > 0")
    sys.exit()
time.sleep(60)
"""


class Told:
    """Rank 0 in this process, with two others; keeps the message of its end."""

    def __init__(self, *ways: str):
        self.ended = threading.Event()
        self.message = ""
        self.processes: list[subprocess.Popen[str]] = []
        self._ways = ways
        self.watch = Watch(Runtime("CPU", [], 0, 3), self._start, self._end)
        for process in self.processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"

    def _start(self, *address_and_port: float) -> np.ndarray:
        for rank, way in enumerate(self._ways, 1):
            command = [sys.executable, "-c", PEER, str(rank), str(address_and_port[-1]), way]
            pipe = subprocess.PIPE
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            self.processes.append(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
            )
        return np.zeros((3, 5))

    def _end(self, message: str) -> None:
        self.message = message
        self.ended.set()

    def outcome(self, rank: int) -> tuple[int, str]:
        _, err = self.processes[rank - 1].communicate(input="go\n", timeout=20)
        return self.processes[rank - 1].returncode, err


def test_a_killed_process_is_named_by_all_others() -> None:
    told = Told("stay", "stay")
    begin = time.monotonic()
    told.processes[1].send_signal(signal.SIGKILL)
    assert told.ended.wait(10)
    assert told.message.startswith("rank 2 is gone without a word: it was killed, or its machine")
    assert "rank 0 ends too, the same command goes on with the run" in told.message
    status, err = told.outcome(1)
    assert status == 1 and "error: rank 2 is gone without a word" in err
    assert "rank 1 ends too" in err
    assert time.monotonic() - begin < 20


def test_an_error_of_one_process_is_told_to_all() -> None:
    told = Told("fail", "stay")
    assert told.outcome(1)[0] == 0
    assert told.ended.wait(10)
    assert told.message.startswith("rank 1 has failed: optim.lr=0, expected > 0; rank 0 ends too")
    status, err = told.outcome(2)
    assert status == 1 and "error: rank 1 has failed: optim.lr=0" in err


def test_processes_that_end_in_turn_disturb_nobody() -> None:
    told = Told("bye", "bye")
    assert told.outcome(1) == (0, "")
    assert not told.ended.wait(1)
    told.watch.close()
    assert told.outcome(2) == (0, "")
    assert not told.ended.is_set()


def test_the_end_of_rank_0_is_noticed() -> None:
    told = Told("stay", "stay")
    told.watch.close("the disk is full")
    for rank in (1, 2):
        status, err = told.outcome(rank)
        assert status == 1 and "error: rank 0 has failed: the disk is full" in err


def test_rank_0_works_while_the_others_wait() -> None:
    told = Told("wait", "wait")
    told.watch.first(lambda: time.sleep(0.1))
    for rank in (1, 2):
        assert told.outcome(rank) == (1, "it went on\n")
    waiting = Told("wait", "wait")
    with pytest.raises(ValueError, match="damaged"):
        waiting.watch.first(lambda: _raise(ValueError("damaged")))
    waiting.watch.close("damaged")
    for rank in (1, 2):
        status, err = waiting.outcome(rank)
        assert status == 1 and "error: rank 0 has failed: damaged" in err and "went" not in err


def _raise(error: Exception) -> None:
    raise error


def test_one_process_watches_nobody() -> None:
    def never(*values: Any) -> Any:
        raise AssertionError

    Watch(Runtime("CPU"), never, never).close()


@pytest.mark.parametrize("values", [(1.0,), (0.1, -2e-300, 3e7)])
def test_gathering_in_one_process_gives_its_own_numbers(values: tuple[float, ...]) -> None:
    np.testing.assert_array_equal(Gather(Runtime("CPU"))(*values), [values])
