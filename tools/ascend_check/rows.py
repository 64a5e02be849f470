"""What the compile check compiles: sizes, layouts, devices, and the settings they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mindplm.config import RunConfig
from mindplm.families import FAMILIES, check_layout, config_from_dict, family
from mindplm.shards import check_cards, stages_of

SIZES = ("1b", "2b", "5b", "10b")
STEP, WRITE = "step", "write"
_MICRO_BATCH = 2
_TINY = {
    "preset": "tiny",
    **{"vocab_size": 1000, "hidden_size": 64, "num_heads": 4, "head_dim": 16, "ffn_size": 128},
}


@dataclass(frozen=True)
class Layout:
    """How many cards, how they are used, and in which type."""

    cards: int
    data: int = 1
    model: int = 1
    pipeline: int = 1
    micro_batches: int = 1
    optimizer_shard: bool = False
    recompute: bool = False
    sequence: bool = False
    dtype: str = "float16"

    def parallel(self) -> dict[str, Any]:
        """The parallel section."""
        names = ("data", "model", "pipeline", "micro_batches", "optimizer_shard", "recompute")
        return {name: getattr(self, name) for name in (*names, "sequence")}

    @property
    def name(self) -> str:
        """dp8 x tp2 x pp4, and what else is on."""
        parts = [f"dp{self.data}"]
        parts += [f"tp{self.model}"] if self.model > 1 else []
        parts += [f"pp{self.pipeline}"] if self.pipeline > 1 else []
        return " x ".join(parts)

    @property
    def options(self) -> str:
        """Optimizer shard, recompute, sequence parallel, micro-batches."""
        words = [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        flags = {
            "optimizer shard": self.optimizer_shard,
            "recompute": self.recompute,
            "sequence": self.sequence,
        }
        return ", ".join([*(name for name, on in flags.items() if on), *words])


LAYOUTS: tuple[Layout, ...] = (
    Layout(8, data=8, recompute=True),
    Layout(8, data=8, optimizer_shard=True, recompute=True),
    Layout(8, data=4, model=2, optimizer_shard=True, recompute=True),
    Layout(8, model=8, recompute=True),
    Layout(8, data=2, model=2, pipeline=2, micro_batches=4, recompute=True),
    Layout(64, data=64, recompute=True),
    Layout(64, data=64, optimizer_shard=True, recompute=True),
    Layout(64, data=8, model=8, optimizer_shard=True, recompute=True),
    Layout(64, data=8, model=8, optimizer_shard=True, recompute=True, sequence=True),
    Layout(64, data=8, model=2, pipeline=4, micro_batches=8, optimizer_shard=True, recompute=True),
    Layout(256, data=256, recompute=True),
    Layout(256, data=32, model=8, optimizer_shard=True, recompute=True),
    Layout(
        256, data=16, model=4, pipeline=4, micro_batches=8, optimizer_shard=True, recompute=True
    ),
    Layout(256, data=32, model=8, optimizer_shard=True, recompute=True, dtype="bfloat16"),
)


@dataclass(frozen=True)
class Row:
    """One graph of one device.

    Attributes:
        name: Size, or the file of the settings.
        layout: Cards and what they do.
        rank: The device.
        tree: Settings of a run.
        graph: STEP or WRITE.
        note: What differs from the size's own shape.
    """

    name: str
    layout: Layout
    rank: int
    tree: Mapping[str, Any] = field(repr=False)
    graph: str = STEP
    note: str = ""

    def config(self) -> RunConfig:
        """The checked settings.

        Raises:
            ConfigError: The layout does not fit; says which settings and what is accepted.
        """
        config = config_from_dict(self.tree, self.name)
        check_cards(config.parallel, self.layout.cards)
        check_layout(config)
        return config

    @property
    def stage(self) -> int:
        """Pipeline stage of the device."""
        return self.rank * self.layout.pipeline // self.layout.cards


def tree_of(
    model: Mapping[str, Any], layout: Layout, seq_len: int = 2048, name: str = "cpm_bee"
) -> dict[str, Any]:
    """Settings of a run of a family."""
    rows = _MICRO_BATCH * layout.data * layout.micro_batches
    return {
        "family": name,
        "model": dict(model),
        "train": {"steps": 1, "output": "unused", "batch_size": rows},
        "data": {"train": [{"path": "unused"}], "folder": "unused", "seq_len": seq_len},
        "runtime": {"device": "ascend", "dtype": layout.dtype},
        "parallel": layout.parallel(),
    }


def ranks(layout: Layout, few: bool = False) -> Iterator[int]:
    """First and last rank of each stage; few: the first of the first, the last of the last."""
    size = layout.cards // layout.pipeline
    for stage in range(layout.pipeline):
        ends = {stage * size, (stage + 1) * size - 1}
        if few:
            ends &= {0, layout.cards - 1}
        yield from sorted(ends)


def rows_of(size: str, layout: Layout, *, few: bool = False, layers: int = 0) -> Iterator[Row]:
    """The rows of a size under a layout, at its real width; layers: as many a stage, 0 for all."""
    model: dict[str, Any] = {"preset": size}
    note = ""
    if layers:
        whole = Row(size, layout, 0, tree_of(model, layout)).config().model
        first = layers * layout.pipeline
        note = f"the first {first} of {whole.num_layers} layers"
        for name in ("no_attention", "no_ffn"):
            model[name] = [layer for layer in getattr(whole, name) if layer < first]
        model["num_layers"] = first
    for rank in ranks(layout, few):
        yield Row(size, layout, rank, tree_of(model, layout), note=note)


def one_card() -> Iterator[Row]:
    """Every operator of training, reading a prompt and writing, on one card, in both half types.

    The small preset has all kinds of layers that the sizes have; two layers of it are enough.
    """
    model = {"preset": "small", "num_layers": 2}
    for dtype in ("float16", "bfloat16"):
        layout = Layout(1, dtype=dtype)
        for graph in (STEP, WRITE):
            shapes = {**model, "vocab_size": _shipped_vocabulary()}
            tree = tree_of(shapes, layout, seq_len=512)
            yield Row("small", layout, 0, tree, graph, note="2 layers")


def families() -> Iterator[Row]:
    """Every other family with two layers, and T5's 11b with as many a stack; data parallel, with
    dropout, and cut by the family's plan."""
    whole = Layout(8, data=8, recompute=True)
    cut = Layout(8, data=4, model=2, optimizer_shard=True, recompute=True)
    for name in FAMILIES:
        if name == "cpm_bee":
            continue
        model = {"preset": "tiny", "num_layers": 2, "vocab_size": 1000}
        dropped = tree_of({**model, "dropout": 0.1}, whole, 64, name)
        yield Row(name, whole, 0, dropped, note="tiny, 2 layers")
        parted = tree_of(model, cut, 64, name)
        yield Row(name, cut, cut.cards - 1, parted, note="tiny, 2 layers")
    model = {"preset": "11b", "num_layers": 2, "num_decoder_layers": 2}
    for layout in (whole, Layout(8, data=2, model=4, optimizer_shard=True, recompute=True)):
        tree = tree_of(model, layout, 512, "t5")
        yield Row("t5 11b", layout, 0, tree, note="2 + 2 layers")


def subset() -> Iterator[Row]:
    """A few rows of a model of two layers, that compile in less than a minute together."""
    model = _TINY
    note = "tiny, 2 layers"
    layout = Layout(8, data=2, model=4, optimizer_shard=True)
    yield Row("tiny", layout, 3, tree_of(model, layout, 64), note=note)
    layout = Layout(1, dtype="bfloat16")
    yield Row("tiny", layout, 0, tree_of(model, layout, 64), note=note)
    plain = {**model, "vocab_size": _shipped_vocabulary()}
    yield Row("tiny", layout, 0, tree_of(plain, layout, 64), WRITE, note=note)


def small() -> Iterator[Row]:
    """Every kind of layout on eight cards, with a model of two layers."""
    kinds = (
        Layout(8, data=2, model=2, pipeline=2, micro_batches=4, recompute=True),
        Layout(8, data=2, model=4, micro_batches=4, optimizer_shard=True, recompute=True),
        Layout(8, data=4, model=2, recompute=True, sequence=True),
        Layout(8, data=2, model=2, pipeline=2, micro_batches=4, optimizer_shard=True),
        Layout(8, data=8, micro_batches=2, recompute=True),
    )
    for layout in kinds:
        for rank in ranks(layout, few=layout.pipeline == 1):
            yield Row("tiny", layout, rank, tree_of(_TINY, layout, 64), note="tiny, 2 layers")


def _shipped_vocabulary() -> int:
    from mindplm.config import TokenizerConfig
    from mindplm.families import vocab_path

    return family("cpm_bee").part("vocab_size")(vocab_path(TokenizerConfig()))


def stage_layers(config: RunConfig) -> list[int]:
    """Number of blocks of each pipeline stage."""
    parts = family(config.family)
    if not parts.plan_ref:
        return [config.model.num_layers]
    stages = stages_of(parts.part("plan").block_costs(config.model), config.parallel.pipeline)
    return [stages.count(stage) for stage in range(config.parallel.pipeline)]
