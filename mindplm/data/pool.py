"""Work spread over processes, with results in the order of the work."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

_COLLECT_EVERY = 50_000

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Calls a function on each item; results come in the order of the items.

    At most one item a worker is under way, so memory does not depend on their number. Workers
    are started afresh (not forked), so threads and devices of this process do not matter.

    Args:
        function: Must be picklable; it is sent to each worker once.
        items: Must be picklable.
        workers: Processes; with 1 the work is done in this one.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    crew: list[tuple[BaseProcess, Connection]] = []
    try:
        waiting: deque[Connection] = deque()
        for item in items:
            if len(crew) < workers:
                crew.append(_start(function))
                connection = crew[-1][1]
                _send(connection, item)
                waiting.append(connection)
                continue
            connection = waiting.popleft()
            result = _receive(connection)
            _send(connection, item)  # before the result is used, so that the worker goes on
            waiting.append(connection)
            yield result
        while waiting:
            yield _receive(waiting.popleft())
    finally:
        for process, connection in crew:
            connection.close()
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


def num_workers(wanted: int) -> int:
    """Workers to start: as many as wanted, or as there are cores for 0."""
    if wanted:
        return wanted
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(function: Callable[[Any], Any]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    """What a worker does until the other end of its connection is closed."""
    gc.freeze()  # what came with the function stays; looking through it again and again takes time
    gc.set_threshold(_COLLECT_EVERY)
    try:
        while True:
            item = connection.recv()
            try:
                answer: tuple[Any, BaseException | None] = (function(item), None)
            except Exception as error:
                answer = (None, error)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return


def _send(connection: Connection, item: Any) -> None:
    try:
        connection.send(item)
    except (BrokenPipeError, ConnectionResetError):
        raise _dead() from None


def _receive(connection: Connection) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _dead() from None
    if error is not None:
        raise error
    return result


def _dead() -> RuntimeError:
    return RuntimeError("a worker process ended unexpectedly (killed, perhaps for lack of memory)")
