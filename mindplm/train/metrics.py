"""What a run reports: console lines, metrics.jsonl, TensorBoard files, a picture of the losses."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import files
from mindplm.errors import DataError
from mindplm.runtime import log
from mindplm.train.board import Board

FILE = "metrics.jsonl"


class Metrics:
    """Writes the values of a run in all forms; on ranks other than 0 it writes nothing.

    Names are paths: train/loss, train/lr, train/grad_norm, train/step_ms, train/tokens_per_s,
    task/poems, valid/loss. All go to the files; the console line shows those of `_SHOWN` and
    everything under valid/.

    Args:
        run_folder: Where metrics.jsonl and the folder tensorboard are.
        total_steps: Steps of the whole run, for the line and the remaining time.
        rank0: Whether this process reports.
        append: Go on with the files that are there; False starts anew.
        resumed_step: The step that the run goes on from; what was reported later is cut.
    """

    def __init__(
        self,
        run_folder: str | Path,
        total_steps: int,
        rank0: bool = True,
        append: bool = True,
        *,
        resumed_step: int | None = None,
    ):
        self.total_steps = total_steps
        self.path = Path(run_folder) / FILE
        self._file: Any = None
        self._board: Board | None = None
        if not rank0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if append and resumed_step is not None:
            cut_after(self.path, resumed_step)
        self._file = open(self.path, "a" if append else "w", encoding="utf-8")  # noqa: SIM115
        purge = None if resumed_step is None else resumed_step + 1
        self._board = Board(self.path.parent / "tensorboard", purge)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Reports the values of a step."""
        if self._file is None or self._board is None:
            return
        log.info("%s", console_line(step, self.total_steps, values))
        numbers = {name: float(value) for name, value in values.items()}
        record: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        # JSON knows no NaN; null keeps the file readable by every program.
        record.update({k: v if math.isfinite(v) else None for k, v in numbers.items()})
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        file, board = self._file, self._board
        self._file = self._board = None
        if file is not None and board is not None:
            file.close()
            board.close()


# --- console --------------------------------------------------------------------------------------


def console_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """One aligned line, most wanted first, such as `step   120/2000 | loss 3.412 | ...`."""
    width = len(str(total))
    parts = [f"step {step:>{width}}/{total}"]
    for name, show in _SHOWN.items():
        if name in values:
            parts.append(show(values[name]))
    for name, value in values.items():
        if name.startswith("valid/"):
            parts.append(f"valid {name[6:].replace('_', ' ')} {value:.4g}")
    if "train/step_ms" in values:
        parts.append(f"eta {duration((total - step) * values['train/step_ms'] / 1000)}")
    return " | ".join(parts)


def thousands(value: float) -> str:
    """A rate in five characters: 812, 39.8k, 1.25M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time span for people: 8s, 12m54s, 3h05m, 2d04h."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    for unit, size, below, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{below}"
    return f"{whole}s"


_SHOWN = {
    "train/loss": lambda value: f"loss {value:.3f}",
    "train/lr": lambda value: f"lr {value:.1e}",
    "train/grad_norm": lambda value: f"grad {value:.2f}",
    "train/step_ms": lambda value: f"{value:.0f} ms",
    "train/tokens_per_s": lambda value: f"{thousands(value)} tok/s",
    "train/mfu": lambda value: f"mfu {100 * value:.0f}%",
    "train/memory_gb": lambda value: f"{value:.1f} GB",
    "train/loss_scale": lambda value: f"scale {value:g}",
    "train/overflows": lambda value: f"overflows {value}",
    "train/skipped": lambda value: f"skipped {value}",
    "train/spikes": lambda value: f"spikes {value}",
}


# --- files ----------------------------------------------------------------------------------------


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a half line at the end, from a killed run, is left out.

    Raises:
        DataError: Another line is not a report.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not a report of a step: {line[:60]!r}") from None
        records.append(record)
    return records


def cut_after(path: Path, step: int) -> None:
    """Removes reports of later steps; the file is the old or the new one whatever happens."""
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    files.replace_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _series(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    steps, values = zip(*pairs) if pairs else ((), ())
    return np.array(steps, float), np.array(values, float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the points; the window shrinks at both ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def plot_losses(metrics: str | Path, out: str | Path, title: str = "") -> None:
    """Draws training and validation loss over the steps into a PNG.

    Args:
        metrics: A metrics.jsonl.
        out: The picture.
        title: Above the picture.
    """
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="tight")
    axes = figure.add_subplot()
    steps, losses = _series(records, "train/loss")
    if len(steps):
        axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color="tab:blue", linewidth=1.6, label="training")
    steps, losses = _series(records, "valid/loss")
    if len(steps):
        axes.plot(steps, losses, "o-", color="tab:orange", markersize=4, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(Path(out), picture.getvalue())
