"""The verbs that write and score with a checkpoint: generate, score, chat."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mindplm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mindplm.checkpoint import Checkpoint
    from mindplm.config import GenerateConfig, RuntimeConfig
    from mindplm.generate.jobs import Settings

_SAMPLING = {
    "max_new_tokens": "most tokens written for a record",
    "min_new_tokens": "fewest tokens of a blank",
    "temperature": "sample with this temperature; 0: do not sample",
    "top_k": "sample among the k best tokens",
    "top_p": "sample among the best tokens of this probability",
    "min_p": "sample among tokens of this share of the best one's probability",
    "repetition_penalty": "at least 1; more avoids repetition",
}
_BEAMS = {
    "beams": "beams of the search",
    "num_best": "how many of the beams to return",
    "length_penalty": "exponent of the length in a beam's score",
}
_SWITCHES = {
    "per_blank": "max_new_tokens counts for each blank by itself",
    "strict": "refuse a '<' that opens no known tag instead of escaping it",
}


def add_generate(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm generate`, beside -m."""
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", metavar="TEXT", help="a text to be continued")
    what.add_argument(
        "--record", metavar="JSON", help='a record, such as {"input": "...", "<ans>": ""}'
    )
    what.add_argument("--file", metavar="IN.jsonl", help="one record or text per line, as JSON")
    sub.add_argument(
        "--out",
        metavar="OUT.jsonl",
        help="write the filled records there; with --file an interrupted run is gone on with",
    )
    sub.add_argument("--stream", action="store_true", help="print the text while it is written")
    sub.add_argument(
        "--examples", metavar="FILE.jsonl", help="records with answers that each prompt is shown"
    )
    _add_settings(sub, {**_SAMPLING, **_BEAMS})
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="records at once")


def add_chat(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm chat`, beside -m."""
    _add_settings(sub, _SAMPLING)
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")


def add_score(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm score`, beside -m."""
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", metavar="JSON", help="a record with its answers")
    what.add_argument("--file", metavar="IN.jsonl", help="one such record per line")
    sub.add_argument(
        "--choose",
        action="store_true",
        help='score each key under "options" as the answer, and name the best',
    )
    sub.add_argument("--strict", action="store_true", default=None, help=_SWITCHES["strict"])
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="records at once")


def _add_settings(sub: argparse.ArgumentParser, numbers: dict[str, str]) -> None:
    for name, text in numbers.items():
        sub.add_argument("--" + name.replace("_", "-"), metavar="N", help=text)
    for name, text in _SWITCHES.items():
        flag = "--" + name.replace("_", "-")
        sub.add_argument(flag, action="store_true", default=None, help=text)
    sub.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text (repeatable)"
    )


def settings_of(args: argparse.Namespace) -> tuple[GenerateConfig, RuntimeConfig, Checkpoint]:
    """The checkpoint's settings of generation, changed by -c FILE, key=value and flags."""
    import json

    from mindplm import checkpoint, config, strict
    from mindplm.yaml_io import load_yaml

    saved = checkpoint.read(args.model, verify=False)
    # Training's device need not be here, so its runtime section does not count.
    tree: dict[str, Any] = {"generate": (saved.run or {}).get("generate", {})}
    if args.config:
        given = load_yaml(args.config)
        tree.update({name: given[name] for name in ("generate", "runtime") if name in given})
    flags = [
        f"generate.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name in (*_SAMPLING, *_BEAMS, *_SWITCHES, "stop")
        if (value := getattr(args, name, None)) is not None
    ]
    overrides = [*args.overrides, *flags]
    tree = strict.apply_overrides(tree, overrides)
    odd = [name for name in tree if name not in ("generate", "runtime")]
    if odd:
        raise ConfigError(f"{args.verb} takes keys of generate and runtime only, got {odd[0]}")
    source = strict.Source(args.config or str(saved.folder), tuple(overrides))
    return (
        strict.build(config.GenerateConfig, tree["generate"], "generate", source),
        strict.build(config.RuntimeConfig, tree.get("runtime"), "runtime", source),
        saved,
    )


# --- generate -------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    """Runs `mindplm generate`."""
    if args.stream and args.file:
        raise ConfigError("--stream is for one record: --input or --record")
    if args.stream and args.out:
        raise ConfigError("--stream prints, it does not go with --out")
    prompt: Any = None if args.file else one_prompt(args)
    if args.file:
        open(args.file, "rb").close()
    config, running, saved = settings_of(args)
    examples = read_records(args.examples) if args.examples else []
    if args.file:
        _generate_file(args, _job_settings(args, config, examples, saved), running)
        return
    from mindplm import generate as writing

    if args.stream and config.num_best > 1:
        raise ConfigError("--stream shows one answer, it needs generate.num_best=1")
    model, tokenizer = writing.load(args.model, running)
    more = {"examples": examples, "seed": args.seed}
    if args.stream:
        _print_stream(writing.stream(model, tokenizer, prompt, config, **more), args, config)
        return
    print_results(writing.generate(model, tokenizer, [prompt], config, **more), args, config)


def _job_settings(
    args: argparse.Namespace, config: GenerateConfig, examples: list[Any], saved: Checkpoint
) -> Settings:
    import hashlib

    from mindplm.files import MANIFEST
    from mindplm.generate.jobs import Settings

    digest = hashlib.sha256((saved.folder / MANIFEST).read_bytes()).hexdigest()
    return Settings(config, args.seed, args.batch_size, examples, digest)


def _generate_file(args: argparse.Namespace, settings: Settings, running: RuntimeConfig) -> None:
    from pathlib import Path

    from mindplm.generate import load
    from mindplm.generate.jobs import FileJob

    job = FileJob(Path(args.file), Path(args.out) if args.out else None, settings)
    model, tokenizer = load(args.model, running)
    if args.out:
        print(f"mindplm: {job.run(model, tokenizer)}; {args.out}", file=sys.stderr)
        return
    # In order: what comes early waits for what stands before it.
    waiting: dict[int, Any] = {}
    turn = 0
    for number, result in job.results(model, tokenizer):
        waiting[number] = result
        while turn in waiting:
            print(_line(waiting.pop(turn)), flush=True)
            turn += 1


def one_prompt(args: argparse.Namespace) -> Any:
    """The prompt of --input or --record."""
    return args.input if getattr(args, "input", None) is not None else parse(args.record)


def parse(text: str) -> Any:
    """JSON from the command line."""
    from mindplm.generate.jobs import parse_line

    try:
        return parse_line(text.encode("utf-8", "surrogateescape"))
    except DataError as error:
        raise DataError(f"--record: {error}") from None


def read_records(path: str) -> list[Any]:
    """The values of a JSON-lines file; empty lines do not count.

    Raises:
        DataError: With the line that cannot be used.
    """
    from mindplm.generate.jobs import parse_line

    records = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    records.append(parse_line(line))
                except DataError as error:
                    raise DataError(f"{path}:{number}: {error}") from None
    if not records:
        raise DataError(f"{path} is empty, expected one record per line")
    return records


def print_results(results: list[Any], args: argparse.Namespace, config: GenerateConfig) -> None:
    """Prints or writes what was written for the one prompt of the command line."""
    lines = [_line(result) for result in results]
    if args.out:
        from pathlib import Path

        from mindplm.files import replace_file

        replace_file(Path(args.out), "".join(line + "\n" for line in lines).encode())
        return
    for line, result in zip(lines, results):
        if args.input is None:
            print(line)
            continue
        from mindplm.text import unescape

        for record in result if isinstance(result, list) else [result]:
            print(_shown_input(args.input, config) + unescape(record["<ans>"] or ""))


def _shown_input(text: str, config: GenerateConfig) -> str:
    from mindplm.text import unescape

    return unescape(text) if config.strict else text


def _line(result: Any) -> str:
    import json

    text = json.dumps(result, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(result)
    return text


def _print_stream(pieces: Any, args: argparse.Namespace, config: GenerateConfig) -> None:
    from mindplm.text import unescape

    path: tuple[str, ...] = ()
    if args.input is not None:
        print(_shown_input(args.input, config), end="", flush=True)
    begun = False
    for piece in pieces:
        if piece.path != path:
            print(("\n" if begun else "") + ".".join(piece.path) + ": ", end="")
            path = piece.path
        print(unescape(piece), end="", flush=True)
        begun = True
    print()


# --- score ----------------------------------------------------------------------------------------


def score(args: argparse.Namespace) -> None:
    """Runs `mindplm score`: a JSON line for each record, and the whole at the end."""
    import json

    records = [parse(args.record)] if args.file is None else read_records(args.file)
    config, running, _ = settings_of(args)
    from mindplm.generate import load
    from mindplm.generate.scoring import Score, choose
    from mindplm.generate.scoring import score as measure

    model, tokenizer = load(args.model, running)
    more = {"batch_size": args.batch_size, "strict": config.strict}
    if args.choose:
        for number, record in enumerate(records, start=1):
            try:
                choice = choose(model, tokenizer, record, **more)
            except DataError as error:
                raise DataError(f"record {number}: {error}") from None
            nats = [round(found.nats, 6) for found in choice.scores]
            line = {"best": choice.best, "answer": choice.answer, "nats": nats}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    buckets, progress = config.buckets, len(records) > args.batch_size
    scores = measure(model, tokenizer, records, buckets=buckets, progress=progress, **more)
    for found in scores:
        line = {"nats": round(found.nats, 6), "tokens": found.num_tokens}
        print(json.dumps({**line, "perplexity": round(found.perplexity, 6)}))
    if len(scores) > 1:
        whole = Score(sum(s.nats for s in scores), sum(s.num_tokens for s in scores))
        print(f"mindplm: {len(scores)} records, {whole}", file=sys.stderr)


# --- chat -----------------------------------------------------------------------------------------


def chat(args: argparse.Namespace) -> None:
    """Runs `mindplm chat`: a line is a turn; /new forgets the dialogue."""
    config, running, _ = settings_of(args)
    if config.beams > 1:
        raise ConfigError(f"chat takes generate.beams=1, got {config.beams}")
    from mindplm.generate import load
    from mindplm.generate.chat import Chat
    from mindplm.text import unescape

    model, tokenizer = load(args.model, running)
    dialogue = Chat(model, tokenizer, config, seed=args.seed)
    if sys.stdin.isatty():
        print("mindplm: /new forgets the dialogue, Ctrl-D ends it", file=sys.stderr)
    while (line := _turn()) is not None:
        if line == "/new":
            dialogue.reset()
        elif line:
            before = dialogue.dropped
            try:
                for piece in dialogue.say(line):
                    print(unescape(piece), end="", flush=True)
            except DataError as error:
                print(f"mindplm: error: {error}", file=sys.stderr)
                continue
            print(flush=True)
            if dialogue.dropped > before:
                print(
                    f"mindplm: the window is full, the oldest {dialogue.dropped} turns are left "
                    "out now",
                    file=sys.stderr,
                )


def _turn() -> str | None:
    """The next line, None at the end."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise DataError("the input is not UTF-8 text") from None
    return line.strip() if line else None
