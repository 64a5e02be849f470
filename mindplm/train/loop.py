"""The training loop of one run: data in, steps, log lines, validation, checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from tqdm import tqdm

from mindplm import config as settings
from mindplm import families, runtime, shards
from mindplm.checkpoint import Checkpoint, RunFolder
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.data.loader import RowStream
from mindplm.evaluate import Score
from mindplm.nn.values import weights_of
from mindplm.runtime import log
from mindplm.train import health
from mindplm.train.best import FOLDER
from mindplm.train.metrics import Metrics, cut_after, plot_losses
from mindplm.train.probe import Inspector, Profiler
from mindplm.train.ranks import Gather, Watch
from mindplm.train.saving import Moments, Writer
from mindplm.train.stopping import stop_requests
from mindplm.train.trainer import Trainer, Validation
from mindplm.train.window import Window


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        step: Finished steps.
        checkpoint: The last one.
        valid: The last validation.
        curve: Picture of the losses.
        interrupted: Whether it was told to stop before its end.
        best: The best checkpoint, of a run that keeps it.
        figures: All figures of the last validation.
    """

    step: int
    checkpoint: Path
    valid: Score | None
    curve: Path | None
    interrupted: bool
    best: Path | None = None
    figures: dict[str, float] = field(default_factory=dict)


Measure = Callable[[Trainer], Callable[[], Mapping[str, float]]]
"""Made once a run: what gives further figures at each validation."""


def pretrain(config: RunConfig, measure: Measure | None = None) -> Result:
    """Trains a model from prepared rows, or goes on with a run that was interrupted.

    Args:
        config: The run's settings; data.folder holds what `preprocess` wrote.
        measure: Gives further figures at each validation.

    Raises:
        UserError: Settings, data or checkpoints that cannot be used; a loss that is no number.
    """
    settings.require_trainable(config, config.runtime.device)
    families.check_layout(config)
    found = runtime.setup(config.runtime)
    settings.require_trainable(config, found.device)
    shards.check_cards(config.parallel, found.world)
    gather = Gather(found)
    watch = Watch(found, gather)
    try:
        with _own_folder(config, found):
            trainer = Trainer(config, found, gather)
            watch.first(lambda: prepare.verify(trainer.config))
            resumed = trainer.resume()
            _announce(trainer, resumed)
            steps = trainer.config.train.steps
            with Metrics(
                trainer.run.root, steps, found.rank == 0, resumed_step=trainer.done
            ) as metrics:
                result = _Run(trainer, metrics, measure).train()
        gather(0)  # none leaves before rank 0 has saved: the launcher may end the others then
    except BaseException as error:
        watch.close(str(error) or type(error).__name__)
        raise
    watch.close()
    return result


@contextlib.contextmanager
def _own_folder(config: RunConfig, found: runtime.Runtime) -> Iterator[None]:
    """Makes the run folder and locks it; rank 0 does it for all."""
    run = RunFolder(config.train.output)
    if found.rank:
        yield
        return
    if run.root.exists() and not run.root.is_dir():
        raise settings.ConfigError(f"train.output={run.root} is a file, expected a folder")
    run.root.mkdir(parents=True, exist_ok=True)
    with run.only_process():
        yield


def _announce(trainer: Trainer, resumed: Checkpoint | None) -> None:
    """Says what will be trained, on what, and where it is written."""
    config, found = trainer.config, trainer.found
    parallel, count = config.parallel, trainer.num_weights
    rows, length = config.train.batch_size, config.data.seq_len
    log.info("device      %s (%s)", found.device, "; ".join(found.notes))
    log.info("model       %s, %s parameters", config.family, f"{count:,}")
    if config.lora is not None:
        whole = sum(weight.size for weight in weights_of(trainer.model))
        log.info("adapters    %.2f %% of the parameters are trained", 100 * count / whole)
    log.info(
        "batch       %d rows x %d tokens = %s tokens a step; %d x %d rows x %d device(s)",
        rows,
        length,
        f"{rows * length:,}",
        config.accumulation,
        config.micro_batch_size,
        parallel.data,
    )
    if parallel.by_plan:
        log.info(
            "layout      data %d x model %d x pipeline %d%s; never run before on cards, only "
            "compiled: compare its first losses with those of a run that you know",
            parallel.data,
            parallel.model,
            parallel.pipeline,
            ", optimizer shard" if parallel.optimizer_shard else "",
        )
    log.info("run folder  %s", trainer.run.root)
    if resumed is not None:
        log.info("resume      step %d of %s", trainer.done, resumed.folder)
        if found.rank == 0:
            for change in _changes(resumed.run or {}, settings.to_dict(config)):
                log.warning("%s: other steps than the interrupted run would have made", change)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that shape the steps to come and differ from those of the interrupted run."""
    watched = {"data": None, "optim": None, "runtime": ("seed", "dtype"), "train": ("batch_size",)}
    changes = []
    for section, names in watched.items():
        before, now = old.get(section, {}), new[section]
        for name in names or now:
            if name in before and before[name] != now[name]:
                changes.append(f"{section}.{name} was {before[name]}, is {now[name]}")
    return changes


class _Run:
    """Steps from trainer.done to train.steps, with everything around them."""

    def __init__(self, trainer: Trainer, metrics: Metrics, measure: Measure | None = None):
        self.trainer, self.metrics, self.best = trainer, metrics, trainer.best
        self.config, self.train_config = trainer.config, trainer.config.train
        self.valid = Validation(trainer) if self.config.data.valid else None
        self.measure = measure(trainer) if measure is not None else None
        self.score: Score | None = None
        self.figures: dict[str, float] = {}
        root, rank0 = trainer.run.root, trainer.found.rank == 0
        if rank0:
            cut_after(root / health.FILE, trainer.done)
        share = trainer.gather if trainer.found.world > 1 else None
        self.moments = Moments(self.train_config, share=share)
        self.inspector = Inspector(trainer, root / "inspect.jsonl" if rank0 else None)
        self.profiler = Profiler(self.train_config.profiled, root / "profile", trainer.found.rank)
        self.window = Window(trainer.task_names)
        self.unread: deque[tuple[Any, dict[str, Any]]] = deque()
        self.stopping = self.best.exhausted
        peak = 1e12 * self.config.runtime.peak_tflops
        self.peak = (peak or runtime.measured_flops(self.config.runtime.dtype)) * (
            trainer.found.world
        )

    def train(self) -> Result:
        """Runs all steps."""
        trainer, train = self.trainer, self.train_config
        stream = trainer.stream()
        bar = tqdm(total=train.steps, initial=trainer.done, desc="train", unit="step", disable=None)
        background = train.save_async and (trainer.found.rank == 0 or trainer.cut is not None)
        with contextlib.ExitStack() as stack:
            stack.callback(bar.close)
            stack.callback(stream.close)
            stops = stack.enter_context(stop_requests())
            writer = stack.enter_context(Writer(background))
            while trainer.done < train.steps and not self.stopping:
                writer.check()
                self._step(stream, bool(stops))
                bar.update()
                if trainer.found.world == 1:
                    self.stopping = self.stopping or bool(stops)
                self._after(trainer.done, writer)
            ended = trainer.done == train.steps or self.best.exhausted
            if self.best.on and ended and not self.best.step:
                trainer.save_best(writer)  # nothing was measured: the last is the best
        saved = trainer.run.path_of(trainer.done)
        curve = trainer.run.root / "loss.png"
        if trainer.found.rank == 0:
            name = f"{self.config.family} in {trainer.run.root.name}"
            plot_losses(self.metrics.path, curve, name)
        best = trainer.run.root / FOLDER
        return Result(
            trainer.done,
            saved,
            self.score,
            curve,
            interrupted=not ended,
            best=best if self.best.on and best.is_dir() else None,
            figures=self.figures,
        )

    def _step(self, stream: RowStream, stop: bool) -> None:
        """One step on the next batch, and the reports that are due."""
        begin_s = time.perf_counter()
        columns, info = next(stream)
        got_s = time.perf_counter()
        self.profiler.before(self.trainer.done + 1)
        vector = self.trainer.launch(columns, info, stop)
        self.trainer.done += 1
        self.unread.append((vector, {**info, "number": self.trainer.done}))
        self._read(runtime.steps_ahead())
        self.window.waited_s += got_s - begin_s
        self.profiler.after(self.trainer.done, got_s - begin_s, time.perf_counter() - got_s)

    def _read(self, left: int) -> None:
        """Reads the reports of the steps launched, but for the last ones."""
        trainer = self.trainer
        while len(self.unread) > left:
            vector, info = self.unread.popleft()
            report = trainer.report(vector)
            trainer.updates = report.updates
            self.window.add(report, info, trainer.step_flops(info))
            self.stopping = self.stopping or report.stops > 0
            trainer.health.see(info["number"], report, info)

    def _after(self, done: int, writer: Writer) -> None:
        """What is due after a step: a log line, validation, tables, a checkpoint."""
        train, last = self.train_config, done == self.train_config.steps
        log_due = done % train.log_every == 0 or last or self.stopping
        valid_due = last or (train.eval_every > 0 and done % train.eval_every == 0)
        save_due = self.moments.due(done) or last or self.stopping
        inspect_due = train.inspect_every > 0 and done % train.inspect_every == 0
        if not (log_due or valid_due or save_due or inspect_due):
            return
        self._read(0)
        if log_due:
            self._log(done)
        pause_s = time.perf_counter()
        if valid_due and (self.valid or self.measure):
            try:
                self._validate(done, writer)
            except Exception:
                if save_due:  # what cannot be measured is no reason to lose the steps
                    self.trainer.save(writer)
                raise
        if inspect_due:
            self.inspector(done)
        if save_due or self.best.exhausted:
            self.trainer.save(writer)
        self.window.begin_s += time.perf_counter() - pause_s

    def _validate(self, done: int, writer: Writer) -> None:
        """Measures the model as it is now, and keeps it if it is the best so far."""
        self.figures = {}
        if self.valid:
            self.score = self.valid()
            self.figures.update(self.score.logged())
        if self.measure:
            self.figures.update(self.measure())
        self.metrics.log(done, self.figures)
        if self.best.see(done, self.figures):
            self.trainer.save_best(writer)
        elif self.best.exhausted:
            log.info("no validation since was better than %s: the run ends", self.best)
            self.stopping = True

    def _log(self, done: int) -> None:
        trainer = self.trainer
        values = self.window.values(self.peak)
        values["train/lr"] = trainer.lr
        values["train/memory_gb"] = runtime.peak_memory_bytes() / 1e9
        if trainer.scaler.dynamic:
            values["train/loss_scale"] = float(trainer.scaler.scale.asnumpy())
        for name, count in trainer.health.counts.items():
            if count:
                values[f"train/{name}"] = count
        self.metrics.log(done, values)
        self.window = Window(trainer.task_names)
