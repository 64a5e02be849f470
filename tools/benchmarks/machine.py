"""Parts that all benchmarks share: facts of the machine, timing, the table of results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mindplm.errors import UserError
from mindplm.runtime import num_cores

Result = dict[str, Any]
BENCH = Path(__file__).resolve().parent.parent / "bench.py"


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that may be used, load, device, versions."""
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "load": round(os.getloadavg()[0], 1),
        "device": device,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("mindplm", "mindspore", "numpy")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model n")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def timed(work: Callable[[], object], runs: int) -> tuple[float, list[float]]:
    """(median, all) durations in seconds, after one run that does not count."""
    work()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), times


def spread(times: Sequence[float]) -> float:
    """(slowest - fastest) / median."""
    return (max(times) - min(times)) / statistics.median(times)


def since_start_s() -> float:
    """Seconds since this process started, by Linux' own record to a hundredth."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def told(command: Sequence[str], text: str | None = None, **environ: str) -> Any:
    """What a program prints as JSON in its last line.

    Args:
        command: The program, its file and its arguments.
        text: What it reads.
        environ: Further variables of its environment.

    Raises:
        UserError: It cannot be run, or fails; its last line is told.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, input=text, env={**os.environ, **environ}
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{command[0]} {Path(command[1]).name} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Rows of results under their names, aligned; lists are left out."""
    names = list(
        dict.fromkeys(k for result in results for k, v in result.items() if type(v) is not list)
    )
    rows = [names, *([_text(result.get(name, "")) for name in names] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, cell, width in line)
        for line in (zip(range(len(names)), row, widths) for row in rows)
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
