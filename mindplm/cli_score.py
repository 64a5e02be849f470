"""The verb that measures how likely given answers are: score."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mindplm.errors import DataError


def add_score(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm score`, beside -m."""
    from mindplm import cli_write

    cli_write.add_adapter(sub)
    sub.epilog = cli_write.STATUS
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", metavar="JSON", help="a record with its answers")
    what.add_argument("--file", metavar="IN.jsonl", help="one such record per line")
    sub.add_argument(
        "--choose",
        action="store_true",
        help='score each key under "options" as the answer, and name the best',
    )
    sub.add_argument(
        "--strict", action="store_true", default=None, help=cli_write.SWITCHES["strict"]
    )
    sub.add_argument(
        "--batch-size", type=cli_write.count, default=8, metavar="N", help="records at once"
    )


def score(args: argparse.Namespace) -> None:
    """Runs `mindplm score`: a JSON line for each record, and the whole at the end."""
    from mindplm import cli_write

    given = (
        [("", cli_write.parse(args.record))]
        if args.file is None
        else cli_write.read_lines(args.file)
    )
    config, running, _ = cli_write.settings_of(args)
    from mindplm.generate import load

    model, tokenizer = load(args.model, running, adapter=args.adapter, int8=args.int8)
    results = (_choices if args.choose else _scores)(args, given, config, model, tokenizer)
    failed = 0
    for (place, _), found in zip(given, results):
        if isinstance(found, DataError):
            if args.file is None:
                raise found
            failed += 1
            text = str(found)
            found = {"error": text if text.startswith(place) else f"{place}: {text}"}
        print(cli_write.line(found), flush=True)
    cli_write.refuse(failed, len(given), "in their places")


def _choices(args: argparse.Namespace, given: Any, config: Any, model: Any, tokenizer: Any) -> Any:
    """The line of each record: its likeliest option, or what is wrong with it."""
    from mindplm.generate.scoring import choose

    for _, record in given:
        if isinstance(record, DataError):
            yield record
            continue
        try:
            choice = choose(
                model, tokenizer, record, batch_size=args.batch_size, strict=config.strict
            )
        except DataError as error:
            yield error
            continue
        nats = [round(found.nats, 6) for found in choice.scores]
        yield {"best": choice.best, "answer": choice.answer, "nats": nats}


def _scores(args: argparse.Namespace, given: Any, config: Any, model: Any, tokenizer: Any) -> Any:
    """The line of each record: its score, or what is wrong with it; the whole on stderr."""
    from mindplm.generate.scoring import Score, score_each

    good = [record for _, record in given if not isinstance(record, DataError)]
    scores = score_each(
        model,
        tokenizer,
        good,
        batch_size=args.batch_size,
        strict=config.strict,
        buckets=config.buckets,
        progress=len(good) > args.batch_size,
    )
    left = iter(scores)
    for _, record in given:
        found = record if isinstance(record, DataError) else next(left)
        if isinstance(found, DataError):
            yield found
            continue
        line = {"nats": round(found.nats, 6), "tokens": found.num_tokens}
        yield {**line, "perplexity": round(found.perplexity, 6)}
    real = [item for item in scores if isinstance(item, Score)]
    if len(real) > 1:
        whole = Score(sum(s.nats for s in real), sum(s.num_tokens for s in real))
        print(f"mindplm: {len(real)} records, {whole}", file=sys.stderr)
