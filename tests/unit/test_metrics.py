"""Reports of a run."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindplm import runtime
from mindplm.errors import DataError
from mindplm.train import metrics
from mindplm.train.board import Board
from mindplm.train.metrics import Metrics, console_line, duration, plot_losses, read_metrics

VALUES = {
    "train/loss": 3.4123,
    "train/lr": 2.4e-4,
    "train/grad_norm": 1.034,
    "train/step_ms": 412.0,
    "train/tokens_per_s": 39_800,
    "train/hidden": 5.0,
}


def test_the_console_line_is_aligned_and_has_the_remaining_time() -> None:
    line = console_line(120, 2000, VALUES)
    assert line == (
        "step  120/2000 | loss 3.412 | lr 2.4e-04 | grad 1.03 | 412 ms | 39.8k tok/s | eta 12m55s"
    )
    assert console_line(3, 20, {"valid/loss": 2.5, "valid/nats_per_char": 4.75}) == (
        "step  3/20 | valid loss 2.5 | valid nats per char 4.75"
    )


def test_spans_and_rates_are_short() -> None:
    spans = (0, 8.4, 65, 3600 * 3 + 300, 86400 * 2 + 4 * 3600, math.inf)
    assert [duration(s) for s in spans] == ["0s", "8s", "1m05s", "3h05m", "2d04h", "?"]
    rates = (12.3, 999, 1000, 39_800, 512_345, 1_250_000)
    assert [metrics.thousands(r) for r in rates] == ["12", "999", "1.00k", "39.8k", "512k", "1.25M"]


def test_every_report_is_a_line_at_once(tmp_path: Path, capsys: Any) -> None:
    runtime.setup_log()
    with Metrics(tmp_path, 10) as report:
        report.log(1, VALUES)
        report.log(2, {"train/loss": float("nan")})
        records = read_metrics(tmp_path / metrics.FILE)
    assert [r["step"] for r in records] == [1, 2]
    assert records[0]["train/hidden"] == 5.0
    assert records[1]["train/loss"] is None
    assert "loss nan" in capsys.readouterr().err
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_other_ranks_write_nothing(tmp_path: Path, capsys: Any) -> None:
    with Metrics(tmp_path / "run", 10, rank0=False) as report:
        report.log(1, VALUES)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def fill(folder: Path, steps: range, **kwargs: Any) -> list[int]:
    with Metrics(folder, 100, **kwargs) as report:
        for step in steps:
            report.log(step, {"train/loss": step / 10})
    return [record["step"] for record in read_metrics(folder / metrics.FILE)]


def test_resuming_cuts_what_came_after_the_resumed_step(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 8))
    with open(tmp_path / metrics.FILE, "a") as file:
        file.write('{"step": 8, "tra')
    assert fill(tmp_path, range(5, 7), resumed_step=4) == [1, 2, 3, 4, 5, 6]
    assert fill(tmp_path, range(7, 8)) == [1, 2, 3, 4, 5, 6, 7]
    assert fill(tmp_path, range(1, 2), append=False) == [1]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / metrics.FILE
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not a report of a step: b'nonsense'"):
        read_metrics(path)


def test_the_picture_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, 2001):
        record = {"step": step, "train/loss": 9 / step**0.2 + rng.normal() * 0.1}
        if step % 100 == 0:
            record["valid/loss"] = 9 / step**0.2 + 0.1
        lines.append(json.dumps(record))
    path = tmp_path / metrics.FILE
    path.write_text("\n".join(lines) + "\n")
    out = tmp_path / "new" / "loss.png"
    plot_losses(path, out, title="tiny on poems")
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (640, 360)
    assert len(data) < 60_000
    path.write_text("")
    plot_losses(path, out)


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert np.allclose(metrics._smooth(np.full(100, 3.0)), 3.0)
    assert len(metrics._smooth(np.arange(7.0))) == 7


def test_a_full_disk_is_told_by_the_board(tmp_path: Path) -> None:
    """The event file is written at once, so nothing waits for a thread that has died."""
    board = Board(tmp_path)
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", 0) as full:
        board._writer._py_recordio_writer._writer = full
        for step in range(100):
            board.add_scalar("train/loss", 1.0, step)


def test_pictures_and_boards_are_loaded_on_use_only() -> None:
    code = (
        "import sys, mindplm.train.metrics\n"
        "print([m for m in ('matplotlib', 'tensorboardX') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
