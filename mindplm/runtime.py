"""Where the program runs: device, threads, seed, ranks and the log. Every choice by device is here.

MindSpore is imported by `setup`, after the environment variables that it reads at import are set.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from mindplm.config import RuntimeConfig
from mindplm.errors import DeviceError

log = logging.getLogger("mindplm")
"""The library's log; `setup_log` gives it its handler."""

_CALL_DEPTH = 10_000
"""Calls within calls in a graph; 48 blocks in pipeline stages need more than the usual 1,000."""
_TARGETS = {"ascend": "Ascend", "gpu": "GPU", "cpu": "CPU"}
_DEVICE_FILES = {"ascend": "/dev/davinci", "gpu": "/dev/nvidia"}
_ADVICE = {
    "ascend": "install the NPU driver and CANN and source CANN's set_env.sh",
    "gpu": "MindSpore needs CUDA 11.6 to 11.8 (CUDA_HOME with bin/nvcc), cuDNN 8 and an NVIDIA "
    "driver; CUDA 12 is not supported",
}


@dataclass(frozen=True)
class Runtime:
    """What `setup` found and set.

    Attributes:
        device: Ascend, GPU or CPU.
        notes: Lines for people: what was found, what was not and why.
        rank: Number of this process.
        world: Number of processes.
    """

    device: str
    notes: list[str] = field(default_factory=list)
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Found:
    """Devices of one kind that can be used, and why there are none."""

    count: int
    why: str = ""


# --- device ---------------------------------------------------------------------------------------


def probe(kind: str) -> Found:
    """Counts the usable devices of a kind ("ascend" or "gpu"); never raises."""
    files = sorted(glob.glob(_DEVICE_FILES[kind] + "[0-9]*"))
    place = f"{files[0]} is there" if files else f"there is no {_DEVICE_FILES[kind]}0"
    try:
        module = importlib.import_module(f"mindspore.device_context.{kind}.device")
        if not module.is_available():
            why = f"MindSpore cannot load its {_TARGETS[kind]} plugin{_plugin_error(kind)}"
            return Found(0, f"{why}; {place}")
        count = int(module.device_count())
    except Exception as error:  # a plugin may fail in any way, such as a driver that is too old
        lines = (line.strip(" -") for line in str(error).splitlines())
        text = " ".join(line for line in lines if line)[:160].rstrip(". ")
        return Found(0, f"{text or type(error).__name__}; {place}")
    return Found(count, "" if count else f"the plugin loads but shows no device; {place}")


def _plugin_error(kind: str) -> str:
    """What MindSpore itself says about a plugin that it could not load, shortened."""
    try:
        from mindspore._c_expression import MSContext

        lines = str(MSContext.get_instance().load_plugin_error()).splitlines()
    except Exception:  # not a public interface; without it the message is only shorter
        return ""
    for line in lines:
        if f"libmindspore_{kind}.so" in line and "failed." in line:
            return f" ({line.partition('failed.')[2].strip()[:120]})"
    return ""


def choose_device(
    wish: str = "auto", probe: Callable[[str], Found] = probe
) -> tuple[str, list[str]]:
    """Chooses Ascend, else GPU, else CPU; an explicit wish is met or refused.

    Args:
        wish: auto, ascend, gpu or cpu.
        probe: Counts the devices of a kind.

    Returns:
        (Ascend, GPU or CPU; notes for people).

    Raises:
        DeviceError: The wished device cannot be used; says why and what to do.
    """
    notes: list[str] = []
    kinds = {"auto": ("ascend", "gpu"), "cpu": ()}.get(wish, (wish,))
    for kind in kinds:
        found = probe(kind)
        if found.count:
            notes.append(f"{_TARGETS[kind]}: {found.count} found")
            return _TARGETS[kind], notes
        notes.append(f"{_TARGETS[kind]}: none ({found.why})")
        if wish == kind:
            raise DeviceError(
                f"runtime.device={wish} cannot be used: {found.why}; {_ADVICE[kind]}; "
                "or set runtime.device=auto"
            )
    notes.append(f"CPU: {num_cores()} cores")
    return "CPU", notes


def device_target() -> str:
    """The device that graphs are built for: Ascend, GPU or CPU."""
    import mindspore as ms

    return str(ms.get_context("device_target"))


def is_ascend() -> bool:
    """Whether graphs are built for Ascend."""
    return device_target() == "Ascend"


def settle(value: Any) -> Any:
    """Waits for a result where waiting is cheaper than running ahead: on CPU.

    There the caller's thread spins while a graph runs, on a core that the graph needs; blocked in
    a read of the result it does not. A device of its own computes on while Python goes ahead.
    """
    return value.asnumpy() if device_target() == "CPU" else value


def steps_ahead() -> int:
    """Steps that Python may be ahead of the results it has read; none where it waits for each."""
    return 0 if device_target() == "CPU" else 1


def peak_memory_bytes() -> int:
    """Most memory that was in use so far: of the device, on CPU of the process."""
    if device_target() == "CPU":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import mindspore as ms

    return int(ms.runtime.max_memory_allocated())


def start_profile(folder: Path) -> Any:
    """Starts MindSpore's profiler, which has a method stop; None on CPU, where it has none."""
    if device_target() == "CPU":
        return None
    from mindspore import profiler

    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU]
    handler = profiler.tensorboard_trace_handler(str(folder))
    made = profiler.profile(activities=activities, on_trace_ready=handler)
    made.start()
    return made


def measured_flops(dtype: str) -> float:
    """Operations a second of a large matrix product in a type, the median of a few."""
    import mindspore as ms
    import numpy as np

    size = 512 if device_target() == "CPU" else 8192

    @ms.jit
    def product(a, b):
        return ms.ops.matmul(a, b)

    one = ms.Tensor(np.ones((size, size), np.float32)).astype(compute_dtype(dtype))
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        product(one, one).asnumpy()
        seconds.append(time.perf_counter() - begin)
    return 2.0 * size**3 / sorted(seconds[1:])[2]


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compute_dtype(name: str) -> Any:
    """The MindSpore type of runtime.dtype; DeviceError where the device cannot compute in it."""
    import mindspore as ms

    if name == "bfloat16" and device_target() == "CPU":
        raise DeviceError(
            "runtime.dtype=bfloat16 does not run on CPU; accepted there: float32, float16"
        )
    return getattr(ms, name)


# --- ranks ----------------------------------------------------------------------------------------


def ranks(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of processes) as msrun set them; (0, 1) without it."""
    world = _number(environ, "MS_WORKER_NUM", _number(environ, "RANK_SIZE", 1))
    rank = _number(environ, "RANK_ID", _number(environ, "MS_NODE_ID", 0))
    if not 0 <= rank < world:
        raise DeviceError(
            f"RANK_ID={rank} does not fit MS_WORKER_NUM={world}; start several processes with msrun"
        )
    return rank, world


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise DeviceError(f"environment variable {name}={text!r} is not a whole number") from None


# --- set-up ---------------------------------------------------------------------------------------


def setup(config: RuntimeConfig) -> Runtime:
    """Chooses the device and sets threads, mode, seed and caches; call it once, first.

    Raises:
        DeviceError: The device, its type or the number of threads cannot be had.
    """
    rank, world = ranks()
    setup_log(rank)
    _set_environment(config)
    import mindspore as ms

    device, notes = choose_device(config.device)
    try:
        ms.set_device(device)
    except RuntimeError as error:
        # A process that is connected to others, or has computed before, has its device for good.
        fixed = any(word in str(error) for word in ("modified", "initialized"))
        if not fixed or device_target() != device:
            text = " ".join(str(error).split())[:200]
            message = f"runtime.device={config.device}: {device} is refused: {text}"
            raise DeviceError(message) from error
    if device == "CPU" and config.threads:
        _set_threads(config.threads)
    ms.set_context(mode=ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_recursion_limit(_CALL_DEPTH)
    ms.set_seed(config.seed)
    with contextlib.suppress(RuntimeError):  # a process may say it once only
        ms.set_deterministic(True)
    compute_dtype(config.dtype)
    if world > 1:
        from mindspore.communication import get_group_size, get_rank, init

        init()
        rank, world = int(get_rank()), int(get_group_size())
    return Runtime(device=device, notes=notes, rank=rank, world=world)


@functools.cache
def _set_threads(number: int) -> None:
    from mindspore.device_context.cpu import op_tuning

    try:
        op_tuning.threads_num(number)
    except RuntimeError as error:
        raise DeviceError(
            f"runtime.threads={number}: another number was set before in this process"
        ) from error


def _set_environment(config: RuntimeConfig) -> None:
    """Sets what MindSpore and its libraries read from the environment; a user's own value wins."""
    os.environ.setdefault("GLOG_v", "3")  # errors only
    # Where a graph that cannot be compiled is written; otherwise rank_0/ in the current folder.
    os.environ.setdefault("MS_OM_PATH", os.path.join(tempfile.gettempdir(), "mindplm-graphs"))
    cores = num_cores()
    if config.threads > cores:
        raise DeviceError(f"runtime.threads={config.threads}, expected at most {cores}, the cores")
    if config.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))


# --- log ------------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    """Writes lines to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal ends no training
            tqdm = sys.modules.get("tqdm")
            if tqdm is not None:
                tqdm.tqdm.write(self.format(record), file=sys.stderr)
            else:
                sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


class _Formatter(logging.Formatter):
    """The bare message; warnings and errors are marked, in colour on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return text
        mark = record.levelname.lower()
        if colour():
            code = 31 if record.levelno >= logging.ERROR else 33
            mark = f"\033[{code}m{mark}\033[0m"
        return f"{mark}: {text}"


def colour() -> bool:
    """Whether messages may be coloured: stderr is a terminal and NO_COLOR is not set."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def setup_log(rank: int = 0) -> None:
    """Gives `log` its one handler; ranks other than 0 only warn."""
    if not any(isinstance(handler, _Handler) for handler in log.handlers):
        handler = _Handler()
        handler.setFormatter(_Formatter())
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
