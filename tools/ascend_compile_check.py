"""Compiles the training step for Ascend on a machine without Ascend.

    python tools/ascend_compile_check.py --subset                a few small rows, under a minute
    python tools/ascend_compile_check.py --small                 all kinds of layouts, two layers
    python tools/ascend_compile_check.py --config FILE           a run's own layout
    python tools/ascend_compile_check.py --one-card              all operators, fp16 and bf16
    python tools/ascend_compile_check.py --families              other families, two layers
    python tools/ascend_compile_check.py --all --out FILE.md     every size and layout; for hours
    python tools/ascend_compile_check.py --memory FILE --out FILE.md   layouts that fit a card

Each row is one device of one layout: MindSpore's own front end compiles the graph that the trainer
would run there. That proves that shapes, types, cuts and communication are legal; nothing is run.
Before MindSpore sees a layout it is checked by us, and afterwards what each device holds is
compared with the shard plan. Exit status: 0 all compiled, 1 one failed, 2 one was refused by us.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ascend_check import report, rows, run, stand_ins

from mindplm import config as settings
from mindplm.errors import USER_ERROR, UserError
from mindplm.families import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    args = _arguments().parse_args(argv)
    try:
        return check(args)
    except (UserError, OSError) as error:
        print(f"ascend_compile_check: error: {error}", file=sys.stderr)
        return USER_ERROR


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="every size and layout")
    what.add_argument("--subset", action="store_true", help="a few small rows")
    what.add_argument("--families", action="store_true", help="the other families, 2 layers")
    what.add_argument("--small", action="store_true", help="all kinds of layouts, two layers")
    what.add_argument("--one-card", action="store_true", help="every operator on one card")
    what.add_argument("--config", metavar="FILE", help="the layout of a run")
    what.add_argument("--memory", metavar="FILE", help="count which layouts of a run fit; quick")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win")
    parser.add_argument("--size", nargs="+", choices=rows.SIZES, help="of --all only these sizes")
    parser.add_argument("--cards", nargs="+", type=int, help="only these numbers of cards")
    parser.add_argument(
        "--layers", type=int, default=0, metavar="N", help="of --all the first N layers a stage"
    )
    parser.add_argument("--few", action="store_true", help="first and last device of all, only")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="keep the table, and a JSON")
    parser.add_argument("--keep", action="store_true", help="do not repeat rows of --out")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for a row")
    parser.add_argument("--cache", type=Path, help="folder of the stand-ins")
    return parser


def chosen(args: argparse.Namespace) -> Iterator[rows.Row]:
    """The rows that the command line asks for."""
    if args.subset:
        yield from rows.subset()
    elif args.small:
        yield from rows.small()
    elif args.families:
        yield from rows.families()
    elif args.one_card:
        yield from rows.one_card()
    elif args.config:
        yield from of_config(args.config, args.overrides, args.few)
    else:
        for size in args.size or rows.SIZES:
            for layout in rows.LAYOUTS:
                if not args.cards or layout.cards in args.cards:
                    yield from rows.rows_of(size, layout, few=args.few, layers=args.layers)


def of_config(path: str, overrides: Sequence[str], few: bool) -> Iterator[rows.Row]:
    """The layout that a file asks for; vocabularies that are not here are not needed."""
    config = load_config(path, [*overrides, "runtime.device=ascend"])
    parallel = config.parallel
    layout = rows.Layout(
        parallel.devices,
        **{
            name: getattr(parallel, name)
            for name in (
                *("data", "model", "pipeline", "optimizer_shard", "recompute", "sequence"),
            )
        },
        micro_batches=config.accumulation,
        dtype=config.runtime.dtype,
    )
    tree = settings.to_dict(config)
    for rank in rows.ranks(layout, few):
        yield rows.Row(Path(path).stem, layout, rank, tree)


def check(args: argparse.Namespace) -> int:
    """Compiles and prints; writes after each row, so that a long run may be ended at any time."""
    if args.memory:
        text = report.fitting(args.memory, args.cards or (8, 16, 32, 64, 256))
        if args.out:
            report.put(args.out, text, report.MEMORY_BEGIN, report.MEMORY_END)
        else:
            print(text, end="")
        return 0
    environment = stand_ins.environment(args.cache)
    old = {report.key(r): r for r in report.read(args.out)} if args.out else {}
    results = dict(old) if args.keep else {}
    now = []
    for row in chosen(args):
        name = report.key(run.describe(row))
        if name in results and results[name]["result"] == run.COMPILED:
            continue
        result = run.compile_row(row, environment, args.timeout)
        results[name] = result
        now.append(result)
        _say(result)
        if args.out:
            report.write(args.out, list(results.values()))
    if not args.out:
        print(report.markdown(now))
    found = {result["result"] for result in now}
    return 1 if run.FAILED in found else USER_ERROR if run.REFUSED in found else 0


def _say(result: report.Result) -> None:
    words = (result[name] for name in ("size", "cards", "layout", "options", "type", "graph"))
    why = f": {result['why']}" if result["why"] else ""
    print(
        f"{' | '.join(str(word) for word in words)} | rank {result['rank']} | "
        f"{result['seconds']} s, {result['peak_gb']} GB | {result['result']}{why}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
