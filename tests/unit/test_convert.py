"""Conversion both ways: exact values, little memory, and refusals instead of surprises."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import mindplm
from mindplm import checkpoint, cli, files, tensors
from mindplm.convert import convert
from mindplm.errors import CheckpointError, ConfigError, UserError
from mindplm.models.cpm_bee.config import PRESETS, CpmBeeConfig, parameter_shapes, to_openbmb
from mindplm.tensors import BF16, LazyArray, cast
from mindplm.weights.sources import open_tensors
from mindplm.weights.torch_io import torch_chunks

MINI = CpmBeeConfig(
    vocab_size=120, hidden_size=8, num_heads=2, head_dim=6, ffn_size=10, num_layers=3,
    no_attention=(1,), no_ffn=(2,), num_distance_buckets=16, num_segment_buckets=64,
    max_distance=128,
)  # fmt: skip


def tool() -> ModuleType:
    path = ROOT / "tools" / "synthetic_checkpoint.py"
    spec = importlib.util.spec_from_file_location("synthetic_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SYNTHETIC = tool()


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "mini", MINI)  # type: ignore[arg-type]


def make(folder: Path, **kwargs: Any) -> Path:
    return SYNTHETIC.write("mini", folder, **kwargs)


def values(arrays: Any) -> dict[str, tuple[Any, ...]]:
    made = {name: np.asarray(array) for name, array in arrays.items()}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in made.items()}


def error_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        convert(*args, **kwargs)
    return str(error.value)


KINDS = [
    {"flavour": flavour, "shards": shards, "safetensors": safetensors, "dtype": dtype}
    for flavour in ("openbmb", "hf")
    for shards, safetensors, dtype in [
        (1, False, "float16"),
        (3, False, "float16"),
        (1, True, "bfloat16"),
        (3, True, "float32"),
        (2, False, "bfloat16"),
    ]
]


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_there_and_back_is_bitwise_for_every_layout(tmp_path: Path, kind: dict[str, Any]) -> None:
    source = make(tmp_path / "theirs", **kind)
    report = convert(source, tmp_path / "ours", verify=True)
    assert report.flavour == kind["flavour"]
    assert report.dtypes == {kind["dtype"]: len(parameter_shapes(MINI))}
    assert report.verified == report.tensors
    assert report.dropped == (("lm_head.weight",) if kind["flavour"] == "hf" else ())
    found = checkpoint.read(tmp_path / "ours")
    assert found.model() == MINI
    assert (found.folder / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    before = open_tensors(source)[0]
    for flavour in ("openbmb", "hf"):
        back = tmp_path / flavour
        assert convert(tmp_path / "ours", back, back=flavour, verify=True).verified
        after, files = open_tensors(back)
        assert [file.name for file in files] == [
            "pytorch_model.bin" if flavour == "openbmb" else "model.safetensors"
        ]
        assert (back / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
        again = json.loads((back / "config.json").read_text())
        assert again.items() >= to_openbmb(MINI, flavour, kind["dtype"] == "float16").items()
        if flavour == kind["flavour"]:
            assert values(after) == values(before)
    head = values(open_tensors(tmp_path / "hf")[0])
    assert head["lm_head.weight"] == head["cpmbee.input_embedding.weight"]


@pytest.mark.usefixtures("mini")
def test_values_land_under_the_right_names(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    convert(source, tmp_path / "ours")
    theirs, ours = open_tensors(source)[0], checkpoint.read(tmp_path / "ours").weights()
    for name, other in {
        "embed.weight": "input_embedding.weight",
        "blocks.2.attn.o.weight": "encoder.layers.2.self_att.self_attention.attention_out.weight",
        "blocks.0.ffn.gate.weight": "encoder.layers.0.ffn.ffn.w_in.w_0.weight",
        "final_norm.weight": "encoder.output_layernorm.weight",
    }.items():
        assert (ours[name] == np.asarray(theirs[other])).all()


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_is_chosen(tmp_path: Path, dtype: str) -> None:
    source = make(tmp_path / "theirs", dtype="float32")
    convert(source, tmp_path / "ours", dtype=dtype, verify=True)
    wanted = BF16 if dtype == "bfloat16" else np.dtype(dtype)
    for name, array in checkpoint.read(tmp_path / "ours").lazy_weights(widen=False).items():
        assert array.dtype == wanted, name
    wide = checkpoint.read(tmp_path / "ours").weights()
    full = np.asarray(open_tensors(source)[0]["input_embedding.weight"])
    assert wide["embed.weight"].dtype == (np.float32 if dtype == "bfloat16" else wanted)
    assert (wide["embed.weight"] == cast(cast(full, wanted), wide["embed.weight"].dtype)).all()


@pytest.mark.usefixtures("mini")
def test_presets_are_known_by_their_sizes(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    config = source / "config.json"
    text = config.read_text()
    config.unlink()
    assert checkpoint_model(source, tmp_path / "a") == MINI
    del PRESETS["mini"]
    assert "fit none of the presets" in error_of(source, tmp_path / "b")
    other = tmp_path / "own.json"
    other.write_text(text)
    assert checkpoint_model(source, tmp_path / "c", config=other) == MINI
    assert "nowhere.json: no such file" in error_of(source, tmp_path / "d", config="nowhere.json")
    PRESETS["mini"] = MINI  # type: ignore[index]


def checkpoint_model(source: Path, out: Path, **kwargs: Any) -> Any:
    convert(source, out, **kwargs)
    return checkpoint.read(out).model()


@pytest.mark.usefixtures("mini")
def test_a_file_is_taken_with_what_lies_beside_it(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    shutil.move(source / "pytorch_model.bin", source / "cpm_bee.pt")
    shutil.move(source / "vocab.txt", source / "bee.txt")
    report = convert(source / "cpm_bee.pt", tmp_path / "ours")
    assert report.files == (source / "cpm_bee.pt",)
    (source / "bee.txt").unlink()
    assert "name it (--vocab FILE)" in error_of(source / "cpm_bee.pt", tmp_path / "x")
    short = tmp_path / "short.txt"
    short.write_bytes(SYNTHETIC.vocabulary(119).files()["vocab.txt"])
    text = error_of(source, tmp_path / "x", vocab=short)
    assert "the vocabulary has 119 entries, the model 120" in text


@pytest.mark.usefixtures("mini")
def test_memory_holds_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = dataclasses.replace(MINI, vocab_size=4096, hidden_size=1024, ffn_size=512, head_dim=256)
    monkeypatch.setitem(PRESETS, "mini", big)  # type: ignore[arg-type]
    monkeypatch.setattr(tensors, "_PIECE", 1 << 16)
    source = make(tmp_path / "theirs", flavour="hf", shards=2)
    largest = big.vocab_size * big.hidden_size * 2
    for kwargs in ({}, {"dtype": "float32"}, {"dtype": "bfloat16"}):
        tracemalloc.start()
        report = convert(source, tmp_path / str(len(kwargs.get("dtype", ""))), **kwargs)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report.parameters * 2 > 1.5 * largest
        assert peak < largest + (3 << 20)
    for flavour in ("openbmb", "hf"):
        tracemalloc.start()
        convert(tmp_path / "0", tmp_path / flavour, back=flavour)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < largest + (3 << 20)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mini")
def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file", "theirs"):
        assert "exists; remove it" in error_of(source, tmp_path / name)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")
    assert "is a checkpoint of this library already" in error_of(tmp_path / "empty", tmp_path / "x")
    assert (tmp_path / "full" / "mine").read_text() == "mine"


@pytest.mark.usefixtures("mini")
def test_settings_are_checked(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="dtype='int8', accepted: keep, float16, bfloat16"):
        convert(source, tmp_path / "x", dtype="int8")
    with pytest.raises(ConfigError, match="back='pt', accepted: openbmb, hf"):
        convert(source, tmp_path / "x", back="pt")
    with pytest.raises(ConfigError, match="family 'gpt5' is not known"):
        convert(source, tmp_path / "x", family="gpt5")
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds no tensors; expected pytorch_model"):
        (tmp_path / "none").mkdir()
        convert(tmp_path / "none", tmp_path / "x")


@pytest.mark.usefixtures("mini")
def test_sets_that_do_not_fit_are_told(tmp_path: Path) -> None:
    source = make(tmp_path / "theirs")
    good = {name: np.asarray(array) for name, array in open_tensors(source)[0].items()}
    first = "encoder.layers.0.ffn.ffn.w_out.weight"

    def refusal(changed: dict[str, np.ndarray]) -> str:
        lazy = {n: LazyArray(a.shape, a.dtype, lambda a=a: a) for n, a in changed.items()}  # type: ignore[misc]
        (source / "pytorch_model.bin").write_bytes(b"".join(torch_chunks(lazy)))
        return error_of(source, tmp_path / "x")

    without = {name: array for name, array in good.items() if name != first}
    assert "blocks.0.ffn.down.weight" in refusal(without)
    assert "matched no rule: extra" in refusal({**good, "extra": good[first]})
    other = {**good, "encoder.layers.2.ffn.ffn.w_out.weight": good[first]}
    assert "have no place in a model of this config: blocks.2.ffn.down" in refusal(other)
    assert "must have shape (8, 10)" in refusal({**good, first: good[first].T.copy()})
    assert "holds int8, expected floats" in refusal({**good, first: good[first].astype("i1")})
    huge = {**good, first: np.full_like(good[first], 1e6, np.float32)}
    refusal({**huge, "extra": good[first]})
    lazy = {n: LazyArray(a.shape, a.dtype, lambda a=a: a) for n, a in huge.items()}  # type: ignore[misc]
    (source / "pytorch_model.bin").write_bytes(b"".join(torch_chunks(lazy)))
    text = error_of(source, tmp_path / "x", dtype="float16")
    assert "blocks.0.ffn.down.weight: values up to 1e+06 do not fit into float16" in text


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("safetensors", [False, True])
def test_shards_are_complete_and_beside_their_index(tmp_path: Path, safetensors: bool) -> None:
    source = make(tmp_path / "theirs", shards=3, safetensors=safetensors)
    index = next(source.glob("*.index.json"))
    shards = sorted(source.glob("*model-0*"))
    tree = json.loads(index.read_text())
    secret = shutil.copy(shards[0], tmp_path / shards[0].name)
    for trick in (f"../{shards[0].name}", str(secret), f"sub/{shards[0].name}", "..", "", "a\0b",
                  f"..\\{shards[0].name}", f"C:{shards[0].name}", 7, None, ["x"]):  # fmt: skip
        changed = dict.fromkeys(tree["weight_map"], trick)
        index.write_text(json.dumps({"weight_map": changed}))
        assert "expected the name of a file beside the index" in error_of(source, tmp_path / "x")
    index.write_text(json.dumps(tree))
    shards[1].rename(tmp_path / "away")
    assert f"1 of its files are missing: {shards[1].name}" in error_of(source, tmp_path / "x")
    index.unlink()
    assert f"found 2 of the {len(shards)} files" in error_of(source, tmp_path / "x")
    (tmp_path / "away").rename(shards[1])
    convert(source, tmp_path / "complete", verify=True)
    name = list(tree["weight_map"])[-1]  # not the only one of its file
    tree["weight_map"].pop(name)
    index.write_text(json.dumps(tree))
    assert f"differ in {name}" in error_of(source, tmp_path / "x")
    twice = json.dumps(tree)[:-2] + ', "x": "y", "x": "z"}}'
    index.write_text(twice)
    assert "a name occurs twice" in error_of(source, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["theirs", "complete", secret.name]
    )


@pytest.mark.usefixtures("mini")
def test_a_head_that_is_no_copy_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "theirs", flavour="hf")
    arrays = {name: np.asarray(array) for name, array in open_tensors(source)[0].items()}
    arrays["lm_head.weight"] = arrays["lm_head.weight"] * 2
    lazy = {n: LazyArray(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}  # type: ignore[misc]
    (source / "pytorch_model.bin").write_bytes(b"".join(torch_chunks(lazy)))
    monkeypatch.setattr("mindplm.runtime.log.propagate", True)
    convert(source, tmp_path / "ours", verify=True)
    assert "lm_head.weight was dropped but differs" in caplog.text


@pytest.mark.usefixtures("mini")
def test_going_back_needs_a_good_checkpoint(tmp_path: Path) -> None:
    convert(make(tmp_path / "theirs"), tmp_path / "ours")
    weights = tmp_path / "ours" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "weights.safetensors is damaged" in error_of(
        tmp_path / "ours", tmp_path / "x", back="hf"
    )
    assert "manifest.json is missing" not in error_of(tmp_path / "no", tmp_path / "x", back="hf")


def test_pointers_in_place_of_files_are_told(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            open_tensors(tmp_path / name)


@pytest.mark.usefixtures("mini")
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "vocab.txt/"])
def test_a_checkpoint_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Its manifest is right for what it says: an attacker can compute checksums too."""
    convert(make(tmp_path / "theirs"), tmp_path / "ours")
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "ours"
    head = folder / "model.yaml"
    head.write_text(head.read_text().replace("vocab.txt", name))
    listed = files.read_manifest(folder)
    listed["model.yaml"] = {"bytes": head.stat().st_size, "sha256": files.sha256_of(head)}
    for more in ({}, {name: listed["vocab.txt"]}):
        (folder / "manifest.json").write_text(files._manifest_text({**listed, **more}))
        assert " is damaged" in error_of(folder, tmp_path / "x", back="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "secret", "theirs"]


# --- how it is called -----------------------------------------------------------------------------


@pytest.mark.usefixtures("mini")
def test_the_command_line_converts_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(make(tmp_path / "theirs", flavour="hf")), str(tmp_path / "ours")
    assert cli.main(["convert", source, "--out", out, "--dtype", "float32", "--verify"]) == cli.OK
    text = capsys.readouterr().out
    for part in ("names of hf", "float32 (", "MB/s", "dropped: lm_head.weight", "verified: "):
        assert part in text
    assert cli.main(["convert", out, "--out", out + "2", "--back", "openbmb"]) == cli.OK
    assert cli.main(["convert", source, "--out", out]) == cli.USER_ERROR
    assert "exists; remove it" in capsys.readouterr().err


def test_the_package_has_the_function() -> None:
    assert mindplm.convert is not None
    with pytest.raises(CheckpointError, match="no such file or folder"):
        mindplm.convert("nowhere", "nowhere-else")
