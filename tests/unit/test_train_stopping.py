"""Signals to a process that trains; a long call into C stands for a graph."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# What the process does between two looks at the requests: sleeping in Python, or a call into C
# during which Python runs no handlers.
SCRIPT = """
import hashlib, sys, time
from mindplm.runtime import setup_log
from mindplm.train.stopping import stop_requests
setup_log()
before = time.monotonic()
with stop_requests() as stops:
    print("ready", flush=True)
    if sys.argv[1] == "graph":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 30_000_000)
    while not stops:
        time.sleep(0.01)
    time.sleep({"step": 3, "long step": 30}.get(sys.argv[1], 0))
print("saved", len(stops), flush=True)
"""


def outcome(what: str, *signals: int, pause_s: float = 0.2) -> tuple[int, str, str, float]:
    """Status, output and time to the end after the signals."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT, what]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    begin_s = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(pause_s)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - begin_s


def is_interrupted(err: str) -> bool:
    """By Python's exception, or by the watch beside it if Python is slow to raise it."""
    return "KeyboardInterrupt" in err or err.endswith("error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_request_is_told_once_and_noted(number: signal.Signals) -> None:
    status, out, err, _ = outcome("wait", number)
    assert (status, out) == (0, "saved 1\n")
    assert err == (
        f"warning: {number.name}: the run stops after this step and saves; once more ends it at "
        "once\n"
    )


def test_a_second_sigint_interrupts() -> None:
    status, out, err, took_s = outcome("long step", signal.SIGINT, signal.SIGINT)
    assert status != 0 and out == "" and is_interrupted(err)
    assert took_s < 15


def test_a_second_sigint_ends_a_graph() -> None:
    status, out, err, took_s = outcome("graph", signal.SIGINT, signal.SIGINT)
    assert (status, out) == (130, "") and err.endswith("error: interrupted\n")
    assert took_s < 5


def test_what_a_launcher_sends_twice_at_once_is_one_request() -> None:
    status, out, _, _ = outcome("step", signal.SIGTERM, signal.SIGTERM, pause_s=0.1)
    assert (status, out) == (0, "saved 2\n")
    status, _, err, _ = outcome("step", signal.SIGTERM, signal.SIGTERM, pause_s=1.0)
    assert status != 0 and is_interrupted(err)
