"""The network of a run whose layout cuts it: its compiled step and this device's parts of it.

Only compilation could be tried without Ascend cards; the steps themselves were never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.parallel.auto_parallel import AutoParallel
from tqdm import tqdm

from mindplm import runtime, tensors
from mindplm.checkpoint import Checkpoint
from mindplm.config import RunConfig
from mindplm.data.kinds import Draws
from mindplm.errors import DataError
from mindplm.evaluate import Score
from mindplm.families import family
from mindplm.nn.init import values
from mindplm.nn.values import as_tensor, from_arrays, to_arrays
from mindplm.parts import MOMENTS
from mindplm.shards import data_rank
from mindplm.slices import Cutter, Place, cut, size_of
from mindplm.train.optim import MASTER, Rates
from mindplm.train.sharded_step import REPORT, ShardedStep, inputs, of_step, sharded_step
from mindplm.train.step import Numbers, Report, micro_batch

_NEVER = 1 << 20
"""Updates that a step waits for in vain, so that it only measures."""
_STORED = {"float16": np.dtype("<f2"), "bfloat16": tensors.BF16, "float32": np.dtype("<f4")}
Reader = Callable[[str, Place, str], np.ndarray]
"""(name of a weight, place, "" or one of MOMENTS) -> what lies there, fp32."""


def empty_batch(config: RunConfig, num_rows: int) -> dict[str, np.ndarray]:
    """Empty rows, in the columns and sizes that the family's own collation makes."""
    kind = family(config.family).part("rows")
    marks = SimpleNamespace(**dict.fromkeys(kind.marks, 1))
    marks.vocab_size, marks.lines, marks.special_ids = config.model.vocab_size, (), ()
    none = np.zeros(1, np.int32)
    draws = Draws((none, none + 1), config.runtime.seed, [])
    shape = kind.settings(config, "train").shape
    return kind.collate([], num_rows=num_rows, shape=shape, marks=marks, draws=draws)


def at_once(config: RunConfig) -> int:
    """Micro-batches that one call of the compiled step takes."""
    return config.accumulation if config.parallel.pipeline > 1 else 1


def compiled(config: RunConfig) -> AutoParallel:
    """The step of a run, compiled for this device; its weights are not filled yet."""
    network = sharded_step(config)
    network.no_init_parameters_in_compile()
    columns = empty_batch(config, config.micro_batch_size * at_once(config))
    shared = set(family(config.family).part("shared_columns"))
    network.compile(*inputs(columns, shared, 1.0, at_once(config)))
    return network


class CutNetwork:
    """What a device holds of the network, of its moments, and the step; called as `TrainStep` is.

    Args:
        config: The run's settings.
        rank: Number of this process.
        gather: Exchanges numbers between the processes.
        compile: Makes the compiled step.

    Attributes:
        network: The compiled step.
        cutter: Where parts lie.
        first_places: For each process what it writes of the weights: what no process before has.
        held: Name of a weight -> "", MASTER and MOMENTS -> this device's part.
    """

    def __init__(
        self,
        config: RunConfig,
        rank: int,
        gather: Callable[..., np.ndarray],
        compile: Callable[[RunConfig], Any] = compiled,
    ):
        parts = family(config.family)
        self.config, self.rank, self._gather = config, rank, gather
        self.cutter = Cutter(parts.part("plan"), config, parts.part("shapes"))
        self.first_places = self.cutter.first_places()
        self._places = self.cutter.places(rank)
        self.network = compile(config)
        step: ShardedStep = self.network.network
        self._numbers = step.numbers
        self.optimizer, self.scaler, self._updates = (
            step.move.optimizer,
            step.move.scaler,
            step.move.updates,
        )
        self.held = self._find()

    def _find(self) -> dict[str, dict[str, Parameter]]:
        held: dict[str, dict[str, Parameter]] = {name: {} for name in self._places}
        for item in self._kept():
            kind = next((k for k in (MASTER, *MOMENTS) if item.name.startswith(k)), "")
            name = item.name[len(kind) :]
            if name not in held:
                continue
            if item.shape != size_of(self._places[name]):
                raise RuntimeError(
                    f"{item.name} has shape {item.shape} here, the plan says "
                    f"{size_of(self._places[name])}"
                )
            held[name][kind] = item
        return held

    def _kept(self) -> list[Parameter]:
        """What this device's graph keeps; there are parameters of other stages too."""
        used = set(self.network.parallel_parameter_name_list)
        return [item for item in self.network.get_parameters() if item.name in used]

    # --- weights and moments ----------------------------------------------------------------------

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, whole and without padding."""
        return self.cutter.shapes(self.config.model)

    def begin(self, known: Mapping[str, tensors.LazyArray]) -> None:
        """Fills the weights of a new run, as a run on one device has them.

        Args:
            known: Whole weights of another checkpoint; the others are new.
        """
        shapes = self.shapes
        stored = _STORED[self.config.runtime.dtype]

        def first(name: str, place: Place, kind: str) -> np.ndarray:
            if kind:
                return np.zeros(size_of(place), np.float32)
            if name in known:
                whole = np.asarray(known[name])
            else:
                whole = values(self.held[name][""], self.config.runtime.seed, shapes[name])
            return tensors.cast(tensors.cast(cut(whole, place), stored), np.dtype("<f4"))

        self._fill(first, "the first weights")

    def load(self, saved: Checkpoint, scalars: Mapping[str, Any]) -> None:
        """Takes weights, moments and scalars from a checkpoint, however it is cut.

        Args:
            saved: The checkpoint.
            scalars: Name -> value of `state`.
        """
        self._fill(saved.part, str(saved.folder))
        from_arrays(self.state(), scalars, f"{saved.folder}/train", fresh=True)

    def _fill(self, read: Reader, source: str) -> None:
        for name, place in self._places.items():
            if not self.held[name]:
                continue  # it comes from the first stage in each step
            value = read(name, place, "")
            for kind, item in self.held[name].items():
                array = read(name, place, kind) if kind in MOMENTS else value
                array = np.asarray(array, order="C")
                item.set_data(as_tensor(array, item, f"{source}: {item.name}"), slice_shape=True)
        for item in self._kept():
            if item.has_init:  # sums of gradients
                item.set_data(Tensor(np.zeros(item.shape, np.float32), item.dtype), True)

    def state(self) -> list[Parameter]:
        """What a checkpoint keeps beside weights and moments: loss scale, number of updates."""
        return [*self.scaler.state(), self._updates]

    def arrays(self, *, moments: bool) -> dict[str, np.ndarray]:
        """What this process writes of weights, and of moments if they are wanted, fp32."""
        wanted = MOMENTS if moments else ()
        found: dict[str, np.ndarray] = {}
        for name in self.first_places[self.rank]:
            held = self.held[name]
            kinds = {"": held.get(MASTER, held[""])}
            kinds.update({kind: held[kind] for kind in wanted if kind in held})
            for kind, item in kinds.items():
                (found[kind + name],) = to_arrays([item]).values()
        return found

    @property
    def num_bytes(self) -> int:
        """About the size of a checkpoint, of all processes together."""
        return 4 * (1 + len(MOMENTS)) * sum(math.prod(shape) for shape in self.shapes.values())

    # --- steps ------------------------------------------------------------------------------------

    def __call__(
        self, columns: Mapping[str, np.ndarray], shared: set[str], numbers: Numbers
    ) -> Any:
        """Runs one optimizer step on this device's rows; see `TrainStep`."""
        together = at_once(self.config)
        passes = self.config.accumulation // together
        vector = None
        for part in range(passes):
            last = part == passes - 1
            if last or part == 0:
                ops.assign(self._numbers, Tensor(of_step(numbers, last)))
            rows = micro_batch(columns, shared, part, passes)
            vector = self.network(*inputs(rows, shared, numbers.targets, together))
        return vector

    def report(self, vector: Any) -> Report:
        """What a step tells; in a pipeline the last process alone knows all of it."""
        told = np.zeros(REPORT, np.float32)
        parallel = self.config.parallel
        if parallel.pipeline == 1 or self.rank == parallel.devices - 1:
            told = vector if isinstance(vector, np.ndarray) else vector.asnumpy()
        if parallel.pipeline > 1:
            told = self._gather(*told.tolist())[-1]
        return Report.of(told)

    def measure(
        self, batches: Iterable[Any], shared: set[str], *, updates: int, total: int
    ) -> Score:
        """Loss over batches, by the step itself, told to move no weight.

        So no second graph is needed, at the price of a backward pass.

        Args:
            batches: (columns, info) pairs of this device's rows.
            shared: Columns that belong to the whole batch.
            updates: Updates made so far.
            total: Number of batches.

        Raises:
            DataError: Nothing in the batches is predicted.
        """
        before = {name: array.copy() for name, array in to_arrays(self.scaler.state()).items()}
        none = [Rates(0.0, 0.0, 0.0)] * (runtime.steps_ahead() + 1)
        nats, targets, chars, rows = 0.0, 0, 0, 0
        hidden = True if self.rank else None
        for columns, info in tqdm(batches, total=total, desc="evaluate", disable=hidden):
            numbers = Numbers(info["targets"], none, updates + _NEVER)
            nats += self.report(self(columns, shared, numbers)).loss * info["targets"]
            targets, chars = targets + info["targets"], chars + info["chars"]
            rows += len(info["rows"])
        from_arrays(self.scaler.state(), before, "the loss scale before validation")
        if not targets:
            raise DataError("the evaluation rows predict nothing")
        nats = float(self._gather(nats)[-1, 0])  # the same bits for all, who decide by them
        return Score(nats, targets, chars, rows)

    @property
    def data_rank(self) -> int:
        """Which share of every batch this device takes, of parallel.data shares."""
        return data_rank(self.rank, self.config.parallel)
