"""The verb that guesses masked words: fill."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm fill`, beside -m."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input", action="append", metavar="TEXT", help="a text with [MASK] in it (repeatable)"
    )
    what.add_argument("--file", metavar="FILE", help="a file with one such text a line")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="guesses for each mask (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line for each text")


def run(args: argparse.Namespace) -> None:
    """Guesses and prints."""
    import json

    from mindplm import runtime
    from mindplm.errors import ConfigError, DataError

    if args.top < 1:
        raise ConfigError(f"--top {args.top}, expected at least 1")
    texts = args.input
    if args.file:
        with open(args.file, encoding="utf-8") as file:
            try:
                texts = [line.rstrip("\r\n") for line in file if line.strip()]
            except UnicodeDecodeError as error:
                raise DataError(f"{args.file}: not UTF-8 (byte {error.start})") from None
        if not texts:
            raise DataError(f"{args.file} is empty, expected one text a line")
    runtime.setup_log()
    from mindplm.fill import fill

    for filled in fill(args.model, texts, args.top):
        if args.json:
            line = {"text": filled.text, "guesses": filled.guesses}
            print(json.dumps(line, ensure_ascii=False))
        else:
            print(filled)
