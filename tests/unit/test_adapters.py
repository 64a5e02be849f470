"""Adapter folders: bitwise round trips both ways, merging, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_convert import MINI, make, mini, values  # noqa: F401

import mindplm
from mindplm import adapters, checkpoint, cli, tensors
from mindplm.config_lora import LoraConfig
from mindplm.convert import convert, convert_lora
from mindplm.errors import CheckpointError, ConfigError, UserError
from mindplm.models.cpm_bee.config import lora_gain
from mindplm.tensors import BF16, LazyArray, cast
from mindplm.weights.torch_io import open_torch, torch_chunks

Q = "encoder.layers.{}.self_att.self_attention.project_q.lora.lora_{}"
DOWN = "encoder.layers.{}.ffn.ffn.w_out.lora.lora_{}"


def lazy(array: np.ndarray) -> LazyArray:
    return LazyArray(array.shape, array.dtype, lambda: array)


def delta(rank: int = 4, dtype: Any = np.float16, prefix: str = "") -> dict[str, np.ndarray]:
    """Adapters of MINI's q in layers 0 and 2 and of its FFN output in layer 1."""
    rng = np.random.default_rng(0)
    made = {}
    for name, layer, num_in, num_out in ((Q, 0, 8, 12), (DOWN, 1, 10, 8), (Q, 2, 8, 12)):
        for end, shape in (("A", (rank, num_in)), ("B", (num_out, rank))):
            array = rng.normal(size=shape).astype(np.float32)
            made[prefix + name.format(layer, end)] = cast(array, np.dtype(dtype))
    return made


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.write_bytes(b"".join(torch_chunks({n: lazy(a) for n, a in arrays.items()})))
    return path


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        convert_lora(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "cpmbee."])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, BF16])
def test_there_and_back_is_bitwise(tmp_path: Path, dtype: Any, prefix: str) -> None:
    arrays = delta(dtype=dtype, prefix=prefix)
    source = save(tmp_path / "x-delta-best.pt", arrays)
    report = convert_lora(source, tmp_path / "ours", alpha=12, verify=True)
    assert report.verified == 6
    assert "rank 4, alpha 12" in str(report)
    found = adapters.read(tmp_path / "ours")
    assert found.lora == LoraConfig(rank=4, alpha=12, targets=("attn.q", "ffn.down"))
    assert set(found.arrays) == {
        f"blocks.{where}.lora_{end}" for where in ("0.attn.q", "1.ffn.down", "2.attn.q")
        for end in "ab"
    }  # fmt: skip
    flavour = "hf" if prefix else "openbmb"
    convert_lora(tmp_path / "ours", tmp_path / "back", back=flavour, verify=True)
    name = "delta.safetensors" if prefix else "delta.pt"
    opened = tensors.open_file if prefix else open_torch
    assert values(opened(tmp_path / "back" / name)) == values(arrays)


@pytest.mark.parametrize("prefix", ["", "cpmbee."])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, BF16])
def test_pefts_folder_there_and_back_is_bitwise(tmp_path: Path, dtype: Any, prefix: str) -> None:
    arrays = {
        f"base_model.model.{prefix}{name.replace('.lora.lora_', '.lora_')}.weight": array
        for name, array in delta(dtype=dtype).items()
    }
    (tmp_path / "theirs").mkdir()
    save(tmp_path / "theirs" / "adapter_model.bin", arrays)
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "lora_dropout": 0.25, "bias": "none"}
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(said))
    report = convert_lora(tmp_path / "theirs", tmp_path / "ours", verify=True)
    assert report.verified == 6 and report.flavour == "peft"
    assert "rank 4, alpha 6; on attn.q, ffn.down" in str(report)
    found = adapters.read(tmp_path / "ours")
    assert found.lora == LoraConfig(rank=4, alpha=6, dropout=0.25, targets=("attn.q", "ffn.down"))

    back = tmp_path / "back"
    assert convert_lora(tmp_path / "ours", back, back="peft", verify=True).verified == 6
    wanted = {
        name.replace("model.encoder", "model.cpmbee.encoder"): a for name, a in arrays.items()
    }
    assert values(tensors.open_file(back / "adapter_model.safetensors")) == values(wanted)
    written = json.loads((back / "adapter_config.json").read_text())
    assert {key: written[key] for key in said} == said
    modules = [f"{n[len('base_model.model.') : -len('.lora_A.weight')]}" for n in wanted]
    assert written["target_modules"] == sorted(set(modules))
    convert_lora(back, tmp_path / "again")
    again = adapters.read(tmp_path / "again")
    assert again.lora == found.lora and values(again.arrays) == values(found.arrays)
    # The two layouts of one adapter hold the same bits.
    convert_lora(tmp_path / "ours", tmp_path / "original", back="openbmb")
    opened = open_torch(tmp_path / "original" / "delta.pt")
    assert values(opened) == values(delta(dtype=dtype))


def test_pefts_other_adapters_are_refused(tmp_path: Path) -> None:
    convert_lora(save(tmp_path / "d.pt", delta()), tmp_path / "ours")
    convert_lora(tmp_path / "ours", tmp_path / "peft", back="peft")
    file = tmp_path / "peft" / "adapter_config.json"
    good = json.loads(file.read_text())
    for changes, words in [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected LORA"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"rank_pattern": {"project_q": 2}}, "rank_pattern="),
        ({"r": None}, "adapter_config.json is damaged"),
        ({"lora_alpha": 0}, "lora.alpha=0.0, expected > 0"),
    ]:
        file.write_text(json.dumps({**good, **changes}))
        assert words in refusal(tmp_path / "peft", tmp_path / "x"), changes
    file.write_text(json.dumps(good))
    assert "says 16; leave it out" in refusal(tmp_path / "peft", tmp_path / "x", alpha=8.0)
    file.unlink()  # the tensors alone are enough if alpha is known
    convert_lora(tmp_path / "peft", tmp_path / "x", alpha=8.0)
    assert adapters.read(tmp_path / "x").lora.alpha == 8


def test_our_own_folder_is_bitwise(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "blocks.3.attn.o.lora_a": rng.normal(size=(2, 7)).astype(np.float32),
        "blocks.3.attn.o.lora_b": rng.normal(size=(5, 2)).astype(np.float32),
    }
    lora = LoraConfig(rank=2, alpha=7.5, dropout=0.1, targets=("blocks.3.attn.o",))
    adapters.write(tmp_path / "a", family="cpm_bee", lora=lora, arrays=arrays)
    found = adapters.read(tmp_path / "a")
    assert (found.family, found.lora) == ("cpm_bee", lora)
    assert values(found.arrays) == values(arrays)


@pytest.mark.usefixtures("mini")
def test_merging_adds_the_product_and_nothing_else(tmp_path: Path) -> None:
    convert(make(tmp_path / "theirs", dtype="float32"), tmp_path / "base")
    arrays = delta(dtype=np.float32)
    source = save(tmp_path / "d.pt", arrays)
    convert_lora(source, tmp_path / "adapter")
    convert_lora(source, tmp_path / "one", base=tmp_path / "base", verify=True)
    convert_lora(tmp_path / "adapter", tmp_path / "two", base=tmp_path / "base", verify=True)
    before, after = checkpoint.read(tmp_path / "base"), checkpoint.read(tmp_path / "one")
    assert values(checkpoint.read(tmp_path / "two").weights()) == values(after.weights())
    assert after.model() == before.model() == MINI
    changed = {"blocks.0.attn.q": (Q, 0), "blocks.1.ffn.down": (DOWN, 1), "blocks.2.attn.q": (Q, 2)}
    for name, old in before.weights().items():
        new = after.weights()[name]
        if name[: -len(".weight")] not in changed:
            assert new.tobytes() == old.tobytes(), name
            continue
        theirs, layer = changed[name[: -len(".weight")]]
        down, up = (arrays[theirs.format(layer, end)] for end in "AB")
        wanted = old + 16 / 4 * lora_gain(down.shape[1]) * (up @ down)
        np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("mini")
def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    convert(make(tmp_path / "theirs"), tmp_path / "base")
    good, base, out = delta(), tmp_path / "base", tmp_path / "x"
    first, second = Q.format(0, "A"), Q.format(0, "B")

    def told(arrays: dict[str, np.ndarray], **kwargs: Any) -> str:
        return refusal(save(tmp_path / "d.pt", arrays), out, **kwargs)

    half = {name: array for name, array in good.items() if name != second}
    assert "come in pairs" in told(half)
    assert "matched no rule" in told({**good, "a.lora.lora_A": good[first]})
    assert "is no part of a LoRA adapter" in told({**good, "extra": good[first]})
    assert "adapters of one rank" in told({**good, first: good[first][:2]})
    assert "expected (4, in) and (out, 4)" in told({**good, second: good[second][:, :3].copy()})
    assert "holds int32, expected floats" in told({**good, first: good[first].astype("i4")})
    wide = {**good, first: np.zeros((4, 9), np.float16)}
    text = told(wide, base=base)
    assert "does not belong to this model: blocks.0.attn.q.weight should be (12, 9)" in text
    gone = {n.replace("layers.0.", "layers.1."): a for n, a in good.items() if "layers.1" not in n}
    assert "the model has no such projection" in told(gone, base=base)
    huge = {**good, first: np.full((4, 8), 6e4, np.float16)}
    assert "do not fit into float16" in told(huge, base=base)
    assert "lora.alpha=-1.0" in told(good, alpha=-1.0)
    assert "choose one of them" in told(good, base=base, back="hf")
    assert "is no adapter of this library" in told(good, back="hf")
    assert not out.exists()
    with pytest.raises(CheckpointError, match="holds LoRA adapters, not a model"):
        convert(save(tmp_path / "d.pt", good), out)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    convert_lora(save(tmp_path / "d.pt", delta()), tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="adapter.safetensors is damaged"):
        adapters.read(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is no adapter of this library"):
        adapters.read(tmp_path)


@pytest.mark.usefixtures("mini")
def test_the_command_line_knows_adapters_by_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, base = make(tmp_path / "theirs"), str(tmp_path / "base")
    delta_file, ours = str(save(tmp_path / "d.pt", delta())), str(tmp_path / "ours")

    def run(*argv: str) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main(["convert", *argv])
        text = capsys.readouterr()
        return status, text.out + text.err

    assert run(str(theirs), "--out", base)[0] == cli.OK
    status, text = run(delta_file, "--out", ours, "--alpha", "8", "--verify")
    assert status == cli.OK and "alpha 8" in text and "verified: 6 tensors" in text
    assert run(ours, "--out", str(tmp_path / "back"), "--back", "openbmb")[0] == cli.OK
    status, text = run(ours, "--base", base, "--out", str(tmp_path / "merged"))
    assert status == cli.OK and "merged: " in text
    assert checkpoint.read(tmp_path / "merged").model() == MINI
    x = str(tmp_path / "x")
    for argv, word in [
        ([ours, "--out", x], "say what to do with it"),
        ([str(theirs), "--out", x, "--base", base], "--base is for LoRA adapters"),
        ([str(theirs), "--out", x, "--alpha", "3"], "--alpha is for LoRA adapters"),
        ([delta_file, "--out", x, "--vocab", "v"], "--vocab is for models"),
    ]:
        status, text = run(*argv)
        assert status == cli.USER_ERROR and word in text, text


def test_settings_are_checked() -> None:
    for changes in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(ConfigError, match=f"lora.{next(iter(changes))}="):
            LoraConfig(**changes)
    assert mindplm.convert_lora is convert_lora
