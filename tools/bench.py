"""Measures how fast things are: python tools/bench.py VERB [--json] [--runs N] ...

Each verb is a module of tools/benchmarks with `add_arguments(parser)` and `run(args) -> results`.
The output names the machine, so that numbers can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import (
    compile,
    convert,
    generate,
    kernels,
    load,
    machine,
    preprocess,
    roofline,
    scaling,
    tokenizer,
    train,
)

from mindplm.errors import UserError

VERBS = {
    "tokenizer": tokenizer,
    "preprocess": preprocess,
    "generate": generate,
    "train": train,
    "load": load,
    "convert": convert,
    "compile": compile,
    "scaling": scaling,
    "roofline": roofline,
    "kernels": kernels,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--runs", type=int, default=5, help="runs; the median counts (default 5)")
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        text = str(module.__doc__).splitlines()[0]
        module.add_arguments(verbs.add_parser(name, parents=[common], help=text, description=text))
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error(f"--runs {args.runs}, expected at least 1")
    try:
        results = VERBS[args.verb].run(args)
    except (UserError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    found = {"bench": args.verb, "machine": machine.describe(), "results": results}
    if args.json:
        print(json.dumps(found))
        return 0
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print(machine.table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
