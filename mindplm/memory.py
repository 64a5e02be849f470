"""Memory of one device in training and writing, counted from the settings; runs nothing.

For devices that give memory back during a step, which Ascend's do, counted is what a step keeps and
the largest of what comes and goes beside it; what the framework itself takes (graphs, buffers of
communication, gaps of its pool) is not in it, and no card was there to measure. MindSpore's CPU
backend gives less back, and its kernels keep tables: there the count follows measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mindplm.families import family
from mindplm.shards import held_shapes, stages_of, vocab_rows

if TYPE_CHECKING:
    from mindplm.config import RunConfig

GIB = 2**30
COUNTED = ("cpm_bee",)
"""Families whose activations are counted; of others weights and what goes with them are."""
_FULL = 4
"""Bytes of fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        weights: In the type of the run.
        masters: fp32 copies of half weights.
        moments: Two of the optimizer.
        gradients: Of one pass.
        sums: Gradients added up over micro-batches.
        gathered: Whole weights that are gathered from their parts to compute with.
        activations: What the forward pass keeps for the backward pass.
        bias: Position bias with the mask, its gradient, and the rows of its table.
        working: Largest of what a block's backward pass has beside that.
        logits: Scores of the targets and what their gradient needs.
        update: Largest of what clipping and the update have beside the gradients.
    """

    weights: int
    masters: int
    moments: int
    gradients: int
    sums: int
    gathered: int
    activations: int
    bias: int
    working: int
    logits: int
    update: int

    @property
    def kept(self) -> int:
        """What is there all the time."""
        return self.weights + self.masters + self.moments + self.sums

    @property
    def peak(self) -> int:
        """The most at once: in the loss, in a block's gradient, or in the update."""
        forward = self.activations + self.bias + self.gathered
        return self.kept + max(
            forward + self.logits,
            forward + self.working + self.gradients // 2,
            self.gradients + self.update,
        )


def plan(config: RunConfig, rank: int = 0) -> Memory:
    """Memory of one device of a training run.

    Args:
        config: The run's settings; its family has a shard plan. Activations are 0 where they are
            not counted.
        rank: The device.
    """
    parts, parallel = family(config.family), config.parallel
    shapes = parts.part("shapes")
    width = 4 if config.runtime.dtype == "float32" else 2
    held = sum(map(math.prod, held_shapes(parts.part("plan"), config, shapes, rank).values()))
    alone = replace(config, parallel=replace(parallel, optimizer_shard=False))
    whole = sum(map(math.prod, held_shapes(parts.part("plan"), alone, shapes, rank).values()))
    counts = _Activations.of(config, rank) if config.family in COUNTED else _Activations()
    half = width < _FULL
    return Memory(
        weights=width * held,
        masters=_FULL * held if half else 0,
        moments=2 * _FULL * held,
        gradients=width * held,
        sums=_FULL * held if config.accumulation > 1 else 0,
        gathered=width * whole if parallel.optimizer_shard else 0,
        activations=counts.kept(parallel.recompute),
        bias=counts.bias,
        working=counts.working(parallel.recompute),
        logits=counts.logits,
        update=(width + (_FULL if half else 0)) * max(_largest(config, rank), 0) * 2,
    )


def _largest(config: RunConfig, rank: int) -> int:
    """Numbers of the largest weight of a device."""
    parts = family(config.family)
    held = held_shapes(parts.part("plan"), config, parts.part("shapes"), rank)
    return max(math.prod(shape) for shape in held.values())


@dataclass(frozen=True)
class _Activations:
    """Bytes of activations of one device of a CPM-Bee run.

    Attributes:
        stream: A tensor of the residual stream, [rows x positions, hidden].
        attention: What one attention keeps beside inputs of norms.
        scores: An fp32 tensor of all pairs of positions of a block.
        inner: What one feed-forward part keeps beside inputs of norms.
        pairs: A number for each pair of positions.
        logits: Scores and what their gradient needs.
        attentions, inners: How many of them this stage has.
        blocks: Blocks of this stage.
        passes: Micro-batches whose activations are there at once.
    """

    stream: int = 0
    attention: int = 0
    scores: int = 0
    inner: int = 0
    pairs: int = 0
    logits: int = 0
    attentions: int = 0
    inners: int = 0
    blocks: int = 0
    passes: int = 0

    @classmethod
    def of(cls, config: RunConfig, rank: int) -> _Activations:
        """Counts of the stage that a device belongs to."""
        model, parallel = config.model, config.parallel
        width = 4 if config.runtime.dtype == "float32" else 2
        stages = stages_of(family(config.family).part("plan").block_costs(model), parallel.pipeline)
        stage = rank * parallel.pipeline // parallel.devices
        own = [i for i, place in enumerate(stages) if place == stage]
        rows, length = config.micro_batch_size, config.data.seq_len
        tokens, heads = rows * length, model.num_heads // parallel.model
        heads_width = heads * model.head_dim
        pairs = rows * length * length
        rows_of_table = vocab_rows(model.vocab_size, parallel) // parallel.model
        last = stage == parallel.pipeline - 1
        half = width < _FULL
        probabilities = heads * pairs * (_FULL + (width if half else 0))
        return cls(
            stream=tokens * model.hidden_size * width,
            attention=tokens * 4 * heads_width * width + probabilities,
            scores=heads * pairs * _FULL,
            inner=tokens * 6 * (model.ffn_size // parallel.model) * width,
            pairs=pairs * 4,
            logits=3 * rows * config.max_targets * rows_of_table * _FULL if last else 0,
            attentions=sum(i not in model.no_attention for i in own),
            inners=sum(i not in model.no_ffn for i in own),
            blocks=len(own),
            passes=min(config.accumulation, parallel.pipeline - stage),
        )

    def kept(self, recompute: bool) -> int:
        """For the backward pass of all micro-batches that are on their way."""
        if recompute:
            return self.passes * (self.blocks + 1) * self.stream
        each = self.attentions * (self.attention + 2 * self.stream)
        each += self.inners * (self.inner + 2 * self.stream) + self.stream
        return self.passes * each

    def working(self, recompute: bool) -> int:
        """Of the block whose gradient is being computed."""
        again = 0
        if recompute:
            again = self.attention * (self.attentions > 0) + self.inner * (self.inners > 0)
        return again + 3 * self.scores * (self.attentions > 0) + 4 * self.stream

    @property
    def bias(self) -> int:
        """The bias and its gradient, and integers for pairs of positions."""
        return (2 * self.scores + 3 * self.pairs) * (self.attentions > 0)


# Results of operators of a training step on CPU, MindSpore 2.10: found by solving the peaks of
# nine networks, each large in another part, for these numbers.
_CPU_FRAMEWORK, _CPU_LAYER = 279 * 10**6, 14 * 10**6
_CPU_TABLE, _CPU_LOGITS = 0.2, 1.9
_CPU_SCORES, _CPU_SCORES_ONCE, _CPU_PAIRS = 1.0, 9.7, 4.8
_CPU_INNER, _CPU_STREAM = 5.6, 6.6


def cpu_peak(config: RunConfig) -> int:
    """What a process takes more in training on CPU than before it made the network, in bytes.

    Recomputing takes no less there: measured peaks with and without it follow the same numbers.

    Args:
        config: The run's settings, of an fp32 run of CPM-Bee.
    """
    model, memory = config.model, plan(config)
    counts = _Activations.of(config, 0)
    inner = counts.inner // 6
    blocks = counts.attentions * (_CPU_SCORES * counts.scores + _CPU_STREAM * counts.stream)
    blocks += counts.inners * (_CPU_INNER * inner + _CPU_STREAM * counts.stream)
    once = _CPU_SCORES_ONCE * counts.scores + _CPU_PAIRS * counts.pairs
    table = _FULL * model.vocab_size * model.hidden_size
    rest = _CPU_TABLE * table + _CPU_LOGITS * (counts.logits // 3) + 2 * memory.gradients
    framework = _CPU_FRAMEWORK + _CPU_LAYER * model.num_layers
    return int(framework + memory.kept + blocks + once + rest)


def cache_bytes(config: RunConfig, *, rows: int, length: int) -> int:
    """Keys and values of so many rows of so many positions in writing, on one device."""
    model = config.model
    width = 4 if config.runtime.dtype == "float32" else 2
    each = 2 * model.num_heads * model.head_dim * width
    return each * len(model.attention_layers) * rows * length


def lines(config: RunConfig) -> list[str]:
    """The plan for people: of the device that needs most."""
    if not family(config.family).plan_ref:
        return []
    parallel = config.parallel
    size = parallel.devices // parallel.pipeline
    plans = [plan(config, stage * size) for stage in range(parallel.pipeline)]
    worst = max(plans, key=lambda found: found.peak)
    where = f", stage {plans.index(worst) + 1} of {len(plans)}" if len(plans) > 1 else ""
    told = [
        f"memory of one device in training{where}: {worst.peak / GIB:.2f} GiB at most, of it "
        f"{worst.kept / GIB:.2f} all the time; counted for Ascend, without the framework's own"
        + ("" if config.family in COUNTED else ", and without activations")
    ]
    told += [f"  {name:<11} {value / GIB:8.3f} GiB" for name, value in _parts(worst) if value]
    if config.family not in COUNTED:
        return told
    other = replace(config, parallel=replace(parallel, recompute=not parallel.recompute))
    word = "without" if parallel.recompute else "with"
    changed = max(plan(other, stage * size).peak for stage in range(parallel.pipeline))
    told.append(f"  {word} parallel.recompute {changed / GIB:.2f} GiB at most")
    cache = cache_bytes(config, rows=1, length=config.data.seq_len)
    told.append(
        f"  keys and values of writing, a row of {config.data.seq_len} positions: "
        f"{cache / GIB:.3f} GiB"
    )
    if config.runtime.device in ("auto", "cpu") and parallel.devices == parallel.data:
        told.append(
            f"memory of a process on CPU, whose kernels keep tables of their own: "
            f"{cpu_peak(config) / GIB:.2f} GiB more than before"
        )
    return told


def _parts(memory: Memory) -> list[tuple[str, int]]:
    return [(name, int(value)) for name, value in vars(memory).items()]


# --- which layouts fit ----------------------------------------------------------------------------


def fitting(
    config: RunConfig, cards: int, room: int, *, micro_batch_size: int = 1
) -> list[tuple[RunConfig, int]]:
    """Layouts of so many cards whose counted peak is below a room in bytes, the leanest first.

    Args:
        config: Model, lengths and type; its layout is replaced.
        cards: Devices.
        room: Bytes that a card has for a run.
        micro_batch_size: Rows of one pass.
    """
    from mindplm.errors import ConfigError
    from mindplm.families import check_layout

    if config.family not in COUNTED:
        raise ConfigError(
            f"activations of {config.family} are not counted; accepted: {', '.join(COUNTED)}"
        )
    found = []
    for ways in layouts(cards):
        data, stages = ways["data"], ways["pipeline"]
        passes = 2 * stages if stages > 1 else 1
        train = replace(
            config.train,
            batch_size=micro_batch_size * data * passes,
            micro_batch_size=micro_batch_size,
        )
        try:
            made = replace(
                config, train=train, parallel=replace(config.parallel, micro_batches=0, **ways)
            )
            check_layout(made)
        except ConfigError:
            continue
        size = made.parallel.devices // stages
        peak = max(plan(made, stage * size).peak for stage in range(stages))
        if peak <= room:
            found.append((made, peak))
    return sorted(found, key=lambda entry: entry[1])


def layouts(cards: int) -> list[Mapping[str, Any]]:
    """Every way to use cards: data x model x pipeline, model at most 8, pipeline at most 8."""
    ways: list[Mapping[str, Any]] = []
    for model in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8):
            if cards % (model * pipeline):
                continue
            data = cards // (model * pipeline)
            for shard in (False, True) if data > 1 else (False,):
                ways.append(
                    {"data": data, "model": model, "pipeline": pipeline, "optimizer_shard": shard}
                )
    return ways
