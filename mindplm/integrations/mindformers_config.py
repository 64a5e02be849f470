"""A MindFormers YAML that trains our parts: read strictly, checked before MindFormers sees it.

The sections that MindFormers hands to our parts know their keys; all other sections are
MindFormers' own. Nothing here imports MindFormers or MindSpore.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mindplm import assets
from mindplm.config import OptimConfig, build_model
from mindplm.data.records import read_manifest
from mindplm.errors import ConfigError, DataError
from mindplm.families import family
from mindplm.strict import Source, apply_overrides, at_least, build, suggest, to_plain
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer
from mindplm.yaml_io import load_yaml, parse_yaml

MODEL = "model.model_config"
ROWS = "train_dataset.data_loader"
OUTPUT = "./output"
"""MindFormers' own default of output_dir."""


def missing(error: ImportError | None = None) -> ConfigError:
    """The error to raise where MindFormers cannot be imported."""
    why = f"cannot be imported ({error})" if error else "is not installed"
    return ConfigError(f"MindFormers {why}; install mindplm[mindformers]")


def _part_of_optim(name: str, *keys: str) -> Any:
    """A dataclass of some fields of `OptimConfig`, with their defaults."""
    hints = get_type_hints(OptimConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(OptimConfig)}
    fields = [(key, hints[key], dataclasses.field(default=defaults[key])) for key in keys]
    return dataclasses.make_dataclass(name, fields, frozen=True)


ScheduleSection = _part_of_optim(
    "ScheduleSection", "lr", "schedule", "schedule_form", "warmup_steps", "warmup_from_zero",
    "power", "step_ratio", "min_lr_ratio",
)  # fmt: skip
"""lr_schedule of type MindplmSchedule; MindFormers adds total_steps."""
AdamSection = _part_of_optim(
    "AdamSection", "name", "beta1", "beta2", "eps", "eps_corrected", "weight_decay", "decay",
    "decay_corrected",
)  # fmt: skip
"""optimizer of type MindplmAdam."""
StepSection = _part_of_optim("StepSection", "clip_norm")
"""runner_wrapper of type MindplmTrainStep."""


@dataclass(frozen=True)
class RowsSection:
    """train_dataset.data_loader of type MindplmRows."""

    folder: str
    """Prepared rows: the folder train that `mindplm preprocess` wrote."""
    steps: int = 0
    """Steps of an epoch; 0: as many as there are whole batches."""

    def __post_init__(self) -> None:
        at_least(ROWS, self, steps=0)


@dataclass(frozen=True)
class RecorderSection:
    """callbacks entry of type MindplmRecorder."""

    vocab_file: str = ""
    """Vocabulary that goes into the checkpoints; empty: the one that ships with the library."""
    log_every: int = 1
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 0
    """Steps between two checkpoints; 0: only at the end."""
    keep_last: int = 2
    """Checkpoints that are kept; 0: all."""

    def __post_init__(self) -> None:
        at_least("callbacks", self, log_every=1, save_every=0, keep_last=0)


@dataclass(frozen=True)
class TokenizerSection:
    """processor.tokenizer of type MindplmCpmBeeTokenizer."""

    vocab_file: str = ""
    """Vocabulary file; empty: the one that ships with the library."""


_SECTIONS = {
    ROWS: ("MindplmRows", RowsSection),
    "lr_schedule": ("MindplmSchedule", ScheduleSection),
    "optimizer": ("MindplmAdam", AdamSection),
    "runner_wrapper": ("MindplmTrainStep", StepSection),
    "processor.tokenizer": ("MindplmCpmBeeTokenizer", TokenizerSection),
}
_REQUIRED = {
    MODEL: "MindplmCpmBeeConfig",
    "model.arch": "MindplmCpmBee",
    ROWS: "MindplmRows",
    "train_dataset_task": "MindplmDataset",
}
_NEEDED = ("runner_wrapper", "optimizer", "lr_schedule")
"""Sections for which MindFormers would put something in that does not fit."""


def read_section(
    kind: Any, tree: Mapping[str, Any], path: str, source: Source | None = None
) -> Any:
    """Builds one of the sections above from the keys that MindFormers hands over."""
    return build(kind, dict(tree), path, source or Source("MindFormers configuration"))


@dataclass(frozen=True)
class Plan:
    """A checked configuration.

    Attributes:
        tree: All sections with values of their types and absolute paths.
        output: The run folder, absolute.
        source: Where values come from.
    """

    tree: dict[str, Any]
    output: Path
    source: Source


def read_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Reads a MindFormers YAML and checks what is ours in it.

    Args:
        path: The file.
        overrides: `key=value` texts, such as optimizer.beta2=0.98.

    Raises:
        ConfigError: An unknown, missing or ill-typed key in a section of ours, or a part that does
            not fit; the message names file and key.
        DataError: Rows that are not there or were made with another vocabulary.
    """
    source = Source(str(path), tuple(overrides))
    tree = _unfolded(apply_overrides(load_yaml(path), overrides), source)
    if tree.get("use_legacy", "True") not in ("True", "true"):
        raise ConfigError(f"{source.of('use_legacy')}: use_legacy must be True for these parts")
    for key, wanted in _REQUIRED.items():
        found = _get(tree, key, source).get("type")
        if found != wanted:
            raise ConfigError(f"{source.of(key)}: {key}.type is {found}, expected {wanted}")
    for key in _NEEDED:
        if not _get(tree, key, source).get("type"):
            raise ConfigError(
                f"{source.of(key)}: {key}.type is missing; ours is {_SECTIONS[key][0]}"
            )
    if tree["runner_wrapper"]["type"] == "MFTrainOneStepCell":
        raise ConfigError(
            f"{source.of('runner_wrapper.type')}: runner_wrapper.type=MFTrainOneStepCell takes "
            "means of batches and needs an Ascend card; use MindplmTrainStep"
        )
    typed = _typed(tree)
    for (key, given), (_, section) in zip(_sections(tree, source), _sections(typed, source)):
        section.update(_filled(key, given, source))
    _optim(typed, source)
    _join(typed, source)
    output = Path(tree.get("output_dir") or OUTPUT).absolute()
    typed["output_dir"] = str(output)
    return Plan(typed, output, source)


def _unfolded(value: Any, source: Source) -> Any:
    """Texts of overrides that are sections or lists, such as {type: MindplmRows}, as these."""
    if isinstance(value, dict):
        return {key: _unfolded(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_unfolded(item, source) for item in value]
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_yaml(value, source.name)
    return value


def _get(tree: Any, key: str, source: Source) -> dict[str, Any]:
    """The section at a dotted key; ConfigError if it is missing or no section."""
    node = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if node is None:
        raise ConfigError(f"{source.name}: missing section {key}")
    if not isinstance(node, dict):
        raise ConfigError(f"{source.of(key)}: {key} must be a section of keys and values")
    return node


def _sections(tree: dict[str, Any], source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of ours with their keys."""
    yield MODEL, tree["model"]["model_config"]
    for key, (kind, _) in _SECTIONS.items():
        if key == "processor.tokenizer" and not tree.get("processor"):
            continue
        section = _get(tree, key, source)
        if section.get("type") == kind:
            yield key, section
    callbacks = tree.get("callbacks") or []
    if not isinstance(callbacks, list) or not all(isinstance(item, dict) for item in callbacks):
        raise ConfigError(f"{source.of('callbacks')}: callbacks must be a list of sections")
    for i, item in enumerate(callbacks):
        if item.get("type") == "MindplmRecorder":
            yield f"callbacks.{i}", item


def _filled(key: str, section: dict[str, Any], source: Source) -> dict[str, Any]:
    """All keys of a section of ours, checked, with values of their types."""
    given = {name: value for name, value in section.items() if name != "type"}
    if key == MODEL:
        return to_plain(build_model(given, family("cpm_bee"), source, MODEL))
    kind = RecorderSection if key.startswith("callbacks.") else _SECTIONS[key][1]
    return to_plain(read_section(kind, given, key, source))


def _optim(tree: dict[str, Any], source: Source) -> None:
    """Checks what lr_schedule, optimizer and runner_wrapper say together."""
    together: dict[str, Any] = {}
    for key in _NEEDED:
        if tree[key]["type"] == _SECTIONS[key][0]:
            together.update({name: v for name, v in tree[key].items() if name != "type"})
    try:
        OptimConfig(**together)
    except ValueError as error:
        raise ConfigError(f"{source.name}: {error}") from None


def _typed(value: Any) -> Any:
    """Texts as YAML reads them: numbers, truth values, nothing; MindFormers' sections have them."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, value, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, value))


def _join(tree: dict[str, Any], source: Source) -> None:
    """Brings vocabulary, rows and model together, and makes paths absolute."""
    rows, model = tree["train_dataset"]["data_loader"], tree["model"]["model_config"]
    recorders = [c for c in tree.get("callbacks") or [] if c["type"] == "MindplmRecorder"]
    named = [(tree.get("processor") or {}).get("tokenizer") or {}, *recorders]
    files = sorted({section.get("vocab_file") or "" for section in named} - {""})
    if len(files) > 1:
        raise ConfigError(f"{source.name}: two vocabularies: {' and '.join(files)}")
    vocab = Path(files[0]).absolute() if files else assets.path(assets.DEFAULT_VOCAB)
    for section in recorders:
        section["vocab_file"] = str(vocab)
    if "tokenizer" in (tree.get("processor") or {}):
        tree["processor"]["tokenizer"]["vocab_file"] = str(vocab)
    tokenizer = CpmBeeTokenizer.from_file(vocab)
    if model["vocab_size"] not in (0, tokenizer.vocab_size):
        raise ConfigError(
            f"{source.of(MODEL + '.vocab_size')}: {MODEL}.vocab_size={model['vocab_size']}, but "
            f"{vocab} has {tokenizer.vocab_size} entries; leave {MODEL}.vocab_size out"
        )
    model["vocab_size"] = tokenizer.vocab_size
    folder = rows["folder"] = str(Path(rows["folder"]).absolute())
    facts = read_manifest(folder)
    if facts.get("fingerprint", {}).get("tokenizer") != tokenizer.fingerprint:
        raise DataError(f"{folder}: was made with another vocabulary than {vocab}")
    length = facts["shape"]["seq_len"]
    if length > model["max_len"]:
        raise ConfigError(
            f"{folder}: has rows of {length} tokens, more than {MODEL}.max_len={model['max_len']}"
        )
    numbers = {"seed": (tree.get("seed", 1), 0)}
    for key in ("batch_size", "epochs"):
        numbers[f"runner_config.{key}"] = ((tree.get("runner_config") or {}).get(key, 1), 1)
    for key, (value, least) in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"{source.of(key)}: {key}={value}, expected a whole number of at least {least}"
            )


def check_known(tree: Mapping[str, Any], known: Sequence[str], source: Source) -> None:
    """Refuses sections and keys at the top level that MindFormers would only warn of."""
    for key in tree:
        if key not in known:
            raise ConfigError(f"{source.of(key)}: unknown key {key}; {suggest(key, known)}")
