"""The arguments of `mindplm convert`, shared with tools/convert_weights.py."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .bin, .pt or .safetensors file, or a folder with these (with --back: a checkpoint)",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--family", default="cpm_bee", help="default cpm_bee")
    parser.add_argument(
        "--dtype",
        default="keep",
        help="float16, bfloat16, float32 or keep (default)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the original's JSON; default: config.json, or a preset"
    )
    parser.add_argument(
        "--vocab", metavar="FILE", help="default: vocab.txt or bee.txt beside the tensors"
    )
    parser.add_argument("--back", metavar="FLAVOUR", help="from ours to the names of openbmb or hf")
    parser.add_argument(
        "--verify", action="store_true", help="read all again and compare checksums of tensors"
    )


def run(args: argparse.Namespace) -> None:
    """Converts and prints the report."""
    from mindplm import convert, runtime

    runtime.setup_log()
    report = convert.convert(
        args.source,
        args.out,
        family=args.family,
        dtype=args.dtype,
        config=args.config,
        vocab=args.vocab,
        back=args.back,
        verify=args.verify,
    )
    print(report)
