"""Tokenizer: megabytes of UTF-8 text to ids per second on one core."""

from __future__ import annotations

import argparse
import random

from benchmarks.machine import Result, spread, timed
from mindplm import assets
from mindplm.config import SourceConfig, TokenizerConfig
from mindplm.data.sources import Document, SourceReader
from mindplm.families import vocab_path
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer, escape

CORPORA = ("poems", "sanguo", "classics", "english")
CHUNK = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument(
        "--vocab", metavar="FILE", default="", help="vocabulary; default: the embedded one"
    )
    parser.add_argument(
        "--corpus", nargs="+", choices=list(assets.CORPORA), default=list(CORPORA), metavar="NAME"
    )


def texts(name: str) -> list[str]:
    """The texts of an embedded corpus, escaped."""
    source = SourceConfig(path=f"embedded:{name}")
    documents = [item for item in SourceReader(source) if isinstance(item, Document)]
    return [escape(document.fields["text"]) for document in documents]


def run(args: argparse.Namespace) -> list[Result]:
    """One long text, chunks in order, and chunks of all corpora mixed, as a batch would be."""
    tokenizer = CpmBeeTokenizer.from_file(vocab_path(TokenizerConfig(args.vocab)))
    results, everything = [], []
    for name in args.corpus:
        whole = "\n".join(texts(name))
        chunks = [whole[at : at + CHUNK] for at in range(0, len(whole), CHUNK)]
        everything += chunks
        results.append(_measure(tokenizer, f"{name}, one text", [whole], args.runs))
        results.append(_measure(tokenizer, f"{name}, {CHUNK} characters", chunks, args.runs))
    random.Random(0).shuffle(everything)
    results.append(_measure(tokenizer, f"all, {CHUNK} characters", everything, args.runs))
    return results


def _measure(tokenizer: CpmBeeTokenizer, name: str, pieces: list[str], runs: int) -> Result:
    num_bytes = sum(len(piece.encode()) for piece in pieces)
    num_tokens = sum(len(tokenizer.encode(piece)[0]) for piece in pieces)

    def work() -> None:
        for piece in pieces:
            tokenizer.encode(piece)

    time_s, times = timed(work, runs)
    return {
        "text": name,
        "texts": len(pieces),
        "MB": num_bytes / 1e6,
        "MB/s": num_bytes / 1e6 / time_s,
        "tokens/s": num_tokens / time_s,
        "spread": spread(times),
        "vocabulary": tokenizer.vocab_size,
    }
