"""The command line: mindplm VERB -c FILE key=value ...

Each verb imports what it needs inside its function, so that --help is instant. Exit status: 0 fine,
2 something that the user can mend (also when some records of a file could not be used and the
others were), 1 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mindplm import __version__
from mindplm.errors import FAULT, INTERRUPTED, OK, USER_ERROR, ConfigError, UserError

if TYPE_CHECKING:
    from mindplm.checkpoint import Checkpoint
    from mindplm.config import RunConfig

_USER_OS_ERRORS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    try:
        args.run(args)
        sys.stdout.flush()
        return OK
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except Exception as error:
        if args.debug:
            raise
        if _is_users(error):
            _say(f"error: {_message(error)}")
            return USER_ERROR
        name = type(error).__name__
        _say(f"internal error: {name}: {_message(error)} (--debug shows the traceback)")
        return FAULT


def _is_users(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error, (UserError, *_USER_OS_ERRORS))


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) or len(text) <= 300 else text[:300] + " ..."


def _say(text: str) -> None:
    print(f"mindplm: {text}", file=sys.stderr)


# --- arguments ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"mindplm: error: {message} (see {self.prog} --help)\n")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args, rest = _parser().parse_known_args(argv)
    # argparse takes one run of key=value texts only; later ones are here.
    odd = [text for text in rest if text.startswith("-")]
    if odd or (rest and not hasattr(args, "overrides")):
        _Parser(prog=f"mindplm {args.verb}").error(f"unknown argument {(odd or rest)[0]}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    args.debug = getattr(args, "debug", False)
    return args


def _parser() -> argparse.ArgumentParser:
    from mindplm import cli_finetune, cli_measure, cli_score, cli_write

    common = _Parser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    parser = _Parser(
        prog="mindplm", parents=[common], description="CPM-Bee and its school on MindSpore."
    )
    parser.add_argument("--version", action="version", version=f"mindplm {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=_Parser, title="verbs"
    )

    def verb(run: Any, text: str, config: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(run.__name__[1:], parents=[common], help=text, description=text)
        sub.set_defaults(run=run)
        if config:
            sub.add_argument(
                "-c", "--config", metavar="FILE", required=config == "required", help="settings"
            )
            sub.add_argument(
                "overrides",
                nargs="*",
                default=[],
                metavar="key=value",
                help="settings that win over the file's, such as optim.lr=1e-4",
            )
        return sub

    from mindplm import cli_convert, cli_fill

    cli_convert.add_arguments(verb(_convert, "Bring a published checkpoint into ours, or back."))
    _add_vocab(verb(_vocab, "Build a vocabulary file from texts."))
    verb(_preprocess, "Turn texts and records into rows for training.", "required")
    verb(_pretrain, "Train a model from scratch, or go on with it.", "required")
    verb(_finetune, "Train a checkpoint on, or adapters on it; keeps the best.", "required")
    cli_finetune.add_merge(verb(_merge, "Put adapters into the weights of their base."))
    sub = verb(_check, "Say what is in data files; status 2 if some cannot be used.", "optional")
    cli_finetune.add_check(sub)
    sub = verb(_evaluate, "Measure a checkpoint on validation data or on tasks.", "optional")
    _add_model(sub)
    cli_measure.add_evaluate(sub)
    for run, add, text in (
        (_generate, cli_write.add_generate, "Write with a checkpoint."),
        (_chat, cli_write.add_chat, "Talk with a checkpoint; reads turns from the input."),
        (_score, cli_score.add_score, "Measure how likely given answers are."),
    ):
        sub = verb(run, text, "optional")
        _add_model(sub)
        add(sub)
    sub = verb(_fill, "Guess masked words with a masked language model.")
    _add_model(sub)
    cli_fill.add_arguments(sub)
    sub = verb(_show, "Print all settings and the size of the model; runs nothing.", "required")
    sub.add_argument("--keys", action="store_true", help="print what each key means instead")
    verb(_list, "List the families and presets.")
    return parser


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-m",
        "--model",
        metavar="FOLDER",
        required=True,
        help="a checkpoint, or a run folder for its newest one",
    )


def _add_vocab(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="texts, or JSON lines with texts"
    )
    sub.add_argument(
        "--family",
        default="cpm_bee",
        help="whose kind of vocabulary: cpm_bee (default), gpt1 (byte pairs), cpm1 (SentencePiece)",
    )
    sub.add_argument("--size", type=int, default=8000, help="most entries (default 8000)")
    sub.add_argument("--out", required=True, metavar="FILE", help="the vocabulary file")
    sub.add_argument(
        "--field", action="append", default=[], help="of JSON lines only this key (repeatable)"
    )
    sub.add_argument(
        "--min-char-count", type=int, default=2, metavar="N", help="characters from N times on"
    )
    sub.add_argument(
        "--min-word-count", type=int, default=4, metavar="N", help="words from N times on"
    )


# --- verbs ----------------------------------------------------------------------------------------


def _config(args: argparse.Namespace) -> RunConfig:
    from mindplm import families, runtime

    runtime.setup_log()
    return families.load_config(args.config, args.overrides)


def _convert(args: argparse.Namespace) -> None:
    from mindplm import cli_convert

    cli_convert.run(args)


def _vocab(args: argparse.Namespace) -> None:
    from mindplm import runtime
    from mindplm.tokenizers import vocab

    runtime.setup_log()
    if args.family != "cpm_bee":
        _vocab_of_family(args)
        return
    report = vocab.run(
        args.input,
        args.size,
        args.out,
        fields=args.field,
        min_char_count=args.min_char_count,
        min_word_count=args.min_word_count,
    )
    for name, value in report.items():
        print(f"{name}: {value}")


def _vocab_of_family(args: argparse.Namespace) -> None:
    from pathlib import Path

    from mindplm import families
    from mindplm.files import replace_file
    from mindplm.tokenizers import vocab

    entry = families.family(args.family)
    if not entry.vocab_build_ref:
        raise ConfigError(f"family {args.family} has no way to build a vocabulary")
    texts = (text for path in args.input for text in vocab.read_texts(path, args.field))
    made = entry.part("vocab_build")(texts, args.size)
    (data,) = made.files().values()
    replace_file(Path(args.out), data)
    print(f"entries: {made.vocab_size}")
    print(f"written: {args.out}")


def _preprocess(args: argparse.Namespace) -> None:
    config = _config(args)
    from mindplm import families
    from mindplm.data import prepare

    parts = families.family(config.family)
    tokenizer = parts.part("tokenizer").from_file(
        families.vocab_path(config.tokenizer, config.family)
    )
    prepare.run(config, tokenizer, families.rows_of(config.family, config.head))


def _pretrain(args: argparse.Namespace) -> None:
    config = _config(args)
    from mindplm import train

    result = train.pretrain(config)
    print(f"checkpoint: {result.checkpoint}")
    print(f"loss curve: {result.curve}")
    if result.valid is not None:
        print(f"validation: {result.valid}")
    if result.interrupted:
        raise KeyboardInterrupt


def _finetune(args: argparse.Namespace) -> None:
    from mindplm import cli_finetune

    cli_finetune.finetune(args)


def _merge(args: argparse.Namespace) -> None:
    from mindplm import cli_finetune

    cli_finetune.merge(args)


def _check(args: argparse.Namespace) -> None:
    from mindplm import cli_finetune

    cli_finetune.check(args)


def _evaluate(args: argparse.Namespace) -> None:
    from mindplm import checkpoint, runtime

    runtime.setup_log()
    if args.task:
        from mindplm import cli_measure

        cli_measure.run_tasks(args)
        return
    for option in ("data", "out", "adapter"):
        if getattr(args, option):
            raise ConfigError(f"--{option} goes with --task")
    config = _config_beside(args, checkpoint.read(args.model, verify=False))
    from mindplm import evaluate

    print(evaluate.run(args.model, config))


def _config_beside(args: argparse.Namespace, saved: Checkpoint) -> RunConfig:
    """The settings of -c FILE, or else those of the run that wrote the checkpoint."""
    from mindplm import families

    if args.config:
        return families.load_config(args.config, args.overrides)
    if saved.run is None:
        raise ConfigError(f"{saved.folder} has no run.yaml; give the settings with -c FILE")
    return families.config_from_dict(saved.run, str(saved.folder / "run.yaml"), args.overrides)


def _generate(args: argparse.Namespace) -> None:
    from mindplm import cli_write, runtime

    runtime.setup_log()
    cli_write.generate(args)


def _score(args: argparse.Namespace) -> None:
    from mindplm import cli_score, runtime

    runtime.setup_log()
    cli_score.score(args)


def _chat(args: argparse.Namespace) -> None:
    from mindplm import cli_write, runtime

    runtime.setup_log()
    cli_write.chat(args)


def _fill(args: argparse.Namespace) -> None:
    from mindplm import cli_fill

    cli_fill.run(args)


def _show(args: argparse.Namespace) -> None:
    config = _config(args)
    from mindplm import config as settings
    from mindplm import families, memory, strict

    if args.keys:
        print("\n".join(strict.help_lines(config)))
        return
    count = families.family(config.family).part("num_parameters")(config.model)
    print(f"# parameters: {count:,}")
    for line in [*settings.arithmetic(config), *memory.lines(config)]:
        print(f"# {line}")
    print(settings.dump(config), end="")


def _list(args: argparse.Namespace) -> None:
    import dataclasses

    from mindplm import families
    from mindplm.config import TokenizerConfig

    rows: list[tuple[str, ...]] = [
        ("family", "preset", "layers", "hidden", "vocabulary", "parameters")
    ]
    for name, entry in families.FAMILIES.items():
        for preset, model in entry.presets.items():
            if not model.vocab_size:
                path = families.vocab_path(TokenizerConfig(), name)
                size = entry.part("vocab_size")(path)
                model = dataclasses.replace(model, vocab_size=size)
            count = entry.part("num_parameters")(model)
            numbers = (model.num_layers, model.hidden_size, model.vocab_size, count)
            rows.append((name, preset, *(f"{number:,}" for number in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:2], widths)]
        right = [text.rjust(width) for text, width in zip(row[2:], widths[2:])]
        print("  ".join(left + right))
    print()
    for name, entry in families.FAMILIES.items():
        print(f"{name}: {entry.title}")
