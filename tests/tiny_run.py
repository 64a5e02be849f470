"""A run of a few seconds for tests: corpus, vocabulary, settings, and the command line on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

from mindplm.checkpoint import Checkpoint, RunFolder
from mindplm.tokenizers.vocab import build_vocab, write_vocab

VERSES = (
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "The moon is bright tonight and the river runs to the sea.",
)
CONFIG = """\
family: cpm_bee
model: {{hidden_size: {hidden}, num_heads: 2, head_dim: 16, ffn_size: {ffn}, num_layers: 2,
  num_distance_buckets: 16, num_segment_buckets: 64, max_distance: 64}}
tokenizer: {{path: "{folder}/vocab.txt"}}
runtime: {{device: cpu}}
data: {{folder: "{folder}/rows", seq_len: 64, max_ext: 16, repeat: 2,
  train: [{{path: "{folder}/train.jsonl", tasks: {{lm: 1, write: 1, infill: 1}}}}],
  valid: [{{path: "{folder}/valid.jsonl", tasks: {{write: 1}}}}]}}
optim: {{lr: 1e-2, warmup_steps: 3}}
train: {{output: "{folder}/run", steps: {steps}, batch_size: 4, log_every: 1}}
"""


def texts(count: int, first: int = 0) -> list[dict[str, str]]:
    """Short documents that all differ."""
    made = []
    for i in range(first, first + count):
        verse = VERSES[i % len(VERSES)]
        made.append({"text": verse[i % 7 :] + verse[: i % 7] + str(i)})
    return made


def write_lines(path: Path, values: list[Any]) -> None:
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
    path.write_text("".join(lines), encoding="utf-8")


def write_run(folder: Path, *, steps: int = 12, hidden: int = 32, ffn: int = 48) -> Path:
    """Writes corpus, vocabulary (about 200 entries) and settings; returns the settings' file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "train.jsonl", texts(40))
    write_lines(folder / "valid.jsonl", texts(6, first=100))
    lines = build_vocab(VERSES * 3, 300, min_char_count=1, min_word_count=3)
    write_vocab(lines, folder / "vocab.txt")
    path = folder / "run.yaml"
    path.write_text(
        CONFIG.format(folder=folder, steps=steps, hidden=hidden, ffn=ffn), encoding="utf-8"
    )
    return path


def command(verb: str, config: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "mindplm", verb, "-c", str(config), *overrides]


def start(verb: str, config: Path, *overrides: str) -> subprocess.Popen[str]:
    """Starts the command line in a process of its own."""
    return subprocess.Popen(
        command(verb, config, *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Waits for a process; its exit status and everything that it printed."""
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out


def run(verb: str, config: Path, *overrides: str) -> str:
    """Runs a verb that must succeed; returns what it printed."""
    status, out = finish(start(verb, config, *overrides))
    assert status == 0, out
    return out


# Values of metrics.jsonl that depend on how fast the machine is.
_CLOCK = (
    "time",
    "train/step_ms",
    "train/tokens_per_s",
    "train/wait",
    "train/mfu",
    "train/memory_gb",
)


def numbers(run_folder: Path) -> list[dict[str, float]]:
    """The reports of metrics.jsonl without what the clock gives; floats are exact in JSON."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in _CLOCK} for record in records]


def last_step(run_folder: Path) -> int:
    """The last step that was reported so far; 0 if none was."""
    path = run_folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    return json.loads(whole[-1])["step"] if whole else 0


def newest(run_folder: Path) -> Checkpoint:
    found = RunFolder(run_folder).newest()
    assert found is not None
    return found


def assert_same_state(left: Checkpoint, right: Checkpoint) -> None:
    """Weights, moments, step and the rest of the training state are equal, bit for bit."""
    ours, theirs = left.train(), right.train()
    assert ours is not None and theirs is not None
    assert (ours.step, ours.meta) == (theirs.step, theirs.meta)
    assert_same_arrays(left.weights(), right.weights())
    assert_same_arrays(ours.arrays, theirs.arrays)


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.tobytes() == right[name].tobytes(), name
