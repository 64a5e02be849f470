"""Requests to stop: SIGINT and SIGTERM are noted, and a second SIGINT ends the process at once.

Python runs a signal's handler when the main thread is back from a graph, which may take long, so a
thread listens to the signals as well. While a graph runs MindSpore turns SIGINT into SIGTERM, so a
second SIGTERM soon after the first counts as a second SIGINT; what launchers send twice at the same
moment, or again after minutes, does not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mindplm.errors import INTERRUPTED
from mindplm.runtime import log

_WATCHED = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = (0.5, 10.0)
"""When after the first signal a second SIGTERM is that of a person."""
_PATIENCE_S = 1.0
"""Time for the main thread to see the second SIGINT itself."""


@contextmanager
def stop_requests() -> Iterator[list[str]]:
    """Collects names of SIGINT and SIGTERM instead of dying from them.

    The second SIGINT raises KeyboardInterrupt in the main thread; where that is inside a graph, the
    process ends.
    """
    seen: list[str] = []
    twice, left = threading.Event(), threading.Event()
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)

    def handle(number: int, frame: Any) -> None:
        if twice.is_set():
            raise KeyboardInterrupt

    def listen() -> None:
        first_s = 0.0
        while data := os.read(inlet, 1):
            number = data[0]
            if number not in _WATCHED:
                continue
            pause_s = time.monotonic() - first_s
            if seen and (number == signal.SIGINT or _AGAIN_S[0] < pause_s < _AGAIN_S[1]):
                twice.set()
                if not left.wait(_PATIENCE_S):
                    log.error("interrupted")
                    os._exit(INTERRUPTED)
                return
            if not seen:
                first_s = time.monotonic()
                log.warning(
                    "%s: the run stops after this step and saves; once more ends it at once",
                    signal.Signals(number).name,
                )
            seen.append(signal.Signals(number).name)
        os.close(inlet)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    previous = {number: signal.signal(number, handle) for number in _WATCHED}
    previous_outlet = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    thread.start()
    try:
        yield seen
    finally:
        left.set()
        signal.set_wakeup_fd(previous_outlet)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(outlet)
        thread.join(timeout=5)
