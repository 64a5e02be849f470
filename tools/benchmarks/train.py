"""Train: tokens per second of a CPM-Bee training step, and what part of the machine it uses.

Default shape: 12 x 768, vocabulary 86,583, 4 rows of 512 tokens, fp32. "needed" counts the matrix
products that the step cannot do without: those of predicted positions, not of all.
With --torch a PyTorch network of ours takes turns, each side in processes of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import train_inputs
from benchmarks.machine import BENCH, Result, since_start_s, spread, timed, told
from benchmarks.roofline import matrix_rate
from mindplm import families, runtime
from mindplm.config import OptimConfig, RuntimeConfig
from mindplm.errors import UserError
from mindplm.strict import to_plain

FORMS = {"torch reference": "reference", "torch good": "good"}
_TORCH = Path(__file__).with_name("torch_cpm_bee.py")
_SAME = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument("--vocab-size", type=int, default=86583, help="entries (default 86583)")
    parser.add_argument("--rows", type=int, default=4, help="of a batch (default 4)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument(
        "--targets", choices=("quarter", "all"), nargs="+", default=["quarter", "all"],
        help="predicted positions",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=0, help="0: as the preset")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--cache", metavar="FOLDER", default="", help="runtime.compile_cache")
    parser.add_argument("--torch", action="store_true", help="PyTorch in turn with ours")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default 2)")


def run(args: argparse.Namespace) -> list[Result]:
    """A row for each number of targets and each side."""
    entry = families.family("cpm_bee")
    if args.preset not in entry.presets:
        raise UserError(f"--preset {args.preset}, accepted: {', '.join(entry.presets)}")
    if args.rows < 1 or args.seq_len < 16 or args.rounds < 1:
        raise UserError("expected --rows and --rounds of at least 1, --seq-len of at least 16")
    config = dataclasses.replace(entry.presets[args.preset], vocab_size=args.vocab_size)
    config = dataclasses.replace(config, num_layers=args.layers or config.num_layers)
    if config.no_attention or config.no_ffn:
        raise UserError(f"--preset {args.preset} leaves parts of layers out; choose a whole one")
    rows: list[Result] = []
    for kind in args.targets:
        rows += _in_turns(args, config, kind) if args.torch else [_ours(args, config, kind)]
    return rows


def num_targets(args: argparse.Namespace, kind: str) -> int:
    """Predicted positions of a row."""
    return args.seq_len if kind == "all" else args.seq_len // 4


def _row(args: argparse.Namespace, config: Any, kind: str, found: Result) -> Result:
    """What is told of one side, from the seconds of its steps."""
    median = statistics.median(found["seconds"])
    tokens, wanted = args.rows * args.seq_len, args.rows * num_targets(args, kind)
    flops = families.family("cpm_bee").part("step_flops")
    needed = flops(config, tokens=tokens, targets=wanted, seq_len=args.seq_len)
    return {
        "side": found["side"],
        "targets": kind,
        "tokens/s": tokens / median,
        "ms": 1e3 * median,
        "needed GFLOP/s": needed / median / 1e9,
        "matrix GFLOP/s": found["rate"] / 1e9,
        "of matrix rate": needed / median / found["rate"],
        "loss": found["loss"],
        "spread": spread(found["seconds"]),
    }


def _ours(args: argparse.Namespace, config: Any, kind: str) -> Result:
    """Our step in this process."""
    runtime.setup(RuntimeConfig(threads=args.threads))
    from mindplm.graph_cache import GraphCache
    from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
    from mindplm.models.cpm_bee.config import SHARED_COLUMNS
    from mindplm.train.optim import Adam
    from mindplm.train.step import Numbers, Report, TrainStep

    cell = CpmBee(config)
    train_inputs.fill(cell, to_plain(config))
    optimizer = Adam(list(cell.trainable_params()), OptimConfig())
    loss = CpmBeeLoss(cell)
    weights = [*loss.get_parameters(), *optimizer.get_parameters()]
    kept = GraphCache(args.cache, to_plain(config), weights)
    step = TrainStep(loss, optimizer, clip_norm=1.0, num_micro=1, cache=kept)
    wanted = num_targets(args, kind)
    columns = train_inputs.columns(to_plain(config), args.rows, args.seq_len, wanted)
    losses: list[float] = []

    def one() -> None:
        done = len(losses)
        numbers = Numbers(args.rows * wanted, [optimizer.rates(1e-4, done)], done)
        report = Report.of(step(columns, set(SHARED_COLUMNS), numbers).asnumpy())
        assert report.moved and np.isfinite(report.loss)
        losses.append(report.loss)

    begin = time.perf_counter()
    one()
    first = {"first step s": time.perf_counter() - begin, "since start s": since_start_s()}
    _, seconds = timed(one, args.runs)
    memory = runtime.peak_memory_bytes()
    rate = matrix_rate(runs=args.runs)
    found = {"side": "mindplm", "seconds": seconds, "rate": rate, "loss": losses[0]}
    row = {**_row(args, config, kind, found), **first, "memory GB": memory / 1e9}
    return {**row, "seconds": seconds, "losses": losses}


def _in_turns(args: argparse.Namespace, config: Any, kind: str) -> list[Result]:
    """All sides, round by round; the loss of the first step must be the same."""
    found: dict[str, Result] = {}
    for _ in range(args.rounds):
        for side in ("mindplm", *FORMS):
            one = (
                _own_process(args, kind) if side == "mindplm" else _torch(args, config, kind, side)
            )
            entry = found.setdefault(side, {"side": side, "seconds": [], "rates": []})
            entry["seconds"] += one["seconds"]
            entry["loss"] = one["loss"]
            if side == "mindplm":
                entry["rates"].append(one["matrix GFLOP/s"] * 1e9)
    rate = statistics.median(found["mindplm"]["rates"])
    rows = [_row(args, config, kind, {**entry, "rate": rate}) for entry in found.values()]
    for row in rows:
        if abs(row["loss"] - rows[0]["loss"]) > _SAME * abs(rows[0]["loss"]):
            raise UserError(f"{row['side']} has loss {row['loss']}, ours is {rows[0]['loss']}")
        row["ours faster"] = row["ms"] / rows[0]["ms"]
    return rows


def _own_process(args: argparse.Namespace, kind: str) -> Result:
    """Our side as `bench.py train` without PyTorch gives it."""
    words = ["train", "--json", "--targets", kind, "--preset", args.preset]
    for name in ("runs", "vocab_size", "rows", "seq_len", "layers", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return told([sys.executable, str(BENCH), *words])["results"][0]


def _torch(args: argparse.Namespace, config: Any, kind: str, side: str) -> Result:
    """A form of the PyTorch side."""
    from mindplm.nn.position import distance_buckets

    job = {
        "form": FORMS[side],
        "sizes": to_plain(config),
        "buckets": distance_buckets(config.num_distance_buckets, config.max_distance).tolist(),
        "targets": num_targets(args, kind),
        **{name: getattr(args, name) for name in ("rows", "seq_len", "runs", "threads")},
    }
    return told([args.torch_python, str(_TORCH), json.dumps(job)])
