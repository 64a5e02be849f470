"""The event file of TensorBoard, written by the thread that trains.

The writer of tensorboardX has a thread and a short queue; when the disk is full the thread dies and
the run waits for room in the queue for ever. Here the error reaches the run.
"""

from __future__ import annotations

import time
from pathlib import Path

_FLUSH_S = 30.0


class Board:
    """Writes numbers by step.

    Args:
        folder: Gets an event file.
        purge_step: What earlier files of the folder say of this step and later ones does not count.

    Raises:
        OSError: The file cannot be written; of any method.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed_s = time.monotonic()
        if purge_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=purge_step, session_log=log))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number of a step."""
        summary = self._scalar(name, value)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._writer.flush()
            self._flushed_s = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
