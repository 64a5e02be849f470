"""Load: how soon a checkpoint writes, and what share of training waits for the loader.

A made-up checkpoint is read by a new process, which writes two texts; with a cache of compiled
graphs once more. The second row is a run of `mindplm pretrain` on prepared rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from synthetic_checkpoint import DTYPES, random_array, vocabulary

from benchmarks import real_run
from benchmarks.machine import Result
from benchmarks.probes import probe
from mindplm import checkpoint, families, tensors
from mindplm.errors import UserError
from mindplm.strict import to_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument("--vocab-size", type=int, default=86583, help="entries (default 86583)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the file")
    parser.add_argument("--new", type=int, default=8, help="tokens written (default 8)")
    parser.add_argument("--rows", type=int, default=4, help="of a training batch (default 4)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--steps", type=int, default=12, help="of the training (default 12)")
    parser.add_argument("--folder", default="", help="for all files; default: a temporary one")


def run(args: argparse.Namespace) -> list[Result]:
    """Rows of seconds and of the loader."""
    entry = families.family("cpm_bee")
    if args.preset not in entry.presets:
        raise UserError(f"--preset {args.preset}, accepted: {', '.join(entry.presets)}")
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}, expected at least 2")
    config = dataclasses.replace(entry.presets[args.preset], vocab_size=args.vocab_size)
    with tempfile.TemporaryDirectory(dir=args.folder or None) as name:
        folder = Path(name)
        size = _write(folder / "model", config, args.dtype)
        rows, texts = [], set()
        for what, cache in (("no cache", ""), ("written", "cache"), ("read", "cache")):
            job: dict[str, Any] = {"folder": str(folder / "model"), "prompt": "A B C"}
            job |= {"new": args.new, "cache": cache and str(folder / cache)}
            found = probe("load", **job)
            seconds = found["loaded s"] - found["import s"]
            found |= {"file MB": size / 1e6, "read MB/s": size / 1e6 / seconds}
            found["memory MB"] = found.pop("memory") / 1e6
            texts.add(found.pop("text"))
            rows.append({"what": f"load, graphs {what}", **found})
        if len(texts) > 1:
            raise UserError(f"what is written depends on the cache: {sorted(texts)}")
        settings = real_run.prepared(
            folder, preset=args.preset, rows=args.rows, seq_len=args.seq_len, steps=args.steps
        )
        rows.append({"what": "pretrain", **real_run.run(settings, "run")})
    return rows


def _write(folder: Path, config: Any, dtype: str) -> int:
    """Writes a checkpoint of ours; returns the bytes of its tensors."""
    shapes = families.family("cpm_bee").part("shapes")(config)
    weights = {n: random_array(n, shape, DTYPES[dtype], 0) for n, shape in shapes.items()}
    checkpoint.write(
        folder,
        family="cpm_bee",
        model_config=to_plain(config),
        weights=weights,
        tokenizer_files=vocabulary(config.vocab_size).files(),
    )
    return tensors.num_bytes(weights)
