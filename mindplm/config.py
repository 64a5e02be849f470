"""The settings of a run: one tree of frozen dataclasses, one field = one YAML key = one override.

The text under a field is its help. The family's own keys are a dataclass in its model package,
which comes in as a `ModelType`; this module knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Protocol

from mindplm.config_generate import GenerateConfig as GenerateConfig
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
    """Folder that keeps compiled graphs between runs; empty: none."""
    peak_tflops: float = 0.0
    """Matrix products of one device in 10^12 operations a second, which the share of use (mfu)
    in the log relates to; 0: measured at the start."""

    def __post_init__(self) -> None:
        at_least("runtime", self, seed=0, threads=0, peak_tflops=0)


@dataclass(frozen=True)
class SourceConfig:
    """One source of texts or records."""

    path: str
    """A file, a glob pattern, or embedded:poems, embedded:sanguo, embedded:classics,
    embedded:english (with _valid for the held-out part where there is one)."""
    name: str = ""
    """Name in reports and logs; empty: made from the path."""
    weight: float = 1.0
    """How often a document of it is used, relative to the other sources."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Weight of each way to make training rows of a text; none: the usual ones of the family.
    For cpm_bee lm (cut in two), write (all of it), infill (blanks), or record: lines are
    records."""
    text_field: str = "text"
    """Key of the text in JSON lines."""
    extra_fields: tuple[str, ...] = ("title", "author")
    """Keys of JSON lines that some records show beside the text; of title and author."""
    shape: Optional[ShapeConfig] = None  # noqa: UP045 (it is evaluated, also by Python 3.9)
    """What the lines are, if they are no texts or records yet: reviews with labels, questions
    and answers, tagged tokens, messages ...; they become records."""
    task: str = ""
    """A task file whose shape the lines have, instead of naming a shape here."""

    def __post_init__(self) -> None:
        require(
            self.shape is None or not self.task,
            f"data: source {self.path} names both shape and task; choose one of them",
        )
        require(self.path != "", "data: a source has an empty path")
        require(self.weight > 0, f"data: weight={self.weight} of {self.path}, expected > 0")
        require(
            set(self.extra_fields) <= {"title", "author"},
            f"data: extra_fields={list(self.extra_fields)} of {self.path}, accepted in it: "
            "title, author",
        )
        require(
            not self.tasks or (min(self.tasks.values()) >= 0 and sum(self.tasks.values()) > 0),
            f"data: tasks={self.tasks} of {self.path}, expected at least one weight > 0, none < 0",
        )


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut into rows."""

    train: list[SourceConfig]
    """Sources of training texts."""
    folder: str
    """Where prepared rows are written: <folder>/train and <folder>/valid."""
    valid: list[SourceConfig] = field(default_factory=list)
    """Sources of validation texts; none: no validation."""
    seq_len: int = 512
    """Tokens of a row."""
    max_rel: int = 0
    """Room of a row for segment relation values; 0: chosen from seq_len."""
    max_ext: int = 64
    """Extra output classes of a batch (numbered blanks, unknown characters ...)."""
    max_targets: int = 0
    """Predicted positions of a row; 0: seq_len."""
    repeat: int = 1
    """Differently drawn records made of each document."""

    def __post_init__(self) -> None:
        require(len(self.train) > 0, "data.train is empty, expected at least one source")
        require(self.folder != "", "data.folder is empty, expected a folder")
        at_least("data", self, seq_len=8, max_rel=0, max_ext=1, max_targets=0, repeat=1)
        require(
            self.max_targets <= self.seq_len,
            f"data.max_targets={self.max_targets}, expected at most data.seq_len={self.seq_len}",
        )


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


def build_model(tree: Any, kind: ModelType, source: Source) -> Any:
    """Builds the model section: the keys of `preset`, if it is given, under the explicit ones."""
    if not isinstance(tree, Mapping):
        if tree is not None:
            raise ConfigError(
                f"{source.of('model')}: model must be a section of keys and values such as "
                f"{{preset: {next(iter(kind.presets))}}}, got {describe(tree)}"
            )
        tree = {}
    tree = dict(tree)
    preset = tree.pop("preset", None)
    if preset is None:
        return build(kind.config, tree, "model", source)
    if preset not in kind.presets:
        hint = suggest(str(preset), list(kind.presets))
        raise ConfigError(
            f"{source.of('model.preset')}: model.preset={preset} is not known; {hint}"
        )
    return build(kind.config, {**to_plain(kind.presets[preset]), **tree}, "model", source)


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
        f"{config.tokens_per_step * train.steps:,}",
    ]
