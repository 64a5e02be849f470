"""The arguments of `mindplm convert`, shared with tools/convert_weights.py."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .bin, .pt or .safetensors file of a model or of LoRA adapters, or a folder with "
        "these, such as PEFT's (with --back: a checkpoint or an adapter folder)",
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
        "--vocab", metavar="FILE", help="default: the usual name beside the tensors, as vocab.txt"
    )
    parser.add_argument(
        "--words",
        metavar="HOW",
        help="how words are found: of bert lower, cased or a regular expression; of gpt1 rules, "
        "basic or exact, with +marks to add the marks of fine-tuning (rules+marks)",
    )
    parser.add_argument(
        "--back",
        metavar="FLAVOUR",
        help="from ours to the names and files of openbmb, hf, openai (gpt1) or megatron (cpm1; "
        "megatron:2 writes two shards); LoRA adapters also to the folder of peft",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all again and compare checksums of tensors"
    )

    parser.add_argument(
        "--base", metavar="CHECKPOINT", help="merge LoRA adapters into this checkpoint of ours"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="what the original's LoRA adapters were trained with (default 16; PEFT's say it)",
    )


def run(args: argparse.Namespace) -> None:
    """Converts and prints the report."""
    from mindplm import runtime
    from mindplm.convert import convert, convert_lora
    from mindplm.convert.lora import is_lora
    from mindplm.errors import ConfigError

    runtime.setup_log()
    same = {name: getattr(args, name) for name in ("family", "dtype", "back", "verify")}
    if is_lora(args.source):
        for option in ("config", "vocab", "words"):
            if getattr(args, option) is None:
                continue
            raise ConfigError(f"--{option} is for models; {args.source} holds LoRA adapters")
        print(convert_lora(args.source, args.out, base=args.base, alpha=args.alpha, **same))
        return
    if args.base is not None or args.alpha is not None:
        option = "--base" if args.base is not None else "--alpha"
        raise ConfigError(f"{option} is for LoRA adapters; {args.source} holds none")
    same |= {name: getattr(args, name) for name in ("config", "vocab", "words")}
    print(convert(args.source, args.out, **same))
