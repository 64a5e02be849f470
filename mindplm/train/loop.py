"""The training loop of one run: data in, steps, log lines, validation, checkpoints."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindplm import config as settings
from mindplm import runtime
from mindplm.checkpoint import Checkpoint, RunFolder, TrainState
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.data.loader import RowStream, eval_batches
from mindplm.errors import UserError
from mindplm.evaluate import Evaluator, Score
from mindplm.families import family, vocab_path
from mindplm.nn.init import initialise
from mindplm.nn.values import from_arrays, load_model, to_arrays
from mindplm.runtime import log
from mindplm.train.metrics import Metrics, plot_losses
from mindplm.train.optim import Adam
from mindplm.train.schedule import learning_rate
from mindplm.train.step import TrainStep


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    step: int
    checkpoint: Path
    valid: Score | None
    curve: Path | None
    interrupted: bool


@dataclass
class _Window:
    """Sums between two log lines; losses stay on the device until the line is written."""

    losses: list[Any] = field(default_factory=list)
    norms: list[Any] = field(default_factory=list)
    targets: int = 0
    target_counts: list[int] = field(default_factory=list)
    tokens: int = 0
    waited_s: float = 0.0
    begin_s: float = field(default_factory=time.perf_counter)

    def values(self, step: int) -> dict[str, float]:
        """Means over the window.

        Raises:
            UserError: A loss or a gradient is not a finite number.
        """
        losses = np.array([np.asarray(item) for item in self.losses], np.float64).reshape(-1)
        norms = np.array([item.asnumpy() for item in self.norms], np.float64).reshape(-1)
        for i, (loss, norm) in enumerate(zip(losses, norms), step - len(losses) + 1):
            if not (np.isfinite(loss) and np.isfinite(norm)):
                raise UserError(
                    f"step {i} has loss {loss} and gradient norm {norm}; lower optim.lr or look "
                    "at the rows of this step; no checkpoint was written since"
                )
        counts = np.array(self.target_counts, np.float64)
        time_s = time.perf_counter() - self.begin_s
        return {
            "train/loss": float((losses * counts).sum() / max(counts.sum(), 1.0)),
            "train/grad_norm": float(norms[-1]),
            "train/step_ms": 1000 * time_s / len(losses),
            "train/tokens_per_s": self.tokens / time_s,
            "train/wait": self.waited_s / time_s,
        }


class Trainer:
    """Model, optimizer, data and run folder of one training run.

    Args:
        config: The run's settings.
        found: The device and ranks.
    """

    def __init__(self, config: RunConfig, found: runtime.Runtime):
        self.config, self.found = config, found
        parts = family(config.family)
        self.tokenizer = parts.part("tokenizer").from_file(vocab_path(config.tokenizer))
        if config.runtime.dtype != "float32":
            raise settings.ConfigError(
                f"runtime.dtype={config.runtime.dtype}: training takes float32 only"
            )
        size = self.tokenizer.vocab_size
        if config.model.vocab_size != size:
            raise settings.ConfigError(
                f"model.vocab_size={config.model.vocab_size}, but {vocab_path(config.tokenizer)} "
                f"has {size} entries; leave model.vocab_size out"
            )
        self.model = parts.part("cell")(config.model, runtime.compute_dtype(config.runtime.dtype))
        self.loss = parts.part("loss")(self.model)
        self.shared = set(parts.part("shared_columns"))
        self.rows = parts.part("rows")
        initialise(self.model, config.runtime.seed)
        weights = list(self.model.trainable_params())
        self.optimizer = Adam(weights, config.optim)
        self.step = TrainStep(
            self.loss,
            self.optimizer,
            clip_norm=config.optim.clip_norm,
            num_micro=config.accumulation,
        )
        self.run = RunFolder(config.train.output)
        self.done = 0

    def resume(self) -> Checkpoint | None:
        """Takes weights, moments and the step from a checkpoint, if there is one to go on from."""
        checkpoint = self.run.resume(self.config.train.resume)
        if checkpoint is None:
            return None
        self._check_same(checkpoint)
        state = checkpoint.train()
        if state is None:
            raise settings.ConfigError(f"{checkpoint.folder} holds no state of training")
        load_model(self.model, checkpoint.weights(), str(checkpoint.folder))
        from_arrays(self.moments(), state.arrays, f"{checkpoint.folder}/train")
        self.done = state.step
        return checkpoint

    def _check_same(self, checkpoint: Checkpoint) -> None:
        """Refuses a checkpoint of another model or vocabulary."""
        was, now = (settings.to_dict(c) for c in (checkpoint.model(), self.config.model))
        changes = [
            f"model.{key} was {was[key]}, is {now[key]}" for key in now if was[key] != now[key]
        ]
        for name, data in self.tokenizer.files().items():
            if (checkpoint.folder / name).read_bytes() != data:
                changes.append(f"{name} is another vocabulary")
        if changes:
            raise settings.ConfigError(
                f"{checkpoint.folder} does not fit: {'; '.join(changes)}; choose another "
                "train.output, or train with the settings of the checkpoint"
            )

    def moments(self) -> list[Any]:
        """The optimizer's state."""
        return [*self.optimizer.moment1, *self.optimizer.moment2]

    def save(self) -> Path:
        """Writes the checkpoint of the steps done."""
        return self.run.save(
            TrainState(self.done, to_arrays(self.moments()), {"seed": self.config.runtime.seed}),
            family=self.config.family,
            model_config=settings.to_dict(self.config)["model"],
            weights=to_arrays(self.model.get_parameters()),
            tokenizer_files=self.tokenizer.files(),
            run=settings.to_dict(self.config),
            keep_last=self.config.train.keep_last,
        )

    def stream(self) -> RowStream:
        """The training rows from the next step on."""
        config = self.config
        return RowStream(
            prepare.rows(config, self.tokenizer, "train", self.rows),
            seed=config.runtime.seed,
            batch_size=config.train.batch_size,
            rank=self.found.rank,
            world=self.found.world,
            start_step=self.done,
        )


@contextmanager
def _stop_requests() -> Iterator[list[str]]:
    """Collects SIGINT and SIGTERM instead of dying from them; the second SIGINT interrupts."""
    seen: list[str] = []

    def note(number: int, frame: Any) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)
        log.warning("%s: the run stops after this step and saves", seen[-1])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def pretrain(config: RunConfig) -> Result:
    """Trains a model from prepared rows, or goes on with a run that was interrupted.

    Args:
        config: The run's settings; data.folder holds what `preprocess` wrote.

    Raises:
        UserError: Settings, data or checkpoints that cannot be used; a loss that is no number.
    """
    found = runtime.setup(config.runtime)
    if found.world != config.parallel.data:
        raise settings.ConfigError(
            f"parallel.data={config.parallel.data}, but the number of processes is {found.world}; "
            "start as many with msrun"
        )
    run = RunFolder(config.train.output)
    if run.root.exists() and not run.root.is_dir():
        raise settings.ConfigError(f"train.output={run.root} is a file, expected a folder")
    run.root.mkdir(parents=True, exist_ok=True)
    with run.only_process():
        trainer = Trainer(config, found)
        resumed = trainer.resume()
        _announce(trainer, resumed)
        with Metrics(
            run.root, config.train.steps, found.rank == 0, resumed_step=trainer.done
        ) as metrics:
            return _train(trainer, metrics)


def _announce(trainer: Trainer, resumed: Checkpoint | None) -> None:
    """Says what will be trained, on what, and where it is written."""
    config, found = trainer.config, trainer.found
    count = sum(weight.size for weight in trainer.optimizer.weights)
    rows, length = config.train.batch_size, config.data.seq_len
    log.info("device      %s (%s)", found.device, "; ".join(found.notes))
    log.info("model       %s, %s parameters", config.family, f"{count:,}")
    log.info(
        "batch       %d rows x %d tokens = %s tokens a step; %d x %d rows x %d device(s)",
        rows,
        length,
        f"{rows * length:,}",
        config.accumulation,
        config.micro_batch_size,
        config.parallel.data,
    )
    log.info("run folder  %s", trainer.run.root)
    if resumed is not None:
        log.info("resume      step %d of %s", trainer.done, resumed.folder)
        for change in _changes(resumed.run or {}, settings.to_dict(config)):
            log.warning("%s: other steps than the interrupted run would have made", change)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that shape the steps to come and differ from those of the interrupted run."""
    watched = {"data": None, "optim": None, "runtime": ("seed", "dtype"), "train": ("batch_size",)}
    changes = []
    for section, names in watched.items():
        before, now = old.get(section, {}), new[section]
        for name in names or now:
            if before.get(name) != now[name]:
                changes.append(f"{section}.{name} was {before.get(name)}, is {now[name]}")
    return changes


def _train(trainer: Trainer, metrics: Metrics) -> Result:
    """Steps from trainer.done to train.steps, with everything around them."""
    config, train = trainer.config, trainer.config.train
    valid = Validation(trainer) if config.data.valid else None
    score: Score | None = None
    saved = trainer.run.path_of(trainer.done)
    stream = trainer.stream()
    bar = tqdm(total=train.steps, initial=trainer.done, desc="train", unit="step", disable=None)
    window, stopping = _Window(), False
    with _stop_requests() as stops:
        try:
            while trainer.done < train.steps and not stopping:
                _one_step(trainer, stream, window)
                bar.update()
                done, last = trainer.done, trainer.done == train.steps
                stopping = bool(stops)  # once a step: what stops the run also saves it
                if done % train.log_every == 0 or last or stopping:
                    values = window.values(done)
                    values["train/lr"] = learning_rate(config.optim, done - 1, train.steps)
                    metrics.log(done, values)
                    window = _Window()
                pause_s = time.perf_counter()
                if valid and (last or (train.eval_every and done % train.eval_every == 0)):
                    score = valid()
                    metrics.log(
                        done, {"valid/loss": score.per_target, "valid/per_char": score.per_char}
                    )
                if last or stopping or (train.save_every and done % train.save_every == 0):
                    if window.losses:
                        window.values(done)
                    saved = trainer.save()
                window.begin_s += time.perf_counter() - pause_s
        finally:
            stream.close()
            bar.close()
    curve = trainer.run.root / "loss.png"
    plot_losses(metrics.path, curve, f"{config.family} in {trainer.run.root.name}")
    return Result(trainer.done, saved, score, curve, trainer.done < train.steps)


def _one_step(trainer: Trainer, stream: RowStream, window: _Window) -> None:
    """One optimizer step on the next batch."""
    config = trainer.config
    begin_s = time.perf_counter()
    columns, info = next(stream)
    window.waited_s += time.perf_counter() - begin_s
    lr = learning_rate(config.optim, trainer.done, config.train.steps)
    scalars = trainer.optimizer.scalars(lr, trainer.done, info["targets"])
    loss, norm = trainer.step(columns, trainer.shared, scalars)
    window.losses.append(runtime.settle(loss))
    window.norms.append(norm)
    window.target_counts.append(info["targets"])
    window.tokens += info["tokens"]
    trainer.done += 1


class Validation:
    """The validation rows of a run and the compiled forward pass over them."""

    def __init__(self, trainer: Trainer):
        self.size = trainer.config.micro_batch_size
        self.rows = prepare.rows(trainer.config, trainer.tokenizer, "valid", trainer.rows)
        self.evaluator = Evaluator(trainer.loss)

    def __call__(self) -> Score:
        """Loss over all validation rows."""
        batches = eval_batches(self.rows, batch_size=self.size)
        return self.evaluator(batches, total=-(-len(self.rows) // self.size))
