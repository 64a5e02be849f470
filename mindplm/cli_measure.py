"""The verb evaluate: loss on the rows of a run, or metrics of tasks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mindplm.errors import ConfigError

if TYPE_CHECKING:
    from mindplm.config import RuntimeConfig


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """Arguments of `mindplm evaluate`, beside -m and -c."""
    from mindplm import cli_write

    sub.add_argument(
        "--task",
        action="append",
        metavar="FILE",
        help="a task file, instead of the loss on the validation rows (repeatable); key=value "
        "then are settings of the task or of runtime",
    )
    sub.add_argument("--data", metavar="PATH", help="the data of the tasks, if not what they name")
    sub.add_argument(
        "--out", metavar="FOLDER", help="write results.json, results.txt and predictions there"
    )
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="records at once")
    cli_write.add_adapter(sub)


def run_tasks(args: argparse.Namespace) -> None:
    """Measures a checkpoint on the tasks of --task."""
    if args.config:
        raise ConfigError("-c gives the settings of a run, --task measures tasks; use one of them")
    from mindplm.config_task import read_task

    keys = [text for text in args.overrides if not text.startswith("runtime.")]
    tasks = [read_task(path, keys) for path in args.task]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"two tasks of one name: {', '.join(names)}")
    running = _runtime([text for text in args.overrides if text.startswith("runtime.")])
    import sys

    from mindplm.generate import load
    from mindplm.measure import headed, results
    from mindplm.measure.questions import read_questions
    from mindplm.measure.run import asked

    show, size = sys.stderr.isatty(), args.batch_size
    questions = [read_questions(task, args.data or "") for task in tasks]
    head = headed.load(args.model, running)
    if head is not None:
        pairs = zip(tasks, questions)
        found = [head.measure(task, own, progress=show) for task, own in pairs]
    else:
        model, tokenizer = load(args.model, running, adapter=args.adapter)
        found = [
            asked(model, tokenizer, task, own, batch_size=size, progress=show)
            for task, own in zip(tasks, questions)
        ]
    if args.out:
        results.save(found, args.out)
    print(results.table(found))


def _runtime(overrides: list[str]) -> RuntimeConfig:
    from mindplm import strict
    from mindplm.config import RuntimeConfig

    tree = strict.apply_overrides({"runtime": {}}, overrides)
    source = strict.Source("command line", tuple(overrides))
    return strict.build(RuntimeConfig, tree["runtime"], "runtime", source)
