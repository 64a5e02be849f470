"""The verbs that write with a checkpoint: generate and chat; what they share with score."""

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
SWITCHES = {
    "per_blank": "max_new_tokens counts for each blank by itself",
    "strict": "refuse a '<' that opens no known tag instead of escaping it",
}
STATUS = (
    "With --file a record that cannot be used does not stop the others: its error stands in its "
    "place, all are counted, and the exit status is 2."
)


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
    add_adapter(sub)
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")
    sub.add_argument("--batch-size", type=count, default=8, metavar="N", help="records at once")
    sub.epilog = STATUS


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1 on")
    return int(text)


def add_adapter(sub: argparse.ArgumentParser) -> None:
    """The arguments --adapter and --int8."""
    sub.add_argument(
        "--adapter", metavar="FOLDER", help="LoRA adapters to merge into the weights when loading"
    )
    sub.add_argument(
        "--int8", action="store_true", help="weights of projections as int8: less memory, slower"
    )


def add_chat(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm chat`, beside -m."""
    add_adapter(sub)
    _add_settings(sub, _SAMPLING)
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")
    sub.add_argument(
        "--system", default="", metavar="TEXT", help="stands before all turns and is never left out"
    )


def _add_settings(sub: argparse.ArgumentParser, numbers: dict[str, str]) -> None:
    for name, text in numbers.items():
        sub.add_argument("--" + name.replace("_", "-"), metavar="N", help=text)
    for name, text in SWITCHES.items():
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
        for name in (*_SAMPLING, *_BEAMS, *SWITCHES, "stop")
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
    if args.out:
        _check_output(args.out)
    config, running, saved = settings_of(args)
    examples = read_records(args.examples) if args.examples else []
    if args.file:
        _generate_file(args, _job_settings(args, config, examples, saved), running)
        return
    from mindplm import generate as writing

    if args.stream and config.num_best > 1:
        raise ConfigError("--stream shows one answer, it needs generate.num_best=1")
    model, tokenizer = writing.load(args.model, running, adapter=args.adapter, int8=args.int8)
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

    digest = hashlib.sha256((saved.folder / MANIFEST).read_bytes())
    if args.adapter:
        from mindplm.merged import open_adapter

        digest.update((open_adapter(args.adapter, saved).folder / MANIFEST).read_bytes())
    if args.int8:
        digest.update(b"int8")
    return Settings(config, args.seed, args.batch_size, examples, digest.hexdigest())


def _check_output(path: str) -> None:
    from pathlib import Path

    from mindplm.generate.jobs import check_output

    check_output(Path(path))


def refuse(failed: int, total: int, where: str) -> None:
    """Ends with an error if records could not be used."""
    if failed:
        raise DataError(f"{failed} of {total} records could not be used; see their errors {where}")


def _generate_file(args: argparse.Namespace, settings: Settings, running: RuntimeConfig) -> None:
    from pathlib import Path

    from mindplm.generate import load
    from mindplm.generate.jobs import FileJob, is_error

    job = FileJob(Path(args.file), Path(args.out) if args.out else None, settings)
    model, tokenizer = load(args.model, running, adapter=args.adapter, int8=args.int8)
    if args.out:
        report = job.run(model, tokenizer)
        print(f"mindplm: {report}; {args.out}", file=sys.stderr)
        refuse(report.failed, report.total, f"in {args.out}")
        return
    # In order: what comes early waits for what stands before it.
    waiting: dict[int, Any] = {}
    turn = failed = 0
    for number, result in job.results(model, tokenizer):
        waiting[number] = result
        while turn in waiting:
            failed += is_error(waiting[turn])
            print(line(waiting.pop(turn)), flush=True)
            turn += 1
    refuse(failed, job.report.total, "in their places")


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
    records = [value for _, value in read_lines(path)]
    for value in records:
        if isinstance(value, DataError):
            raise value
    return records


def read_lines(path: str) -> list[tuple[str, Any]]:
    """(file:line, value or what is wrong with it) of the lines that are not empty."""
    from mindplm.generate.jobs import parse_line

    records: list[tuple[str, Any]] = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}:{number}"
                try:
                    records.append((place, parse_line(line)))
                except DataError as error:
                    records.append((place, DataError(f"{place}: {error}")))
    if not records:
        raise DataError(f"{path} is empty, expected one record per line")
    return records


def print_results(results: list[Any], args: argparse.Namespace, config: GenerateConfig) -> None:
    """Prints or writes what was written for the one prompt of the command line."""
    lines = [line(result) for result in results]
    if args.out:
        from pathlib import Path

        from mindplm.files import replace_file

        replace_file(Path(args.out), "".join(text + "\n" for text in lines).encode())
        return
    for text, result in zip(lines, results):
        if args.input is None:
            print(text)
            continue
        from mindplm.text import unescape

        for record in result if isinstance(result, list) else [result]:
            print(_shown_input(args.input, config) + unescape(record["<ans>"] or ""))


def _shown_input(text: str, config: GenerateConfig) -> str:
    from mindplm.text import unescape

    return unescape(text) if config.strict else text


def line(result: Any) -> str:
    """A result as a line of JSON."""
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


# --- chat -----------------------------------------------------------------------------------------


def chat(args: argparse.Namespace) -> None:
    """Runs `mindplm chat`: a line is a turn; /new forgets the dialogue."""
    config, running, _ = settings_of(args)
    if config.beams > 1:
        raise ConfigError(f"chat takes generate.beams=1, got {config.beams}")
    from mindplm.generate import load
    from mindplm.generate.chat import Chat
    from mindplm.text import unescape

    model, tokenizer = load(args.model, running, adapter=args.adapter, int8=args.int8)
    dialogue = Chat(model, tokenizer, config, seed=args.seed, system=args.system)
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
