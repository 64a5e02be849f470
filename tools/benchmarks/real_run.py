"""A run of `mindplm pretrain` on made-up texts, started as users start it, and what it logged."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import texts
from benchmarks.machine import Result
from mindplm.errors import UserError

_CONFIG = """\
family: cpm_bee
model: {{preset: {preset}}}
runtime: {{threads: {threads}}}
data: {{folder: {folder}/rows, seq_len: {seq_len}, repeat: 1,
  train: [{{path: {folder}/corpus.jsonl, tasks: {{lm: 1}}}}]}}
train: {{output: {folder}/run, steps: {steps}, batch_size: {rows}, log_every: 1, keep_last: 1}}
"""


def prepared(
    folder: Path, *, preset: str, rows: int, seq_len: int, steps: int, threads: int = 0
) -> Path:
    """Writes settings and prepares rows; returns the file of the settings."""
    texts.write(folder / "corpus.jsonl", max(20_000, 2 * rows * seq_len * (steps + 2)))
    path = folder / "run.yaml"
    values = {"preset": preset, "rows": rows, "seq_len": seq_len, "steps": steps}
    path.write_text(_CONFIG.format(folder=folder, threads=threads, **values), encoding="utf-8")
    _called([sys.executable, "-m", "mindplm", "preprocess", "-c", str(path)], "1")
    return path


def run(config: Path, name: str, processes: int = 1, *overrides: str) -> Result:
    """Trains, and sums up the log without its first step.

    Returns:
        tokens/s of the median step, its ms, what share of all steps was spent waiting for batches,
        memory of the first process.
    """
    output = config.parent / name
    command = [sys.executable, "-m", "mindplm.launch", "-c", str(config), f"train.output={output}"]
    _called([*command, *overrides], str(processes))
    lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    logged = [one for one in map(json.loads, lines) if "train/step_ms" in one][1:]
    if not logged:
        raise UserError("expected at least 2 steps")
    times = [one["train/step_ms"] for one in logged]
    waited = sum(one["train/wait"] * one["train/step_ms"] for one in logged)
    return {
        "tokens/s": statistics.median(one["train/tokens_per_s"] for one in logged),
        "ms": statistics.median(times),
        "wait of step": waited / sum(times),
        "memory GB": logged[-1]["train/memory_gb"],
    }


def _called(command: list[str], processes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environ = {**os.environ, "NPUS": processes, "MASTER_PORT": port, "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{' '.join(command[2:4])} failed: {last}")
