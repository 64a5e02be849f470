"""Compile: how long it takes from the start of a program to its first training step.

Every start is a process of its own. Imports and --help are medians of --runs starts. The training
step is that of `bench.py train` (quarter of the positions predicted); "s" of it counts from the
start of the process: imports, made-up weights, compilation, the step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import BENCH, Result, spread, told
from mindplm.errors import UserError

_IMPORTS = """
import mindplm
from mindplm import runtime
from mindplm.config import RuntimeConfig
runtime.setup(RuntimeConfig())
mindplm.load, mindplm.train, mindplm.generate
import mindplm.train.trainer, mindplm.generate.model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument("--vocab-size", type=int, default=86583, help="entries (default 86583)")
    parser.add_argument("--rows", type=int, default=4, help="of a batch (default 4)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--layers", type=int, nargs="+", default=[12], help="(default 12)")
    parser.add_argument("--folder", default="", help="of the cache; default: a temporary one")


def run(args: argparse.Namespace) -> list[Result]:
    """Rows of seconds."""
    rows = [
        _timed("python -c 'import mindplm'", ["-c", "import mindplm"], args.runs),
        _timed("all imports and set-up", ["-c", _IMPORTS], args.runs),
        _timed("mindplm --help", ["-m", "mindplm", "--help"], args.runs),
    ]
    for layers in args.layers:
        with tempfile.TemporaryDirectory(dir=args.folder or None) as cache:
            for name, folder in (
                ("no cache", ""),
                ("cache is written", cache),
                ("cache is read", cache),
            ):
                rows.append({"what": f"first step, {name}", **_step(args, layers, folder)})
            rows[-1]["cache MB"] = _size(Path(cache)) / 1e6
    losses = {tuple(row["losses"]) for row in rows if "losses" in row}
    if len(losses) > len(args.layers):
        raise UserError(f"losses depend on the cache: {sorted(losses)}")
    return rows


def _timed(name: str, words: list[str], runs: int) -> Result:
    """Starts of the interpreter; the first one, which fills the disk's cache, does not count."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        seconds.append(time.perf_counter() - begin)
        if done.returncode:
            raise UserError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    return {"what": name, "s": statistics.median(seconds[1:]), "spread": spread(seconds[1:])}


def _step(args: argparse.Namespace, layers: int, cache: str) -> Result:
    words = ["train", "--json", "--runs", "1", "--targets", "quarter", "--layers", str(layers)]
    for name in ("preset", "vocab_size", "rows", "seq_len"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    found = told([sys.executable, str(BENCH), *words, "--cache", cache])["results"][0]
    return {
        "s": found["since start s"],
        "layers": layers,
        "first step s": found["first step s"],
        "step s": found["ms"] / 1e3,
        "losses": found["losses"],
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
