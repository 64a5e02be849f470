"""Model, optimizer, data and run folder of one training run, and how they are saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np

from mindplm import adapters, parts, runtime
from mindplm import checkpoint as folders
from mindplm import config as settings
from mindplm.checkpoint import Checkpoint, RunFolder, TrainState
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.data.loader import RowStream, eval_batches
from mindplm.evaluate import Evaluator, Score
from mindplm.families import parts_of, vocab_path
from mindplm.files import NewFolder, shared_folder
from mindplm.nn.dropout import Moment
from mindplm.nn.values import from_arrays, to_arrays
from mindplm.train.begin import Start, check_same, common
from mindplm.train.best import FOLDER, Best
from mindplm.train.cut_network import CutNetwork
from mindplm.train.health import Health
from mindplm.train.optim import MASTER
from mindplm.train.ranks import Gather
from mindplm.train.saving import Writer
from mindplm.train.schedule import learning_rate
from mindplm.train.step import Numbers, Report, plain_step
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
        family = parts_of(config.family, config.head)
        vocab = vocab_path(config.tokenizer, config.family)
        self.tokenizer = family.part("tokenizer").from_file(vocab)
        size = self.tokenizer.vocab_size
        if config.model.vocab_size != size:
            raise settings.ConfigError(
                f"model.vocab_size={config.model.vocab_size}, but {vocab} "
                f"has {size} entries; leave model.vocab_size out"
            )
        self.kind = family.part("rows")
        self.rows = prepare.train_rows(config, self.tokenizer, self.kind, verify=False)
        if not config.train.steps:
            config = settings.with_steps(config, len(self.rows))
        self.config = config
        self.shared = set(family.part("shared_columns"))
        self.task_names: list[str] = []
        self.model: Any = None
        self.plain_loss: Any = None
        self.start: Any = None
        self.cut = CutNetwork(config, found.rank, gather) if config.parallel.by_plan else None
        if self.cut is not None:
            self.step: Any = self.cut
            self.num_weights = family.part("num_parameters")(config.model)
        else:
            self._hold_all(family)
        self.optimizer, self.scaler = self.step.optimizer, self.step.scaler
        self.run = RunFolder(config.train.output)
        events = self.run.root if found.rank == 0 else None
        self.health = Health(config.train, events, str(self.rows.path))
        self.flops = family.part("step_flops") if family.step_flops_ref else None
        self.best = Best(config.finetune)
        self.done = self.updates = 0

    def _hold_all(self, family: Any) -> None:
        """Builds the network and the step of a run in which every device holds all weights."""
        config = self.config
        self.model = family.part("cell")(config.model, runtime.compute_dtype(config.runtime.dtype))
        self.plain_loss = family.part("loss")(self.model)
        loss = distilled(self.model, config, self.tokenizer) or self.plain_loss
        self.start = Start(self.model, config, self.tokenizer)
        if hasattr(loss, "tokens") and "spans" in self.kind.columns:
            self.task_names = self.rows.task_names
        self.step = plain_step(
            config, self.model, loss, world=self.found.world, num_tasks=len(self.task_names)
        )
        self.step.moment = Moment(self.model, self.found.rank * config.accumulation)
        self.num_weights = sum(weight.size for weight in self.step.optimizer.weights)

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
            self.done,
        )
        if self.task_names:
            columns = {**columns, "tasks": target_tasks(columns, info["tasks"])}
        return runtime.settle(self.step(columns, self.shared, numbers))

    def report(self, vector: Any) -> Report:
        """Reads what a step tells; all processes must call it."""
        if self.cut is not None:
            return self.cut.report(vector)
        return Report.of(vector if isinstance(vector, np.ndarray) else vector.asnumpy())

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
            self._begin()
            return None
        if checkpoint.adapter is None:
            check_same(checkpoint, self.config, self.tokenizer, str(checkpoint.folder))
        state = checkpoint.train() if self.cut is None else checkpoint.train(self._scalars)
        if state is None:
            raise settings.ConfigError(f"{checkpoint.folder} holds no state of training")
        arrays = dict(state.arrays)
        if (checkpoint.run or {}).get("runtime", {}).get("dtype") != self.config.runtime.dtype:
            arrays.update({n: a.copy() for n, a in to_arrays(self.scaler.state()).items()})
        if self.cut is not None:
            self.cut.load(checkpoint, arrays)
        else:
            self._load(checkpoint, arrays)
        self.done, self.updates = state.step, state.meta.get("updates", state.step)
        self.health.load(state.meta.get("health", {}))
        self.best.load(state.meta.get("best", {}))
        return checkpoint

    def _begin(self) -> None:
        """Gives a cut network its first weights; one that is held whole has them."""
        if self.cut is None:
            return
        named = self.config.train.start
        self.cut.begin(common(named, self.cut.shapes) if named else {})

    def _load(self, checkpoint: Checkpoint, arrays: dict[str, np.ndarray]) -> None:
        weights = checkpoint.weights()
        self.start.load(checkpoint, weights)
        if self.optimizer.half:
            masters = {MASTER + w.name: weights[w.name] for w in self.optimizer.weights}
            from_arrays(self.optimizer.masters, masters, str(checkpoint.folder))
        from_arrays(self.state(), arrays, f"{checkpoint.folder}/train")

    @property
    def _scalars(self) -> list[str]:
        """Names of the state of training but for the moments."""
        return [item.name for item in self.step.state()]

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
        # What is in parts each process writes itself.
        state = to_arrays(self.state() if self.cut is None else self.step.state())
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
        if self.cut is not None:
            self._write_parts(writer, folder, train, after)
            return
        if self.found.rank:
            return
        weights = self.weights()
        if writer.background:
            writer.wait()  # no more than one copy in memory
            weights = copied(weights)
            if train is not None:
                train.arrays = copied(train.arrays)
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

    def _write_parts(
        self,
        writer: Writer,
        folder: Path,
        train: TrainState | None,
        after: Callable[[Path], Path],
    ) -> None:
        """Every process writes its parts, at the same step, and rank 0 all the rest."""
        cut, rank = self.cut, self.found.rank
        assert cut is not None
        writer.wait()
        new = NewFolder(folder, cut.num_bytes) if rank == 0 else None
        number = int(self.gather(new.number if new is not None else 0)[0, 0])
        arrays = cut.arrays(moments=train is not None)
        if writer.background:
            arrays = copied(arrays)
            if train is not None:
                train.arrays = copied(train.arrays)
        config, files = settings.to_dict(self.config), self.tokenizer.files()

        def write() -> Path:
            if new is None:
                parts.write_part(shared_folder(folder, number), rank, arrays)
                return folder
            with new.build() as builder:
                parts.write_part(builder.folder, rank, arrays)
                folders.write_head(builder, self.config.family, config["model"], files, config)
                if train is not None:
                    train.write(builder)
                parts.collect(builder, cut.first_places, cut.shapes, config["parallel"])
            return after(folder)

        writer.submit(write)

    # --- data -------------------------------------------------------------------------------------

    def stream(self) -> RowStream:
        """The training rows of this rank from the next step on."""
        rank, ways = self.share
        return prepare.open_stream(
            self.rows,
            seed=self.config.runtime.seed,
            batch_size=self.config.train.batch_size,
            rank=rank,
            world=ways,
            start_step=self.done,
        )

    @property
    def share(self) -> tuple[int, int]:
        """Which share of the rows this process takes, of how many."""
        if self.cut is not None:
            return self.cut.data_rank, self.config.parallel.data
        return self.found.rank, self.found.world


class Validation:
    """The validation rows of a run, each rank taking its part, and the forward pass over them."""

    def __init__(self, trainer: Trainer):
        self.trainer, config = trainer, trainer.config
        self.rows = prepare.rows(config, trainer.tokenizer, "valid", trainer.kind, verify=False)
        self.evaluator = Evaluator(trainer.plain_loss) if trainer.cut is None else None
        # A cut network has one graph, which takes the rows of a step.
        train, world = config.train, trainer.found.world
        self.size = config.micro_batch_size * world if self.evaluator else train.batch_size

    def __call__(self) -> Score:
        """Loss over all validation rows."""
        trainer, (rank, ways) = self.trainer, self.trainer.share
        batches = eval_batches(self.rows, batch_size=self.size, rank=rank, world=ways)
        total = -(-len(self.rows) // self.size)
        if trainer.cut is not None:
            updates = trainer.updates
            return trainer.cut.measure(batches, trainer.shared, updates=updates, total=total)
        assert self.evaluator is not None
        return self.evaluator(batches, total=total, progress=rank == 0, gather=trainer.gather)


def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays that share no memory with the parameters that they came from."""
    return {name: array.copy() for name, array in arrays.items()}


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
