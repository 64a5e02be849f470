"""The processes of one run: exchanging numbers, and noticing at once that one of them is gone.

A collective operation waits for a dead process half a minute on CPU and half an hour on Ascend, and
then does not say which it was. So every process keeps a connection to rank 0. The system closes it
when the process dies, however it died; a machine that is gone is found by TCP keep-alive.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Callable

import numpy as np

from mindplm.errors import DeviceError
from mindplm.runtime import Runtime, log

GRACE_S = 2.0
"""Time for a process to end by itself, with its own message, when another one has failed."""
_CONNECT_S = 120.0
_BYE, _FAILED, _END, _GO_ON = "bye", "failed", "end", "on"


# --- numbers --------------------------------------------------------------------------------------


class Gather:
    """Collects numbers of all processes; the collectives of CPU know sums of fp32 only."""

    def __init__(self, found: Runtime):
        self.rank, self.world = found.rank, found.world
        if self.world > 1:
            from mindspore import nn, ops

            class _Sum(nn.Cell):
                def __init__(self) -> None:
                    super().__init__()
                    self.reduce = ops.AllReduce()

                def construct(self, values):
                    return self.reduce(values)

            self._sum = _Sum()

    def __call__(self, *values: float) -> np.ndarray:
        """All processes' values, fp64 [world, number of values], the same bits everywhere.

        Every process must call it, with as many values.
        """
        own = np.array(values, np.float64)
        if self.world == 1:
            return own[None]
        from mindspore import Tensor

        # Three fp32 numbers hold an fp64 exactly, and adding zeros changes none of them.
        parts = np.zeros((3, self.world, len(own)), np.float32)
        rest = own
        for part in parts:
            part[self.rank] = rest
            rest = rest - part[self.rank]
        return self._sum(Tensor(parts)).asnumpy().astype(np.float64).sum(0)


# --- watch ----------------------------------------------------------------------------------------


class Watch:
    """Ends this process soon after another one of the run has died or failed.

    Args:
        found: Rank and number of processes.
        gather: Used to tell all where rank 0 listens.
        end: Called with a message in a thread when the run cannot go on; must not return.
    """

    def __init__(
        self,
        found: Runtime,
        gather: Callable[..., np.ndarray],
        end: Callable[[str], None] | None = None,
    ):
        self.rank, self.world = found.rank, found.world
        self._end = end or _end_process
        self._closed, self._told = threading.Event(), threading.Event()
        self._peers: dict[int, socket.socket] = {}
        if self.world == 1:
            return
        if self.rank == 0:
            server = socket.create_server(("", 0), backlog=self.world)
            gather(*_own_address(), server.getsockname()[1])
            self._accept(server)
        else:
            *address, port = (int(value) for value in gather(0, 0, 0, 0, 0)[0])
            self._connect(".".join(map(str, address)), port)
        threading.Thread(target=self._listen, name="watch", daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        server.settimeout(_CONNECT_S)
        with server:
            while len(self._peers) < self.world - 1:
                try:
                    peer, _ = server.accept()
                    rank = int(_read_line(peer))
                except (OSError, ValueError):
                    absent = sorted(set(range(1, self.world)) - set(self._peers))
                    raise DeviceError(f"ranks {absent} did not connect to rank 0") from None
                self._peers[rank] = _kept_alive(peer)

    def _connect(self, address: str, port: int) -> None:
        try:
            peer = socket.create_connection((address, port), timeout=_CONNECT_S)
        except OSError as error:
            raise DeviceError(
                f"rank {self.rank} cannot connect to rank 0 at {address}:{port}: {error}"
            ) from None
        peer.sendall(f"{self.rank}\n".encode())
        self._peers[0] = _kept_alive(peer)

    def _listen(self) -> None:
        """The thread: waits for what the others say or for the end of a connection."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._closed.is_set():
                for key, _ in selector.select(timeout=0.5):
                    text = _read_line(self._peers[key.data])
                    kind, _, rest = text.partition(" ")
                    if kind == _GO_ON:
                        self._told.set()
                        continue
                    selector.unregister(key.fileobj)
                    if kind != _BYE:
                        self._failed(key.data, kind, rest)

    def first(self, work: Callable[[], object]) -> None:
        """Rank 0 does something while the others wait, however long it takes; once in a run.

        A collective would not do: on Ascend it gives up after half an hour.
        """
        if self.rank == 0:
            work()
            self._tell(_GO_ON)
        else:
            self._told.wait()

    def _failed(self, rank: int, kind: str, text: str) -> None:
        if self._closed.is_set():
            return
        if kind == _END:  # rank 0 tells of another one
            message = text
        elif kind == _FAILED:
            message = f"rank {rank} has failed: {text}"
        else:
            message = f"rank {rank} is gone without a word: it was killed, or its machine is down"
        self._tell(f"{_END} {message}")
        self._end(f"{message}; rank {self.rank} ends too, the same command goes on with the run")

    def _tell(self, line: str) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{' '.join(line.split())}\n".encode())

    def close(self, error: str | None = None) -> None:
        """Tells the others that this process ends, well or with an error, and stops watching."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._tell(_BYE if error is None else f"{_FAILED} {error}")
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)


def _end_process(message: str) -> None:
    """Says why, gives the main thread a moment to end with a message of its own, and ends."""
    log.error("%s", message)
    time.sleep(GRACE_S)
    os._exit(1)


def _read_line(peer: socket.socket) -> str:
    """One line, "" if the connection has ended."""
    data = b""
    try:
        while not data.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte:
                return ""
            data += byte
    except OSError:
        return ""
    return data.decode(errors="replace").strip()


def _kept_alive(peer: socket.socket) -> socket.socket:
    """Finds within 40 seconds that the other machine is gone; the process needs to do nothing."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _own_address(environ: Mapping[str, str] = os.environ) -> list[int]:
    """This machine's IPv4 address as the others of the run see it."""
    host = environ.get("MS_SCHED_HOST", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing; it only chooses the way
            text = probe.getsockname()[0]
        except OSError:
            text = "127.0.0.1"
    return [int(part) for part in text.split(".")]
