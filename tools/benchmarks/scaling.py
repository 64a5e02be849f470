"""Scaling: tokens per second and memory of training against the sizes; a table and a picture.

Writes scaling.json and scaling.png. Every point is a process of its own, so that its memory is its
own; one that fails is told and the others go on. Each curve changes one size of the base: 12 x 768,
vocabulary 86,583, 2,048 tokens a step, a quarter of the positions predicted. Points of "processes"
are runs of `mindplm pretrain` on the same two cores: one process with two threads, two with one.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks import real_run
from benchmarks.machine import BENCH, Result, describe, told
from mindplm import files
from mindplm.errors import UserError
from mindplm.runtime import num_cores

_RUN_STEPS = 6


class Base(NamedTuple):
    """Sizes of all points but for one of them."""

    preset: str
    vocab_size: int
    seq_len: int
    rows: int
    layers: int


class Curves(NamedTuple):
    """The base and the values of each curve."""

    base: Base
    seq_len: tuple[int, ...]
    rows: tuple[int, ...]
    layers: tuple[int, ...]
    vocab_size: tuple[int, ...]
    processes: tuple[int, ...] = (1, 2)


FULL = Curves(
    base=Base("small", 86583, 512, 4, 12),
    seq_len=(128, 256, 512, 1024, 2048),
    rows=(1, 2, 4, 8),
    layers=(3, 6, 12, 24),
    vocab_size=(8000, 30000, 86583, 160000),
)
QUICK = Curves(
    base=Base("tiny", 8000, 128, 4, 2),
    seq_len=(64, 128, 256),
    rows=(2, 4),
    layers=(2, 4),
    vocab_size=(4000, 8000),
)
NAMES = ("seq_len", "rows", "layers", "vocab_size", "processes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--quick", action="store_true", help="the tiny model, few points")
    parser.add_argument(
        "--curves", nargs="+", choices=NAMES, default=list(NAMES), help="(default: all)"
    )
    parser.add_argument("--out", default="scaling", metavar="FOLDER", help="(default scaling)")
    parser.add_argument("--folder", default="", help="for files of runs; default: a temporary one")


def run(args: argparse.Namespace) -> list[Result]:
    """A row for every point."""
    curves = QUICK if args.quick else FULL
    planned = [(name, value) for name in args.curves for value in getattr(curves, name)]
    results = []
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        for name, value in tqdm(planned, desc="scaling", unit="point"):
            row = {"curve": name, "value": value}
            try:
                if name == "processes":
                    row |= _ranks(curves.base, value, Path(folder))
                else:
                    row |= _step(curves.base, name, value, args.runs)
            except UserError as error:
                row["error"] = str(error)[:200]
            results.append(row)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found = {"base": curves.base._asdict(), "machine": describe(), "results": results}
    files.replace_file(out / "scaling.json", json.dumps(found, indent=1).encode())
    files.replace_file(out / "scaling.png", picture(results))
    return results


def _step(base: Base, name: str, value: int, runs: int) -> Result:
    """A point of `bench.py train`; sequences of another length come in the same sum of tokens."""
    sizes = {**base._asdict(), name: value}
    if name == "seq_len":
        sizes["rows"] = max(1, base.rows * base.seq_len // value)
    words = ["train", "--json", "--targets", "quarter", "--runs", str(runs)]
    for option, size in sizes.items():
        words += [f"--{option.replace('_', '-')}", str(size)]
    found = told([sys.executable, str(BENCH), *words])["results"][0]
    tokens = sizes["rows"] * sizes["seq_len"]
    kept = ("tokens/s", "ms", "of matrix rate", "memory GB", "first step s", "spread")
    return {"tokens": tokens, **{key: found[key] for key in kept}}


def _ranks(base: Base, processes: int, folder: Path) -> Result:
    """A point of `mindplm pretrain` on so many processes that share the cores."""
    settings = folder / "run.yaml"
    if not settings.exists():
        settings = real_run.prepared(
            folder, preset=base.preset, rows=base.rows, seq_len=base.seq_len, steps=_RUN_STEPS
        )
    threads = max(1, num_cores() // processes)
    found = real_run.run(settings, f"run{processes}", processes, f"runtime.threads={threads}")
    return {"tokens": base.rows * base.seq_len, **found}


def picture(results: list[Result]) -> bytes:
    """Speed above, memory below, a column for each curve; what failed is left out."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["curve"] for row in results))
    figure = Figure(figsize=(3.2 * len(names), 5.2), dpi=100, layout="tight")
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        points = list(_points(results, name))
        for line, key in enumerate(("tokens/s", "memory GB")):
            one: Any = axes[line][column]
            heights = [row[key] for _, row in points]
            one.plot([x for x, _ in points], heights, "o-")
            one.set_ylim(0, 1.1 * max(heights, default=1.0))
            one.set_xscale("log", base=2)
            values = [x for x, _ in points]
            one.set_xticks(values, [f"{x:,}" for x in values], rotation=30)
            one.minorticks_off()
            one.grid(alpha=0.3)
            if not column:
                one.set_ylabel(key)
        axes[1][column].set_xlabel(name)
    made = io.BytesIO()
    figure.savefig(made, format="png")
    return made.getvalue()


def _points(results: list[Result], name: str) -> Iterator[tuple[int, Result]]:
    for row in results:
        if row["curve"] == name and "error" not in row:
            yield row["value"], row
