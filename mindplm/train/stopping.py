"""Requests to stop: SIGINT and SIGTERM are noted, and a second SIGINT ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mindplm.runtime import log


@contextmanager
def stop_requests() -> Iterator[list[str]]:
    """Collects SIGINT and SIGTERM instead of dying from them; the second SIGINT interrupts."""
    seen: list[str] = []

    def note(number: int, frame: Any) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)
        log.warning("%s: the run stops after this step and saves", seen[-1])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
