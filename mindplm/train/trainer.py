"""Model, optimizer, data and run folder of one training run, and how they are saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindplm import adapters, runtime
from mindplm import checkpoint as folders
from mindplm import config as settings
from mindplm.checkpoint import Checkpoint, RunFolder, TrainState
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.data.loader import RowStream, eval_batches
from mindplm.evaluate import Evaluator, Score
from mindplm.families import parts_of, vocab_path
from mindplm.nn.values import from_arrays, to_arrays
from mindplm.train.begin import Start, check_same
from mindplm.train.best import FOLDER, Best
from mindplm.train.health import Health
from mindplm.train.ranks import Gather
from mindplm.train.saving import Writer
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, plain_step
from mindplm.train.teacher import distilled


class Trainer:
    """Everything that a run consists of.

    Args:
        config: The run's settings.
        found: The device and ranks.
        gather: Exchanges numbers between the ranks.

    Attributes:
        done: Finished steps: batches taken from the data.
        updates: Steps that moved the weights; the schedule counts these.
    """

    def __init__(self, config: RunConfig, found: runtime.Runtime, gather: Gather):
        self.found, self.gather = found, gather
        parts = parts_of(config.family, config.head)
        vocab = vocab_path(config.tokenizer, config.family)
        self.tokenizer = parts.part("tokenizer").from_file(vocab)
        size = self.tokenizer.vocab_size
        if config.model.vocab_size != size:
            raise settings.ConfigError(
                f"model.vocab_size={config.model.vocab_size}, but {vocab} "
                f"has {size} entries; leave model.vocab_size out"
            )
        self.kind = parts.part("rows")
        self.rows = prepare.train_rows(config, self.tokenizer, self.kind, verify=False)
        if not config.train.steps:
            config = settings.with_steps(config, len(self.rows))
        self.config = config
        self.model = parts.part("cell")(config.model, runtime.compute_dtype(config.runtime.dtype))
        self.plain_loss = parts.part("loss")(self.model)
        self.loss = distilled(self.model, config, self.tokenizer) or self.plain_loss
        self.shared = set(parts.part("shared_columns"))
        self.start = Start(self.model, config, self.tokenizer)
        by_task = hasattr(self.loss, "tokens") and "spans" in self.kind.columns
        self.task_names = self.rows.task_names if by_task else []
        self.step = plain_step(
            config, self.model, self.loss, world=found.world, num_tasks=len(self.task_names)
        )
        self.optimizer, self.scaler = self.step.optimizer, self.step.scaler
        self.run = RunFolder(config.train.output)
        events = self.run.root if found.rank == 0 else None
        self.health = Health(config.train, events, str(self.rows.path))
        self.flops = parts.part("step_flops") if parts.step_flops_ref else None
        self.best = Best(config.finetune)
        self.done = self.updates = 0

    # --- one step ---------------------------------------------------------------------------------

    def launch(self, columns: dict[str, np.ndarray], info: dict[str, Any], stop: bool) -> Any:
        """Begins a step; its report may not be there yet.

        `updates` may be behind by the steps whose reports are not read yet, if none of them was
        skipped; the step gets the rates of each possible number of updates.
        """
        optim, total = self.config.optim, self.config.train.steps
        possible = range(self.updates, self.updates + runtime.steps_ahead() + 1)
        numbers = Numbers(
            info["targets"],
            [self.optimizer.rates(learning_rate(optim, n, total), n) for n in possible],
            self.updates,
            self.health.loss_limit,
            stop,
        )
        self.start.set_step(self.done * self.found.world + self.found.rank)
        if self.task_names:
            columns = {**columns, "tasks": target_tasks(columns, info["tasks"])}
        return runtime.settle(self.step(columns, self.shared, numbers))

    @property
    def lr(self) -> float:
        """Learning rate of the last update."""
        optim, total = self.config.optim, self.config.train.steps
        return learning_rate(optim, max(self.updates - 1, 0), total)

    def step_flops(self, info: dict[str, Any]) -> float:
        """Arithmetic that a batch needs; 0 where the family does not say."""
        if self.flops is None:
            return 0.0
        return self.flops(
            self.config.model,
            tokens=info["tokens"],
            targets=info["targets"],
            seq_len=self.config.data.seq_len,
        )

    # --- checkpoints ------------------------------------------------------------------------------

    def resume(self) -> Checkpoint | None:
        """Takes weights, moments and the step from a checkpoint, if there is one to go on from.

        Rank 0 chooses it, checks it and sets newer ones aside; the others read the same.
        """
        wish, checkpoint = self.config.train.resume, None
        if self.found.rank == 0:
            checkpoint = self.run.resume(wish)
            name = "-1" if checkpoint is None else checkpoint.folder.name.rpartition("-")[2]
            self.gather(int(name) if wish == "auto" or checkpoint is None else 0)
        else:
            step = int(self.gather(0)[0, 0])
            if step >= 0:
                named = Path(wish) if wish != "auto" else self.run.path_of(step)
                checkpoint = folders.read(named, verify=False)
        if checkpoint is None:
            return None
        if checkpoint.adapter is None:
            check_same(checkpoint, self.config, self.tokenizer, str(checkpoint.folder))
        state = checkpoint.train()
        if state is None:
            raise settings.ConfigError(f"{checkpoint.folder} holds no state of training")
        weights = checkpoint.weights()
        self.start.load(checkpoint, weights)
        if self.optimizer.half:
            masters = {f"master.{w.name}": weights[w.name] for w in self.optimizer.weights}
            from_arrays(self.optimizer.masters, masters, str(checkpoint.folder))
        arrays = dict(state.arrays)
        if (checkpoint.run or {}).get("runtime", {}).get("dtype") != self.config.runtime.dtype:
            arrays.update({n: a.copy() for n, a in to_arrays(self.scaler.state()).items()})
        from_arrays(self.state(), arrays, f"{checkpoint.folder}/train")
        self.done, self.updates = state.step, state.meta.get("updates", state.step)
        self.health.load(state.meta.get("health", {}))
        self.best.load(state.meta.get("best", {}))
        return checkpoint

    def state(self) -> list[Any]:
        """What a checkpoint keeps beside the weights: moments, loss scale, number of updates."""
        return [*self.optimizer.moment1, *self.optimizer.moment2, *self.step.state()]

    def weights(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of the weights: fp32 where there are masters."""
        arrays = to_arrays(self.start.parameters)
        if self.optimizer.half:
            masters = to_arrays(self.optimizer.masters)
            arrays.update({n.partition(".")[2]: array for n, array in masters.items()})
        return arrays

    def save(self, writer: Writer) -> None:
        """Writes the checkpoint of the steps done, or begins to; rank 0 does it for all."""
        state = to_arrays(self.state())
        meta = {
            "seed": self.config.runtime.seed,
            "updates": self.updates,
            "health": self.health.state(),
            "best": self.best.state(),
        }
        train = TrainState(self.done, state, meta)
        keep = self.config.train.keep_last

        def kept(folder: Path) -> Path:
            self.run.keep(keep)
            return folder

        self._write(writer, self.run.path_of(self.done), train, kept)

    def save_best(self, writer: Writer) -> None:
        """Writes what a user takes away: the weights as they are now, without state of training."""
        self._write(writer, self.run.root / FOLDER, None, lambda folder: folder)

    def _write(
        self,
        writer: Writer,
        folder: Path,
        train: TrainState | None,
        after: Callable[[Path], Path],
    ) -> None:
        if self.found.rank:
            return
        weights = self.weights()
        if writer.background:
            writer.wait()  # no more than one copy in memory
            weights = {name: array.copy() for name, array in weights.items()}
            if train is not None:
                train.arrays = {name: array.copy() for name, array in train.arrays.items()}
        config = settings.to_dict(self.config)
        family, lora, start = self.config.family, self.config.lora, self.start
        files = self.tokenizer.files()

        def write() -> Path:
            if lora is not None:
                adapters.write(
                    folder,
                    family=family,
                    lora=lora,
                    arrays=weights,
                    base=start.described_base,
                    run=config,
                    train=train,
                )
            else:
                folders.write(
                    folder,
                    family=family,
                    model_config=config["model"],
                    weights=weights,
                    tokenizer_files=files,
                    run=config,
                    train=train,
                )
            return after(folder)

        writer.submit(write)

    # --- data -------------------------------------------------------------------------------------

    def stream(self) -> RowStream:
        """The training rows of this rank from the next step on."""
        return prepare.open_stream(
            self.rows,
            seed=self.config.runtime.seed,
            batch_size=self.config.train.batch_size,
            rank=self.found.rank,
            world=self.found.world,
            start_step=self.done,
        )


class Validation:
    """The validation rows of a run, each rank taking its part, and the forward pass over them."""

    def __init__(self, trainer: Trainer):
        self.found, self.gather = trainer.found, trainer.gather
        self.size = trainer.config.micro_batch_size * self.found.world
        config, kind = trainer.config, trainer.kind
        self.rows = prepare.rows(config, trainer.tokenizer, "valid", kind, verify=False)
        self.evaluator = Evaluator(trainer.plain_loss)

    def __call__(self) -> Score:
        """Loss over all validation rows."""
        rank, world = self.found.rank, self.found.world
        batches = eval_batches(self.rows, batch_size=self.size, rank=rank, world=world)
        total = -(-len(self.rows) // self.size)
        return self.evaluator(batches, total=total, progress=rank == 0, gather=self.gather)


def target_tasks(columns: dict[str, np.ndarray], tasks: list[list[int]]) -> np.ndarray:
    """The task of each target, int32 [B, T]; -1 where there is no target.

    Args:
        columns: Of a batch of packed rows: spans, target_pos, targets.
        tasks: For each row the task of each of its spans.
    """
    spans = np.take_along_axis(columns["spans"], columns["target_pos"], 1)
    result = np.full(spans.shape, -1, np.int32)
    for row, of_spans in enumerate(tasks):
        real = columns["targets"][row] >= 0
        first = columns["spans"][row, 0]  # families count spans from 0 or from 1 on
        result[row, real] = np.array(of_spans, np.int32)[spans[row, real] - first]
    return result
