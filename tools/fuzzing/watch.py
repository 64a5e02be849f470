"""Watches what a call does to the outside: files, processes, code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mindplm import cli

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod"),
    *("os.truncate", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
# Which argument of an event is the open folder that its path is relative to.
_FOLDER = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"),
    *("pickle.find_class", "socket.getaddrinfo", "ctypes.", "exec", "webbrowser"),
)
# Where Python itself evaluates text: annotations, imports of its own modules.
_OWN = ("typing.py", "dataclasses.py", "<frozen importlib._bootstrap>", "collections/__init__.py")


class Watch:
    """Notes every change of a file outside of the places that are allowed, and all code.

    Python's audit hooks cannot be removed, so there is one for all watches, asleep between them.
    """

    _active: Watch | None = None
    _installed = False

    def __init__(self, allowed: Sequence[Path]):
        self.allowed = [str(path) for path in allowed]
        self.found: list[str] = []

    def __enter__(self) -> Watch:
        if not Watch._installed:
            sys.addaudithook(_hook)
            Watch._installed = True
        Watch._active = self
        return self

    def __exit__(self, *_: Any) -> None:
        Watch._active = None

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Takes one event."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int):
                self._check(event, path)
        elif event in _CHANGES:
            paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            folder = arguments[_FOLDER[event]] if event in _FOLDER else -1
            for path in paths:
                self._check(event, path, folder)
        elif event.startswith(_FORBIDDEN):
            caller = sys._getframe(2).f_code.co_filename  # hook, note; then who did it
            own = caller.endswith(_OWN) or "/mindspore/" in caller  # which compiles graphs
            spool = caller.endswith("mindplm/data/spool.py")  # reads what it wrote itself
            if not (event == "exec" and own) and not spool and "/multiprocessing/" not in caller:
                self.found.append(f"{event} {str(arguments)[:100]} by {caller}")

    def _check(self, event: str, path: Any, folder: int = -1) -> None:
        if isinstance(path, int):
            text = f"file {path}"
        elif folder >= 0 and not os.path.isabs(path):  # a name inside an open folder
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        else:
            text = os.path.abspath(os.fsdecode(path))
        if event == "os.mkdir" and os.path.isdir(text):
            return  # it will be told that it exists
        if text != os.devnull and not any(text.startswith(place) for place in self.allowed):
            self.found.append(f"{event} {text}")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # A hook stays to the very end of the program, when names of modules are gone.
    watch = Watch._active if Watch is not None else None
    if watch is not None:
        watch.note(event, arguments)


def snapshot(folder: Path, without: Sequence[Path] = ()) -> dict[str, tuple[int, int]]:
    """Path -> (bytes, time of change) of all that is in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not any(path == place or place in path.parents for place in without):
            facts = path.lstat()
            found[str(path)] = (facts.st_size if path.is_file() else 0, facts.st_mtime_ns)
    return found


def call(argv: Sequence[str]) -> tuple[int, str, str]:
    """Runs the command line in this process: status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(list(argv))
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
