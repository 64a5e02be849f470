"""The settings of a run: one tree of frozen dataclasses, one field = one YAML key = one override.

The text under a field is its help. The family's own keys are a dataclass in its model package,
which comes in as a `ModelType`; this module knows no family.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Protocol

from mindplm.config_data import DataConfig as DataConfig
from mindplm.config_data import SourceConfig as SourceConfig
from mindplm.config_distill import DistillConfig as DistillConfig
from mindplm.config_finetune import FinetuneConfig as FinetuneConfig
from mindplm.config_generate import GenerateConfig as GenerateConfig
from mindplm.config_head import HeadConfig as HeadConfig
from mindplm.config_lora import LoraConfig as LoraConfig
from mindplm.config_parallel import ParallelConfig as ParallelConfig
from mindplm.config_shape import ShapeConfig as ShapeConfig
from mindplm.config_train import OptimConfig as OptimConfig
from mindplm.config_train import TrainConfig as TrainConfig
from mindplm.errors import ConfigError
from mindplm.strict import (
    Source,
    apply_overrides,
    at_least,
    build,
    describe,
    key_paths,
    require,
    suggest,
    to_plain,
)
from mindplm.yaml_io import dump_yaml, load_yaml


class ModelType(Protocol):
    """What a family brings to the loader."""

    @property
    def config(self) -> type:
        """The dataclass of the model section."""

    @property
    def presets(self) -> Mapping[str, Any]:
        """Named instances of it."""


@dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary."""

    path: str = ""
    """Vocabulary file; empty: the one that ships with the library."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how the program runs."""

    device: Literal["auto", "ascend", "gpu", "cpu"] = "auto"
    """Device; auto takes Ascend, else GPU, else CPU."""
    mode: Literal["graph", "pynative"] = "graph"
    """Compiled graphs, or operator by operator for debugging."""
    seed: int = 1234
    """Seed of weights, data order and sampling."""
    threads: int = 0
    """CPU threads; 0: all cores."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of weights and activations in the compiled graphs."""
    compile_cache: str = ""
    """Folder that keeps the graphs of the training step, or of the first texts that are written,
    between runs; empty: none."""
    peak_tflops: float = 0.0
    """Matrix products of one device in 10^12 operations a second, which the share of use (mfu)
    in the log relates to; 0: measured at the start."""

    def __post_init__(self) -> None:
        at_least("runtime", self, seed=0, threads=0, peak_tflops=0)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    family: str
    """Model family."""
    model: Any
    """Size of the model: preset names one, further keys change it."""
    data: DataConfig
    train: TrainConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    finetune: Optional[FinetuneConfig] = None  # noqa: UP045 (it is evaluated)
    """What is watched, so that the best state is kept; none: only the last states are."""
    distill: Optional[DistillConfig] = None  # noqa: UP045 (it is evaluated)
    """A larger model to follow; none: the loss is that of the labels alone."""
    head: Optional[HeadConfig] = None  # noqa: UP045 (it is evaluated)
    """A head that learns a task on top of the network; none: the family's own training."""
    lora: Optional[LoraConfig] = None  # noqa: UP045 (it is evaluated)
    """Low-rank adapters, which alone are trained then; {} for the usual ones; none: all weights
    are trained."""

    def __post_init__(self) -> None:
        batch, data = self.train.batch_size, self.parallel.data
        passes = self.parallel.micro_batches
        micro = self.train.micro_batch_size or 1
        per_pass = micro * data
        require(
            not passes or batch % (data * passes) == 0,
            f"train.batch_size={batch} is not a multiple of parallel.data x "
            f"parallel.micro_batches = {data} x {passes} = {data * passes}",
        )
        require(
            not (passes and self.train.micro_batch_size) or batch == per_pass * passes,
            f"train.batch_size={batch} is not train.micro_batch_size x parallel.data x "
            f"parallel.micro_batches = {micro} x {data} x {passes} = {per_pass * passes}; "
            "leave one of them out",
        )
        require(
            batch % per_pass == 0,
            f"train.batch_size={batch} is not a multiple of train.micro_batch_size x "
            f"parallel.data = {micro} x {data} = {per_pass}; "
            f"nearest: {batch // per_pass * per_pass or per_pass}",
        )
        max_len = getattr(self.model, "max_len", None)
        require(
            max_len is None or self.data.seq_len <= max_len,
            f"data.seq_len={self.data.seq_len}, expected at most model.max_len={max_len}",
        )

    @property
    def micro_batch_size(self) -> int:
        """Rows of one pass on one device."""
        share = self.train.batch_size // self.parallel.data
        return self.train.micro_batch_size or share // max(self.parallel.micro_batches, 1)

    @property
    def accumulation(self) -> int:
        """Passes of one device for one optimizer step."""
        return self.train.batch_size // (self.micro_batch_size * self.parallel.data)

    @property
    def max_targets(self) -> int:
        """Predicted positions of a row."""
        return self.data.max_targets or self.data.seq_len

    @property
    def tokens_per_step(self) -> int:
        """Token positions of one optimizer step, padding included."""
        return self.train.batch_size * self.data.seq_len


def require_trainable(config: RunConfig, device: str) -> None:
    """Refuses what a run cannot do when its layout cuts the network.

    Args:
        config: The run's settings.
        device: Ascend, GPU or CPU, in any case; auto: not known yet.

    Raises:
        ConfigError: Names the settings and what is accepted.
    """
    parallel = config.parallel
    cuts = [
        f"parallel.{name}={value}"
        for name, value in (("model", parallel.model), ("pipeline", parallel.pipeline))
        if value > 1
    ]
    cuts += ["parallel.optimizer_shard=true"] if parallel.optimizer_shard else []
    if not cuts:
        return
    if device.lower() in ("cpu", "gpu"):
        raise ConfigError(
            f"{cuts[0]} runs on Ascend only, this is {device.upper()}; accepted here: "
            "parallel.data; tools/ascend_compile_check.py --config FILE compiles other layouts"
        )
    refused = {
        "lora": config.lora is not None,
        "head": config.head is not None,
        "distill": config.distill is not None,
        "finetune.tasks": config.finetune is not None and bool(config.finetune.tasks),
        "data.stream=true": config.data.stream,
        "train.inspect_every": config.train.inspect_every > 0,
        "train.on_spike=skip": config.train.on_spike == "skip" and parallel.pipeline > 1,
        "runtime.mode=pynative": config.runtime.mode == "pynative",
    }
    for name, wanted in refused.items():
        if wanted:
            raise ConfigError(
                f"{name} does not go with {cuts[0]}; accepted: one of them, or parallel.data alone"
            )


def read_config(
    path: str | Path, overrides: Sequence[str], model_types: Mapping[str, ModelType]
) -> RunConfig:
    """Reads a YAML file and lays `key=value` overrides over it.

    Raises:
        ConfigError: A key or value that cannot be used, with its file or override.
    """
    tree = apply_overrides(load_yaml(path), overrides)
    return _from_tree(tree, model_types, str(path), tuple(overrides))


def from_dict(
    tree: Mapping[str, Any],
    model_types: Mapping[str, ModelType],
    source: str = "settings",
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Builds a run's settings from a mapping such as `to_dict` gives."""
    return _from_tree(apply_overrides(tree, overrides), model_types, source, tuple(overrides))


def _from_tree(
    tree: dict[str, Any],
    model_types: Mapping[str, ModelType],
    name: str,
    overrides: tuple[str, ...],
) -> RunConfig:
    place = Source(name, overrides)
    family = tree.get("family")
    if family is None:
        raise ConfigError(f"{name}: missing family; accepted: {', '.join(model_types)}")
    if family not in model_types:
        hint = suggest(str(family), list(model_types))
        raise ConfigError(f"{place.of('family')}: family={family} is not known; {hint}")
    kind = model_types[family]
    known = key_paths(RunConfig) + key_paths(kind.config, "model.")
    source = Source(name, overrides, tuple(known))
    tree = dict(tree)
    tree["model"] = build_model(tree.get("model"), kind, source)
    return build(RunConfig, tree, "", source)


def build_model(tree: Any, kind: ModelType, source: Source, path: str = "model") -> Any:
    """Builds the model section: the keys of `preset`, if it is given, under the explicit ones."""
    if not isinstance(tree, Mapping):
        if tree is not None:
            raise ConfigError(
                f"{source.of(path)}: {path} must be a section of keys and values such as "
                f"{{preset: {next(iter(kind.presets))}}}, got {describe(tree)}"
            )
        tree = {}
    tree = dict(tree)
    preset = tree.pop("preset", None)
    if preset is None:
        return build(kind.config, tree, path, source)
    if preset not in kind.presets:
        hint = suggest(str(preset), list(kind.presets))
        raise ConfigError(
            f"{source.of(path + '.preset')}: {path}.preset={preset} is not known; {hint}"
        )
    return build(kind.config, {**to_plain(kind.presets[preset]), **tree}, path, source)


def to_dict(config: Any) -> dict[str, Any]:
    """All settings as dicts, lists and plain values; `from_dict` gives the same settings back."""
    return to_plain(config)


def dump(config: Any) -> str:
    """All settings as YAML text that `read_config` reads back."""
    return dump_yaml(to_dict(config))


def arithmetic(config: RunConfig) -> list[str]:
    """What follows from the settings, with the calculation, for people."""
    train, data = config.train, config.parallel.data
    return [
        f"accumulation: batch_size / micro_batch_size / devices = {train.batch_size} / "
        f"{config.micro_batch_size} / {data} = {config.accumulation}",
        f"tokens per step: batch_size x seq_len = {train.batch_size} x {config.data.seq_len} = "
        f"{config.tokens_per_step:,}",
        f"tokens of the run: {config.tokens_per_step:,} x {train.steps:,} steps = "
        f"{config.tokens_per_step * train.steps:,}"
        if train.steps
        else f"steps: {train.epochs:g} x the number of prepared rows / {train.batch_size}",
    ]


def with_steps(config: RunConfig, num_rows: int) -> RunConfig:
    """The settings with steps in the place of epochs of so many rows, at least one."""
    train = config.train
    if train.steps:
        return config
    steps = max(1, math.ceil(train.epochs * num_rows / train.batch_size))
    return dataclasses.replace(config, train=dataclasses.replace(train, steps=steps, epochs=0.0))
