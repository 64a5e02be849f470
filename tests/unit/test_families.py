"""The family table and the sizes and names of CPM-Bee."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, golden_dirs
from safetensors import safe_open

from mindplm import assets, checkpoint, families
from mindplm.errors import ConfigError, VocabError
from mindplm.models.cpm_bee.config import (
    PRESETS,
    CpmBeeConfig,
    from_openbmb,
    num_parameters,
    parameter_shapes,
    rules,
    to_openbmb,
)
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer
from mindplm.weights.rules import to_ours, to_theirs

PUBLISHED = {
    "10b": (9_616_080_896, 9_261_436_928, 48, 48),
    "5b": (4_649_807_872, 4_295_163_904, 19, 24),
    "2b": (2_502_324_224, 2_147_680_256, 19, 24),
    "1b": (1_055_289_344, 700_645_376, 19, 24),
}
TEXT = """\
family: cpm_bee
model: {preset: tiny, num_layers: 2}
data: {folder: data/x, train: [{path: "embedded:poems"}]}
train: {steps: 10, output: runs/x}
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_met_exactly(name: str) -> None:
    config = PRESETS[name]
    total, without_embedding, attentions, ffns = PUBLISHED[name]
    assert num_parameters(config) == total
    assert total - config.vocab_size * config.hidden_size == without_embedding
    assert (len(config.attention_layers), len(config.ffn_layers)) == (attentions, ffns)


def test_the_count_follows_the_closed_formula() -> None:
    c = CpmBeeConfig(
        vocab_size=50, hidden_size=6, num_heads=2, head_dim=5, ffn_size=7, num_layers=4,
        no_attention=(1, 3), no_ffn=(3,), num_distance_buckets=16, num_segment_buckets=64,
    )  # fmt: skip
    inner = c.num_heads * c.head_dim
    expected = 50 * 6 + 80 * 2 + 6 + 2 * (4 * 6 * inner + 6) + 3 * (3 * 6 * 7 + 6)
    assert num_parameters(c) == expected


def test_sizes_need_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match="model.vocab_size=0"):
        num_parameters(PRESETS["tiny"])


@pytest.mark.parametrize("name", [*PUBLISHED, "small"])
@pytest.mark.parametrize("flavour", ["openbmb", "hf"])
def test_config_mapping_is_invertible(name: str, flavour: Any) -> None:
    config = PRESETS[name]
    theirs = to_openbmb(config, flavour)
    assert from_openbmb(json.loads(json.dumps(theirs))) == config
    assert ("hidden_size" in theirs) == (flavour == "hf")
    assert (theirs["mask_modules"] is None) == (name in ("10b", "small"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 1}, "unknown key.*rope_theta"),
        ({"dim_ff": None}, "missing key.*dim_ff"),
        ({"mask_modules": [[True, False]]}, "mask_modules must hold 48 pairs"),
        ({"distance_scale": 8}, "distance_scale=8, expected 16"),
        ({"position_bias_num_segment_buckets": 32}, "expected at least model.max_depth squared"),
    ],
)
def test_foreign_settings_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    theirs = {**to_openbmb(PRESETS["10b"]), **change}
    theirs = {key: value for key, value in theirs.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        from_openbmb(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "model.hidden_size=0, expected >= 1"),
        ({"hidden_size": 7}, "model.hidden_size=7, expected even"),
        ({"no_attention": (48,)}, r"model.no_attention=\[48\], expected different layer numbers"),
        ({"no_ffn": (1, 1)}, r"model.no_ffn=\[1, 1\]"),
        ({"num_distance_buckets": 6}, "expected a multiple of 4"),
        ({"max_distance": 64}, "model.max_distance=64, expected more than"),
        ({"max_depth": 17}, "model.max_depth squared = 289"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
    ],
)
def test_impossible_sizes_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CpmBeeConfig(**change)


@pytest.mark.parametrize("flavour", ["openbmb", "hf"])
def test_rules_cover_every_parameter_both_ways(flavour: Any) -> None:
    sizes = {"vocab_size": 11, "hidden_size": 4, "ffn_size": 6, "num_layers": 3}
    config = dataclasses.replace(PRESETS["tiny"], **sizes, no_attention=(0,), no_ffn=(2,))
    shapes = parameter_shapes(config)
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    theirs = to_theirs(rules(config, flavour), ours)
    assert len(theirs) == len(ours) + (flavour == "hf")
    prefix = "cpmbee." if flavour == "hf" else ""
    assert prefix + "encoder.layers.1.self_att.self_attention.project_q.weight" in theirs
    again = to_ours(rules(config, flavour), theirs, shapes)
    assert all((again[name] == ours[name]).all() for name in ours)


GOLDEN_MODELS = [
    *golden_dirs("cpm_bee", "model_*"),
    *golden_dirs("cpm_bee", "generation*"),
]


@pytest.mark.parametrize("folder", GOLDEN_MODELS, ids=lambda folder: folder.name)
def test_original_weights_have_our_names_and_shapes(folder: Path) -> None:
    path = folder / "info.json"
    info = json.loads((path if path.exists() else folder / "config.json").read_text())
    config = from_openbmb(info.get("config", info))
    with safe_open(folder / "weights.safetensors", "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shapes = parameter_shapes(config)
    if "input_embedding.weight" not in arrays:
        shapes.pop("embed.weight")
    ours = to_ours(rules(config), arrays, shapes)
    assert sum(array.size for array in ours.values()) == sum(map(math.prod, shapes.values()))


def test_an_unknown_family_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match="family 'gpt5' is not known; accepted: cpm_bee"):
        families.family("gpt5")


def test_settings_take_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    shipped = families.vocab_lines(families.vocab_path(families.load_config(path).tokenizer))
    assert families.load_config(path).model.vocab_size == shipped > 1000
    vocab = tmp_path / "vocab.txt"
    vocab.write_bytes(b"<pad>\n\n \na\n")
    config = families.load_config(path, [f"tokenizer.path={vocab}"])
    assert config.model.vocab_size == 3
    assert config.model.num_layers == 2
    assert families.config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(VocabError, match="no such vocabulary file"):
        families.load_config(path, ["tokenizer.path=nowhere.txt"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_can_be_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun_with = yaml.safe_load(path.read_text())["train"].get("start")
    if begun_with:  # a run of another config; here it is a small CPM-Bee
        words = CpmBeeTokenizer.from_file(assets.path(assets.DEFAULT_VOCAB))
        bee = dataclasses.replace(PRESETS["tiny"], vocab_size=words.vocab_size)
        shapes = parameter_shapes(bee).items()
        checkpoint.write(
            tmp_path / begun_with,
            family="cpm_bee",
            model_config=dataclasses.asdict(bee),
            weights={name: np.zeros(shape, np.float32) for name, shape in shapes},
            tokenizer_files=words.files(),
        )
    config = families.load_config(path)
    assert config.family == path.parent.name
    assert config.model.vocab_size > 0
    parts = families.family(config.family)
    assert parts.part("num_parameters")(config.model) > 0
    assert path.read_text().startswith("#"), "the header comment gives the command"


def test_every_reference_of_the_table_exists() -> None:
    for entry in families.FAMILIES.values():
        for field in dataclasses.fields(entry):
            if field.name.endswith("_ref") and getattr(entry, field.name):
                assert entry.part(field.name[: -len("_ref")]) is not None


def test_reading_settings_does_not_load_mindspore(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    code = (
        "import sys, mindplm\n"
        "config = mindplm.load_config(sys.argv[1], ['train.steps=3'])\n"
        "from mindplm import families, checkpoint\n"
        "families.FAMILIES['cpm_bee'].part('num_parameters')(config.model)\n"
        "assert 'mindspore' not in sys.modules, 'mindspore was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_begins_with_a_checkpoints_sizes_and_its_own_dropout(dropout, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_heads": 2, "ffn_size": 16, "num_layers": 1, "dropout": 0.3}
    head = {"family": "bert", "tokenizer": ["vocab.txt"], "config": sizes}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(head))
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    overrides = [f"train.start={tmp_path}", f"model.dropout={dropout}"]
    path = ROOT / "configs" / "bert" / "finetune_reviews.yaml"
    model = families.load_config(path, overrides).model
    assert (model.hidden_size, model.vocab_size, model.dropout) == (16, 2, dropout)
