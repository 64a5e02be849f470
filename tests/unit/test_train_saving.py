"""When checkpoints are due, and that the thread which writes them hides nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mindplm.config import TrainConfig
from mindplm.errors import CheckpointError
from mindplm.train.saving import Moments, Writer


def refuse() -> Path:
    raise CheckpointError("no space left")


def test_one_checkpoint_is_written_at_a_time_and_leaving_waits() -> None:
    running, most, lock = [0], [0], threading.Lock()
    go = threading.Event()

    def write(number: int) -> Path:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        go.wait(10)
        with lock:
            running[0] -= 1
        return Path(str(number))

    with Writer(background=True) as writer:
        writer.submit(lambda: write(1))
        assert writer.newest is None, "the caller does not wait"
        go.set()
        for number in (2, 3):
            writer.submit(lambda number=number: write(number))
    assert writer.newest == Path("3") and most == [1]


@pytest.mark.parametrize("call", ["check", "wait", "submit"])
def test_an_error_of_the_thread_is_raised_by_the_next_call(call: str) -> None:
    writer = Writer(background=True)
    writer.submit(refuse)
    assert writer._thread is not None
    writer._thread.join()
    with pytest.raises(CheckpointError, match="no space left"):
        if call == "submit":
            writer.submit(lambda: Path("next"))
        else:
            getattr(writer, call)()
    writer.check()  # it is raised once


def test_an_error_of_the_last_checkpoint_is_raised_at_the_end() -> None:
    with pytest.raises(CheckpointError), Writer(background=True) as writer:
        writer.submit(refuse)


def test_the_first_error_is_the_one_that_is_seen(capsys) -> None:
    with pytest.raises(ZeroDivisionError), Writer(background=True) as writer:
        writer.submit(refuse)
        raise ZeroDivisionError


def test_without_a_thread_the_caller_gets_the_error() -> None:
    writer = Writer(background=False)
    with pytest.raises(CheckpointError):
        writer.submit(refuse)
    writer.submit(lambda: Path("x"))
    assert writer.newest == Path("x")


def test_checkpoints_are_due_by_steps_and_by_the_clock() -> None:
    now = [0.0]

    def due(**settings: float) -> list[int]:
        config = TrainConfig(steps=9, output="x", **settings)  # type: ignore[arg-type]
        now[0] = 0.0
        moments = Moments(config, lambda: now[0])
        found = []
        for step in range(1, 10):
            now[0] += 10.0
            if moments.due(step):
                found.append(step)
        return found

    assert due(save_every=4) == [4, 8]
    assert due(save_every=0) == []
    assert due(save_every=0, save_every_minutes=0.5) == [3, 6, 9]
    assert due(save_every=4, save_every_minutes=0.5) == [3, 4, 7, 8], "each save starts the clock"
