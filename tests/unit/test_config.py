"""Strict reading of settings: what is accepted, and what each mistake is told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Optional

import pytest

from mindplm import config as settings
from mindplm.errors import ConfigError
from mindplm.strict import Source, apply_overrides, build, convert, field_help, to_plain
from mindplm.yaml_io import dump_yaml, load_yaml, parse_yaml


@dataclasses.dataclass(frozen=True)
class Toy:
    hidden_size: int = 8
    """Width."""
    layers: tuple[int, ...] = ()
    max_len: int = 1024

    def __post_init__(self) -> None:
        if self.hidden_size < 1:
            raise ConfigError(f"model.hidden_size={self.hidden_size}, expected >= 1")


class ToyFamily:
    config = Toy
    presets = {"big": Toy(hidden_size=64, layers=(1, 2))}


TYPES = {"toy": ToyFamily()}
TEXT = """\
family: toy
model: {preset: big, max_len: 600}
data:
  folder: out
  train:
    - path: a.txt
      tasks: {lm: 2}
    - {path: b.txt, weight: 0.5}
train: {steps: 100, output: runs/x, batch_size: 8, micro_batch_size: 2}
optim: {lr: 1e-4}
"""


@pytest.fixture
def read(tmp_path: Any) -> Any:
    def run(*overrides: str, text: str = TEXT) -> settings.RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return settings.read_config(path, overrides, TYPES)

    return run


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_values_get_their_declared_types(read: Any) -> None:
    config = read()
    assert config.optim.lr == 1e-4
    assert config.model == Toy(hidden_size=64, layers=(1, 2), max_len=600)
    assert config.data.train[0].tasks == {"lm": 2.0}
    assert config.data.train[1].weight == 0.5
    assert config.train.resume == "auto"


def test_words_that_yaml_reads_as_other_things_stay_words(read: Any) -> None:
    config = read("tokenizer.path=no", "data.folder=010", "train.output=1e3")
    assert (config.tokenizer.path, config.data.folder, config.train.output) == ("no", "010", "1e3")


def test_dump_reads_back_as_the_same_settings(read: Any, tmp_path: Any) -> None:
    config = read("optim.eps=1e-12", "data.folder=null", "tokenizer.path=床前: '#1'")
    text = settings.dump(config)
    assert read(text=text) == config
    assert settings.from_dict(settings.to_dict(config), TYPES) == config
    assert "layers: [1, 2]" in text


def test_derived_values_follow_from_the_settings(read: Any) -> None:
    config = read("parallel.data=2")
    assert (config.micro_batch_size, config.accumulation) == (2, 2)
    assert config.tokens_per_step == 8 * 512
    config = read("train.micro_batch_size=0", "parallel.data=2")
    assert (config.micro_batch_size, config.accumulation) == (4, 1)
    assert config.max_targets == 512


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("optim.warmup_step=3", "unknown key optim.warmup_step; did you mean optim.warmup_steps?"),
        ("lr=3", "unknown key lr; did you mean optim.lr?"),
        ("model.hiden_size=3", "did you mean model.hidden_size?"),
        ("model.batch_size=3", "did you mean train.batch_size?"),
        ("model.preset=bigg", "model.preset=bigg is not known; did you mean big?"),
        ("family=toi", "family=toi is not known; did you mean toy?"),
        ("train.steps=many", "train.steps: expected a whole number, got 'many'"),
        ("train.steps=1.5", "train.steps: expected a whole number, got '1.5'"),
        ("train.steps=", "train.steps: expected a whole number, got ''"),
        ("train.steps=0", "train.steps=0, expected >= 1"),
        ("optim.lr=nan", "optim.lr: expected a finite number, got 'nan'"),
        ("optim.lr=-1", "optim.lr=-1.0, expected > 0"),
        ("optim.schedule=cosin", "did you mean cosine? (accepted: noam, cosine, linear, constant,"),
        ("optim.schedule=noam", "needs optim.warmup_steps >= 1"),
        ("optim=fast", "optim must be a section of keys and values, got 'fast'"),
        ("data.train.0.tasks.lm=x", "data.train.0.tasks.lm: expected a finite number, got 'x'"),
        ("data.train.0.weight=0", "weight=0.0 of a.txt, expected > 0"),
        ("data.train.5.path=x", "data.train is a list of 2, expected a number from 0 to 2"),
        ("data.train.x.path=x", "expected a number from 0 to 2 after it, got 'x'"),
        ("data.train=a.txt", "data.train: expected a list such as [a, b], got 'a.txt'"),
        ("data.train=[]", "data.train is empty"),
        ("data.folder.x=1", "data.folder is a value ('out'), it has no keys"),
        ("generate.buckets=[8, 4]", "expected rising lengths"),
        ("generate.buckets=[8, x]", "generate.buckets.1: expected a whole number, got 'x'"),
        ("generate.buckets=[8", "not readable as YAML"),
        ("train.batch_size=7", "not a multiple of train.micro_batch_size x parallel.data = 2 x 1"),
        ("data.seq_len=700", "data.seq_len=700, expected at most model.max_len=600"),
    ],
)
def test_a_bad_override_is_named_with_what_is_accepted(
    read: Any, override: str, wanted: str
) -> None:
    message = refusal(read, override)
    assert message.startswith(f"override {override}"), message
    assert wanted in message


@pytest.mark.parametrize("override", ["steps", "=3", ".x=3", "a..b=3", " a=3"])
def test_an_override_without_key_or_value_is_refused(read: Any, override: str) -> None:
    assert "is not of the form key=value" in refusal(read, override)


def test_later_overrides_win_and_lists_can_grow(read: Any) -> None:
    config = read(
        "train.steps=1",
        "train.steps=2e3",
        "data.train.2.path=c.txt",
        "data.valid.0.path=v.txt",
        "generate={beams: 4}",
        "generate.max_new_tokens=7",
        "model.layers=[0, 3]",
    )
    assert config.train.steps == 2000
    assert [source.path for source in config.data.train] == ["a.txt", "b.txt", "c.txt"]
    assert config.data.valid == [settings.SourceConfig("v.txt")]
    assert (config.generate.beams, config.generate.max_new_tokens) == (4, 7)
    assert config.model.layers == (0, 3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("family: toy\nfamily: toy\n", ":2: not readable as YAML: key family is given twice"),
        ("a: {b: 1\nc: 2\n", "not readable as YAML"),
        ("a:\n\t- 1\n", ":2: not readable as YAML"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- 1\n", "expected keys and values"),
        ("train: {steps: 1}\n", "missing family; accepted: toy"),
        ("family: toy\ndata: {train: [{path: a}], folder: b}\n", "missing train.output"),
        ("family: toy\ntrain: {steps: 1, output: x}\n", "missing data.folder"),
        ("family: toy\n[1]: 2\n", "a key must be a word"),
        ("family: toy\noptim: {lr: }\n", "optim.lr: expected a finite number, got nothing"),
        ("family: toy\ntokenizer: {path: [1]}\n", "tokenizer.path: expected text"),
        ("family: toy\nmodel: big\n", "model must be a section of keys and values such as"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Any, text: str, wanted: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    message = refusal(settings.read_config, path, (), TYPES)
    assert message.startswith(str(path)), message
    assert wanted in message


def test_missing_files_get_a_suggestion(tmp_path: Any) -> None:
    (tmp_path / "tiny.yaml").write_text(TEXT)
    assert "did you mean" in refusal(load_yaml, tmp_path / "tinny.yaml")
    assert "does not exist either" in refusal(load_yaml, tmp_path / "no" / "x.yaml")
    assert "is a folder" in refusal(load_yaml, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    assert "not UTF-8 text (byte 3)" in refusal(load_yaml, tmp_path / "latin.yaml")


def test_conversion_by_declared_type() -> None:
    here = Source("here")
    assert convert(None, Optional[int], "x", here) is None
    assert convert("3", Optional[int], "x", here) == 3
    assert convert("1_000", int, "x", here) == 1000
    assert convert("True", bool, "x", here) is True
    assert convert(["1", "a"], tuple[int, str], "x", here) == (1, "a")
    assert convert("b", Literal["a", "b"], "x", here) == "b"
    for value, kind in [("yes", bool), (True, int), (3, str), ("inf", float), (["1"], dict)]:
        if kind is dict:
            kind = dict[str, float]
        assert "x: expected" in refusal(convert, value, kind, "x", here)
    assert "a list of 2" in refusal(convert, ["1"], tuple[int, int], "x", here)


def test_checks_of_a_section_name_the_file_when_no_override_touched_it() -> None:
    message = refusal(build, Toy, {"hidden_size": "0"}, "model", Source("f.yaml", ("optim.lr=1",)))
    assert message == "f.yaml: model.hidden_size=0, expected >= 1"


def test_overrides_leave_the_given_tree_alone() -> None:
    tree = {"a": {"b": ["1"]}}
    assert apply_overrides(tree, ["a.b.0=2"]) == {"a": {"b": ["2"]}}
    assert tree == {"a": {"b": ["1"]}}


def test_every_field_has_help() -> None:
    sections = [value for value in vars(settings).values() if dataclasses.is_dataclass(value)]
    for section in sections:
        if section in (settings.RunConfig, Source):
            continue
        texts = field_help(section)
        assert all(texts.values()), (section, texts)


def test_plain_trees_survive_yaml() -> None:
    tree = to_plain({"a": Toy(layers=(1,)), "b": ["x: y", "", "null"], "c": []})
    text = dump_yaml(tree)
    again = parse_yaml(text, "text")
    assert again["a"]["layers"] == ["1"]
    assert again["b"] == ["x: y", "", "null"]
    assert again["c"] == []
