"""Finetuning: a run that begins with a checkpoint, watches tasks and keeps its best state.

The steps are those of `mindplm.train`; here is what comes before them, and the tasks that are
measured between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Callable

from mindplm import families, runtime
from mindplm.config import FinetuneConfig, RunConfig
from mindplm.config_task import TaskConfig, read_task
from mindplm.data import prepare
from mindplm.data.draw import EMPTY
from mindplm.data.overlap import find_overlap
from mindplm.errors import ConfigError, DataError
from mindplm.generate.model import from_cell
from mindplm.measure.headed import of_run
from mindplm.measure.questions import Questions, read_questions
from mindplm.measure.results import TaskResult
from mindplm.measure.run import asked
from mindplm.runtime import log
from mindplm.train import loop
from mindplm.train.loop import Result
from mindplm.train.trainer import Trainer

_SHOWN = 3


def finetune(config: RunConfig) -> Result:
    """Finetunes a model, all of it or adapters on it, or goes on with a run that was interrupted.

    Rows are prepared first if they are not there or not up to date. Beside the last checkpoints
    there is always the best one: by a task's metric, by the validation loss, or the last one if
    nothing is measured.

    Args:
        config: The run's settings.

    Raises:
        UserError: Settings, data or checkpoints that cannot be used.
    """
    rank, world = runtime.ranks()
    runtime.setup_log(rank)
    if config.finetune is None:
        config = dataclasses.replace(config, finetune=FinetuneConfig())
    if not config.train.start and rank == 0:
        log.warning("train.start names no checkpoint: the model begins with new weights")
    if world == 1:  # several processes find the rows that `preprocess` made
        prepare_rows(config)
    if rank == 0:
        tell_overlap(config)
    return loop.pretrain(config, measure=_measure if _watched(config) else None)


def prepare_rows(config: RunConfig) -> None:
    """Prepares the rows of a run unless they are there.

    Raises:
        DataError: All answers are empty, as in a file of prompts.
    """
    parts = families.family(config.family)
    vocab = families.vocab_path(config.tokenizer, config.family)
    rows = families.rows_of(config.family, config.head)
    prepare.run(config, parts.part("tokenizer").from_file(vocab), rows)
    if config.data.stream:
        return
    report = prepare.report_of(config, "train")
    if report["notes"].get(EMPTY, 0) == report["instances"]:
        raise DataError(
            f"all answers of the {report['instances']:,} training records are empty, so there is "
            "nothing to learn; is this a file of prompts?"
        )


def tell_overlap(config: RunConfig) -> None:
    """Warns of records that are learned and measured on."""
    kind = families.rows_of(config.family, config.head)
    train = kind.sources(prepare.sources_of(config, "train"))
    measured = list(kind.sources(config.data.valid))
    for watched in _watched(config):
        task = read_task(watched.task)
        if not watched.path and not task.path:
            continue  # refused with its name when the questions are read
        shape = {"path": watched.path or task.path, "shape": task.shape, "name": task.name}
        measured.append(dataclasses.replace(train[0], **shape, transforms=None))
    if not measured:
        return
    found = find_overlap(train, measured)
    if found.count:
        log.warning(
            "%d of %d records that are measured on are in the training data too, so figures will "
            "look better than they are; %d of them with the same answer",
            found.count,
            found.total,
            found.with_answer,
        )
        for left, right in found.first[:_SHOWN]:
            log.warning("    %s is %s", left, right)


def _watched(config: RunConfig) -> list:
    return config.finetune.tasks if config.finetune is not None else []


def _measure(trainer: Trainer) -> Callable[[], Mapping[str, float]]:
    """What measures the tasks on the model that is being trained."""
    config = trainer.config
    ask = _asker(trainer)
    tasks = []
    for watched in _watched(config):
        keys = [f"limit={watched.limit}"] if watched.limit else []
        task = read_task(watched.task, keys)
        if config.head is None:
            _check_able(config.family, task)
        tasks.append((task, read_questions(task, watched.path)))
    names = [task.name for task, _ in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"finetune.tasks: two tasks of one name: {', '.join(names)}")

    def figures() -> dict[str, float]:
        found = {}
        for task, questions in tasks:
            result = ask(task, questions)
            for metric, figure in result.figures[""].items():
                found[f"valid/{task.name}/{metric}"] = figure.value
        return found

    return figures


def _check_able(name: str, task: TaskConfig) -> None:
    entry = families.family(name)
    if task.shape.slots.templates:
        able, way = entry.slots_ref, "by words in slots"
    elif task.method == "likelihood":
        able, way = entry.scorer_ref, "how likely answers are"
    else:
        able, way = entry.decode_ref, "to write answers"
    if not able:
        raise ConfigError(
            f"finetune.tasks: {name} cannot be asked {way}, as {task.name} is; leave it out"
        )


def _asker(trainer: Trainer) -> Callable[[TaskConfig, Questions], TaskResult]:
    """What answers the questions of a task: the head, or the writing network."""
    config = trainer.config
    if config.head is not None:
        return of_run(config, trainer.model, trainer.tokenizer).measure
    model, size = from_cell(trainer.model, config.model, config.family), config.micro_batch_size
    return lambda task, questions: asked(model, trainer.tokenizer, task, questions, batch_size=size)
