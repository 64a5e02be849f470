"""Shard plans: which axes of weights and operators are cut over which devices, as data.

An operand is written as one letter an axis: "bhts"; "(bt)d" has the product of b and t for its
first axis; "1" is an axis of size one; "" a scalar. An operator is written as
"vd, bt -> btd". A plan says for each letter whether it is cut over the data axis of the mesh, over
its model axis, or not at all; u stands for positions of the residual stream, which are cut over
the model axis when parallel.sequence asks for it.

Everything here is checked without MindSpore; `mindplm.train.sharding` lays a plan over a network.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mindplm.errors import ConfigError
from mindplm.strict import require

if TYPE_CHECKING:
    from mindplm.config import ParallelConfig, RunConfig

VOCAB_UNIT = 128
_TOKEN = re.compile(r"\([a-z]+\)|[a-z]|1")


@functools.cache
def operand(text: str) -> tuple[str, ...]:
    """Axes of one operand: "(bt)d" gives ("(bt)", "d")."""
    found = tuple(_TOKEN.findall(text))
    require("".join(found) == text, f"shard plan: {text!r} is not made of letters, (..) and 1")
    return found


def operands(text: str) -> tuple[tuple[str, ...], ...]:
    """Axes of a list of operands with commas between."""
    return tuple(operand(part.strip()) for part in text.split(","))


@dataclass(frozen=True)
class Part:
    """An operator, or a cell without weights, and the axes of what goes in and comes out.

    A cell that computes on what a device holds, without communication, must be linear in what
    comes back in the backward pass, which all gradients are.
    """

    path: str
    """Where it is in the network; {i} stands for a number."""
    spec: str
    """Operands, as the module's legend says."""
    dtypes: tuple[str, ...] = ()
    """Types of a cell's results; (): that of its first argument for all."""

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """Axes of the arguments."""
        return operands(self.spec.partition("->")[0])

    @property
    def outputs(self) -> tuple[tuple[str, ...], ...]:
        """Axes of the results."""
        return operands(self.spec.partition("->")[2])


@dataclass(frozen=True)
class Unit:
    """How often a letter can be cut: the setting that says so and its value."""

    name: str
    count: int


@dataclass(frozen=True)
class ShardPlan:
    """The plan of one family."""

    axes: Mapping[str, str]
    """Letter -> data, model, or sequence (model under parallel.sequence); others are not cut."""
    weights: Mapping[str, str]
    """Pattern of a weight's name -> its axes."""
    parts: tuple[Part, ...]
    """Operators and cells of the training network, those of `weights` in them."""
    columns: Mapping[str, str]
    """Column of a batch -> its axes."""
    units: Callable[[Any, ParallelConfig], Mapping[str, Unit]]
    """(model config, parallel) -> letter -> what its cuts must divide."""
    block_costs: Callable[[Any], Sequence[int]]
    """model config -> cost of each block; one more entry for what follows the last block."""
    staged: bool = True
    """Whether its training cell can be cut into pipeline stages."""
    optional: frozenset[str] = frozenset()
    """Patterns of weights, and paths of parts, that not every model of the family has."""
    homes: Mapping[str, str] = field(default_factory=dict)
    """Name of a weight outside the blocks -> pipeline stages that use it: all, ends (the first and
    the last), last; last for those that are not named."""

    def mesh_axes(self, token: str, parallel: ParallelConfig) -> tuple[str, ...]:
        """Mesh axes that an axis is cut over, the slowest first."""
        names = [self.axes.get(letter) for letter in token.strip("()")]
        if not parallel.sequence:
            names = [name for name in names if name != "sequence"]
        return tuple("model" if name == "sequence" else name for name in names if name)

    def cuts(self, token: str, parallel: ParallelConfig) -> int:
        """Number of pieces of an axis."""
        ways = {"data": parallel.data, "model": parallel.model}
        return math.prod(ways[name] for name in self.mesh_axes(token, parallel))

    def strategy(self, axes: Sequence[str], parallel: ParallelConfig) -> tuple[int, ...]:
        """Pieces of each axis of an operand."""
        return tuple(self.cuts(token, parallel) for token in axes)

    def weight_axes(self, name: str) -> tuple[str, ...]:
        """Axes of a weight.

        Raises:
            ConfigError: Not exactly one pattern fits the name.
        """
        found = [text for pattern, text in self.weights.items() if matches(pattern, name)]
        require(len(found) == 1, f"shard plan: {len(found)} entries fit the weight {name}")
        return operand(found[0])

    def slice_shape(
        self, name: str, shape: Sequence[int], parallel: ParallelConfig
    ) -> tuple[int, ...]:
        """Shape of what one device computes with of a weight, before optimizer sharding."""
        cuts = self.strategy(self.weight_axes(name), parallel)
        return tuple(size // cut for size, cut in zip(shape, cuts))


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern in which {i} stands for a number."""
    return _compiled(pattern).fullmatch(name) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(re.escape("{i}"), r"\d+"))


# --- what follows from the settings ---------------------------------------------------------------


def vocab_rows(vocab_size: int, parallel: ParallelConfig) -> int:
    """Rows of the embedding: a multiple of model x 128, so that devices hold even parts of it."""
    if parallel.vocab_rows:
        return parallel.vocab_rows
    if parallel.model == 1:
        return vocab_size
    unit = parallel.model * VOCAB_UNIT
    return -(-vocab_size // unit) * unit


def stages_of(costs: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Pipeline stage of each block, so that the dearest stage is as cheap as it can be.

    Args:
        costs: Cost of each block, and one more that belongs to the last stage.
        num_stages: Stages; each gets at least one block.
    """
    blocks, tail = list(costs[:-1]), costs[-1]
    total = [0]
    for cost in blocks:
        total.append(total[-1] + cost)
    count = len(blocks)
    # best[k][i]: dearest stage if the first i blocks are in k stages; the tail comes with the last
    best = [[math.inf] * (count + 1) for _ in range(num_stages + 1)]
    cut = [[0] * (count + 1) for _ in range(num_stages + 1)]
    best[0][0] = 0
    for k in range(1, num_stages + 1):
        for i in range(k, count + 1):
            more = tail if k == num_stages else 0
            for j in range(k - 1, i):
                dearest = max(best[k - 1][j], total[i] - total[j] + more)
                if dearest < best[k][i]:
                    best[k][i], cut[k][i] = dearest, j
    stages: list[int] = []
    end = count
    for k in range(num_stages, 0, -1):
        begin = cut[k][end]
        stages[:0] = [k - 1] * (end - begin)
        end = begin
    return tuple(stages)


def shard_threshold_kb(parallel: ParallelConfig) -> int:
    """Weights from this size on are spread over the data axis by parallel.optimizer_shard.

    Small ones stay whole, but what pipeline stages share must be spread to compile.
    """
    return 64 if parallel.pipeline == 1 else 1


def stage_of_rank(rank: int, parallel: ParallelConfig) -> int:
    """Pipeline stage of a process; stages follow one another in the order of ranks."""
    return rank * parallel.pipeline // parallel.devices


def data_rank(rank: int, parallel: ParallelConfig) -> int:
    """Which share of the rows a process takes; the model index runs fastest in a stage."""
    return rank % (parallel.devices // parallel.pipeline) // parallel.model


def num_copies(plan: ShardPlan, name: str, parallel: ParallelConfig) -> int:
    """How many processes of a stage compute with the same part of a weight.

    parallel.optimizer_shard spreads the part over them.
    """
    ways = plan.strategy(plan.weight_axes(name), parallel)
    return parallel.data * parallel.model // math.prod(ways)


def is_held(name: str, plan: ShardPlan, stages: Sequence[int], stage: int) -> bool:
    """Whether a pipeline stage has a weight.

    Args:
        name: Of the weight.
        plan: The plan.
        stages: Stage of each block.
        stage: The stage asked about.
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return stages[int(block[1])] == stage
    home, last = plan.homes.get(name, "last"), max(stages)
    return stage == last or home == "all" or (home == "ends" and stage == 0)


def held_shapes(
    plan: ShardPlan,
    config: RunConfig,
    shapes: Callable[[Any], Mapping[str, tuple[int, ...]]],
    rank: int = 0,
) -> dict[str, tuple[int, ...]]:
    """What one process keeps of each weight, of its moments and of the sum of its gradients.

    Args:
        plan: The family's plan.
        config: The run's settings.
        shapes: model config -> name -> shape of every weight.
        rank: The process.

    Returns:
        Name -> shape, of the weights that its stage has.
    """
    parallel = config.parallel
    stages = stages_of(plan.block_costs(config.model), parallel.pipeline)
    padded = replace(config.model, vocab_size=vocab_rows(config.model.vocab_size, parallel))
    size = 4 if config.runtime.dtype == "float32" else 2
    held = {}
    for name, shape in shapes(padded).items():
        if not is_held(name, plan, stages, stage_of_rank(rank, parallel)):
            continue
        cut = plan.slice_shape(name, shape, parallel)
        # The compiler counts the whole weight, before it is cut.
        large = size * math.prod(shape) >= 1024 * shard_threshold_kb(parallel)
        copies = num_copies(plan, name, parallel)
        if parallel.optimizer_shard and large and cut[0] % copies == 0:
            cut = (cut[0] // copies, *cut[1:])
        held[name] = cut
    return held


# --- checks ---------------------------------------------------------------------------------------


def check_cards(parallel: ParallelConfig, cards: int) -> None:
    """Refuses a number of processes that is not the product of the mesh.

    Raises:
        ConfigError: Too few or too many.
    """
    if cards != parallel.devices:
        ways = (
            f"parallel.data x model x pipeline = {parallel.data} x {parallel.model} x "
            f"{parallel.pipeline} = {parallel.devices}"
        )
        if parallel.devices == parallel.data:
            ways = f"parallel.data={parallel.data}"
        raise ConfigError(
            f"{ways}, but the number of processes is {cards}; start as many with msrun"
        )


def check(plan: ShardPlan, config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks a layout against a plan: names, sizes, cuts, vocabulary, batch and stages.

    Args:
        plan: The family's plan.
        config: The run's settings.
        shapes: Name -> shape of every weight; the embedding has the rows of `vocab_rows`.

    Raises:
        ConfigError: What does not fit, with the settings and what is accepted.
    """
    parallel, model = config.parallel, config.model
    units = plan.units(model, parallel)
    _check_vocabulary(parallel, model.vocab_size)
    _check_stages(plan, config)
    for letter, unit in units.items():
        if unit.count % plan.cuts(letter, parallel):
            nearest = ", ".join(str(i) for i in range(1, unit.count + 1) if unit.count % i == 0)
            raise ConfigError(
                f"parallel.model={parallel.model} does not divide {unit.name}={unit.count}; "
                f"accepted: {nearest}"
            )
    if parallel.sequence and config.data.seq_len % parallel.model:
        raise ConfigError(
            f"data.seq_len={config.data.seq_len} is not a multiple of "
            f"parallel.model={parallel.model}, as parallel.sequence needs"
        )
    _check_weights(plan, parallel, shapes)


def _check_vocabulary(parallel: ParallelConfig, vocab_size: int) -> None:
    rows, unit = vocab_rows(vocab_size, parallel), parallel.model * VOCAB_UNIT
    odd = parallel.model > 1 and rows % unit != 0
    if rows < vocab_size or odd:
        wanted = -(-vocab_size // unit) * unit if parallel.model > 1 else vocab_size
        raise ConfigError(
            f"parallel.vocab_rows={rows}: a vocabulary of {vocab_size} over parallel.model="
            f"{parallel.model} devices needs at least as many rows, in a multiple of "
            f"{parallel.model} x {VOCAB_UNIT} = {unit}; nearest: {wanted}, or 0 to have it chosen"
        )


def _check_stages(plan: ShardPlan, config: RunConfig) -> None:
    stages, micro = config.parallel.pipeline, config.accumulation
    if stages > 1 and not plan.staged:
        raise ConfigError(
            f"parallel.pipeline={stages}: {config.family} is not cut into stages, only cpm_bee is; "
            "accepted: 1"
        )
    num_blocks = len(plan.block_costs(config.model)) - 1
    if stages > num_blocks:
        raise ConfigError(
            f"parallel.pipeline={stages} is more than model.num_layers={num_blocks}; "
            f"accepted: 1 to {num_blocks}"
        )
    if stages > 1 and micro < stages:
        raise ConfigError(
            f"parallel.pipeline={stages} needs at least as many micro-batches, but "
            f"train.batch_size / train.micro_batch_size / parallel.data = {micro}; "
            f"set parallel.micro_batches={stages} or more"
        )


def _check_weights(
    plan: ShardPlan, parallel: ParallelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in shapes.items():
        axes = plan.weight_axes(name)
        require(
            len(axes) == len(shape),
            f"shard plan: {name} has {len(shape)} axes, its entry {len(axes)}",
        )
        for size, cut in zip(shape, plan.strategy(axes, parallel)):
            require(size % cut == 0, f"{name} of shape {shape} is not cut into {cut} even parts")
    wanted = [pattern for pattern in plan.weights if pattern not in plan.optional]
    unused = [p for p in wanted if not any(matches(p, name) for name in shapes)]
    require(not unused, f"shard plan: no weight has the name {', '.join(unused)}")
