"""Preprocess: tokens per second from JSON lines to packed rows in MindRecord files."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import Result, spread, timed
from mindplm import assets
from mindplm.config import DataConfig, SourceConfig, TokenizerConfig
from mindplm.data.draw import Settings
from mindplm.data.preprocess import preprocess
from mindplm.families import vocab_path
from mindplm.runtime import num_cores
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument(
        "--vocab", metavar="FILE", default="", help="vocabulary; default: the embedded one"
    )
    parser.add_argument("--corpus", choices=list(assets.CORPORA), default="poems", metavar="NAME")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 0], help="processes; 0: one for each core"
    )


def run(args: argparse.Namespace) -> list[Result]:
    """The same corpus with each number of processes."""
    tokenizer = CpmBeeTokenizer.from_file(vocab_path(TokenizerConfig(args.vocab)))
    source = SourceConfig(path=f"embedded:{args.corpus}", tasks={"lm": 2, "infill": 1})
    data = DataConfig(folder="rows", train=[source], seq_len=args.seq_len, max_ext=32)
    settings = Settings.of(data, seed=1)
    return [_measure(source, tokenizer, settings, workers, args) for workers in args.workers]


def _measure(
    source: SourceConfig,
    tokenizer: CpmBeeTokenizer,
    settings: Settings,
    workers: int,
    args: argparse.Namespace,
) -> Result:
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:

        def work() -> None:
            report.update(
                preprocess(
                    [source],
                    tokenizer,
                    settings,
                    Path(folder) / "rows",
                    workers=workers,
                    progress=False,
                )
            )

        time_s, times = timed(work, args.runs)
    return {
        "corpus": args.corpus,
        "processes": workers or num_cores(),
        "records": report["instances"],
        "rows": report["rows"],
        "tokens": report["tokens"],
        "tokens/s": report["tokens"] / time_s,
        "seconds": time_s,
        "spread": spread(times),
    }
