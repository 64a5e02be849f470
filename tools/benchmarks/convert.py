"""Convert: speed and memory of bringing in a checkpoint, in turn with a copy on the same disk.

The checkpoint has the layout of the published one and random values. Both sides read files that
the system has in memory, if they fit there, and wait until what they wrote is on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import statistics
import tempfile
from pathlib import Path

import synthetic_checkpoint

from benchmarks.machine import Result, spread
from benchmarks.probes import probe
from mindplm import families


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="1b", help="of cpm_bee (default 1b: 2.1 GB)")
    parser.add_argument("--vocab-size", type=int, default=0, help="entries; 0: as the preset")
    parser.add_argument("--flavour", choices=("openbmb", "hf"), default="openbmb")
    parser.add_argument("--safetensors", action="store_true", help="not PyTorch's format")
    parser.add_argument("--folder", default="", help="for all files; default: a temporary one")


def run(args: argparse.Namespace) -> list[Result]:
    """A row for the conversion and one for the copy."""
    found: dict[str, list[Result]] = {"copy": [], "convert": []}
    with tempfile.TemporaryDirectory(dir=args.folder or None) as name:
        folder = Path(name)
        source = synthetic_checkpoint.write(
            args.preset,
            folder / "source",
            flavour=args.flavour,
            safetensors=args.safetensors,
            vocab_size=args.vocab_size,
        )
        for _ in range(args.runs):
            for what, results in found.items():
                out = folder / what
                results.append(probe(what, source=str(source), out=str(out)))
                shutil.rmtree(out)
    entry = families.family("cpm_bee")
    config = entry.presets[args.preset]
    config = dataclasses.replace(config, vocab_size=args.vocab_size or config.vocab_size)
    largest = 2 * max(math.prod(shape) for shape in entry.part("shapes")(config).values())
    rows = [_row(what, results, largest) for what, results in found.items()]
    for row in rows:
        row["of copy"] = row["MB/s"] / rows[0]["MB/s"]
    return rows


def _row(what: str, results: list[Result], largest: int) -> Result:
    """Medians; memory is the most of all runs."""
    seconds = [one["s"] for one in results]
    memory = max(one["memory"] for one in results)
    return {
        "what": what,
        "MB": results[0]["bytes"] / 1e6,
        "s": statistics.median(seconds),
        "MB/s": results[0]["bytes"] / 1e6 / statistics.median(seconds),
        "peak MB": memory / 1e6,
        "before MB": max(one["before"] for one in results) / 1e6,
        "largest tensor MB": largest / 1e6,
        "spread": spread(seconds),
    }
