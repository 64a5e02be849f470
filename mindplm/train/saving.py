"""When and how checkpoints are written: by steps, by the clock, in a thread beside training."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Callable

import numpy as np

from mindplm.config import TrainConfig
from mindplm.runtime import log


class Writer:
    """Writes one checkpoint at a time, in a thread unless told otherwise.

    An error of the thread is raised by the next call. Leaving the block waits for the thread.

    Args:
        background: Write in a thread; what is written must be a copy then.
    """

    def __init__(self, background: bool):
        self.background = background
        self.newest: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], Path]) -> None:
        """Writes, or begins to write, after the one before is done.

        Raises:
            UserError: This one or the one before could not be written.
        """
        self.wait()
        if not self.background:
            self.newest = write()
            return
        self._thread = threading.Thread(target=self._run, args=(write,), name="save", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path]) -> None:
        try:
            self.newest = write()
        except BaseException as error:  # raised in the main thread, whatever it is
            self._error = error

    def check(self) -> None:
        """Raises the error of the thread, if there is one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
            return
        if isinstance(error, KeyboardInterrupt):  # at once: the half of a folder is removed later
            return
        try:
            self.wait()
        except Exception as other:  # the first error is the one to raise
            log.error("the checkpoint was not written: %s", other)


class Moments:
    """Says when to save: every so many steps, every so many minutes.

    Args:
        config: save_every and save_every_minutes.
        clock: Seconds, for tests.
        share: Of several processes: gives all their values. The clock of the first one counts for
            all, so that they save at the same step; it is looked at when a log line is due.
    """

    def __init__(
        self,
        config: TrainConfig,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[float], np.ndarray] | None = None,
    ):
        self._every, self._pause_s = config.save_every, 60 * config.save_every_minutes
        self._look_every = config.log_every if share is not None else 1
        self._clock, self._share = clock, share
        self._last_s = clock()

    def due(self, step: int) -> bool:
        """Whether the checkpoint of this step shall be written."""
        late = False
        if self._pause_s > 0 and step % self._look_every == 0:
            late = self._clock() - self._last_s >= self._pause_s
            if self._share is not None:
                late = bool(self._share(late)[0, 0])
        due = late or (self._every > 0 and step % self._every == 0)
        if due:
            self._last_s = self._clock()
        return due
