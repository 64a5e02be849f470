"""Preprocess: texts to packed rows, compared with the original's way (a plain baseline).

Both read the same synthetic corpus, in turn. The baseline works on a part of it, ends with batches
in memory and writes nothing; ours ends with MindRecord files. CPU rates do not depend on what else
the machine does. Loading MindSpore, about a second, is not counted; starting processes is.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import original_pipeline, texts
from benchmarks.machine import Result
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
    parser.add_argument(
        "--megabytes", type=float, default=30, help="size of the corpus (default 30)"
    )
    parser.add_argument(
        "--baseline-megabytes", type=float, default=2, help="of which the baseline reads so many"
    )
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of a row (default 2048)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 0], help="processes; 0: one for each core"
    )
    parser.add_argument(
        "--folder", default="", help="where corpus and rows are written; default: a temporary one"
    )


def run(args: argparse.Namespace) -> list[Result]:
    """The baseline, and ours with each number of processes."""
    vocab = vocab_path(TokenizerConfig(args.vocab))
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        corpus = Path(folder) / "corpus.jsonl"
        texts.write(corpus, int(args.megabytes * 1e6))
        results = [_baseline(corpus, vocab, args)]
        tokenizer = CpmBeeTokenizer.from_file(vocab)
        for workers in args.workers:
            results.append(_ours(corpus, tokenizer, workers, args))
    first = results[0]
    for result in results:
        result["x baseline (CPU)"] = result["tokens/CPU s"] / first["tokens/CPU s"]
    return results


def _baseline(corpus: Path, vocab: Path, args: argparse.Namespace) -> Result:
    with open(corpus, encoding="utf-8") as file:
        limit = args.baseline_megabytes * 1e6
        sizes = itertools.accumulate(len(line.encode()) for line in file)
        count = sum(1 for _ in itertools.takewhile(lambda size: size <= limit, sizes)) or 1
    with open(corpus, encoding="utf-8") as file:
        lines = list(itertools.islice(file, count))
    tokenizer = original_pipeline.Tokenizer(vocab.read_text("utf-8").split("\n"))
    found: dict[str, int] = {}

    def work() -> None:
        objects = original_pipeline.stored(lines, corpus.with_name("baseline"))
        made = original_pipeline.batches(objects, tokenizer, batch_size=32, max_length=args.seq_len)
        found["tokens"] = sum(int(batch["length"].sum()) for batch in made)

    seconds, cpu_seconds = _measured(work)
    size = sum(len(line.encode()) for line in lines)
    return _result("original's way", 1, size, found["tokens"], seconds, cpu_seconds)


def _ours(
    corpus: Path, tokenizer: CpmBeeTokenizer, workers: int, args: argparse.Namespace
) -> Result:
    source = SourceConfig(path=str(corpus), tasks={"lm": 1})
    data = DataConfig(folder="rows", train=[source], seq_len=args.seq_len, max_ext=32)
    settings = Settings.of(data, seed=1)
    report: dict[str, Any] = {}
    importlib.import_module("mindspore.mindrecord")

    def work() -> None:
        rows = corpus.with_name(f"rows{workers}")
        report.update(preprocess([source], tokenizer, settings, rows, workers=workers))

    seconds, cpu_seconds = _measured(work)
    size = corpus.stat().st_size
    return _result("ours", workers or num_cores(), size, report["tokens"], seconds, cpu_seconds)


def _measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and its children."""
    begin, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return time.perf_counter() - begin, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _result(
    name: str, processes: int, size: int, tokens: int, seconds: float, cpu_seconds: float
) -> Result:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pipeline": name,
        "processes": processes,
        "MB": size / 1e6,
        "tokens": tokens,
        "seconds": seconds,
        "tokens/s": tokens / seconds,
        "MB/s": size / 1e6 / seconds,
        "tokens/CPU s": tokens / cpu_seconds,
        "peak MB (of one process)": peak / 1024,
    }
