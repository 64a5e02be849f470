"""GPT-1's NumPy files and CPM-1's model-parallel shards: golden weights through them, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import golden_dirs
from safetensors.numpy import load_file

from mindplm import checkpoint, strict
from mindplm.convert import convert
from mindplm.errors import CheckpointError, ConfigError
from mindplm.models.cpm1 import config as cpm1
from mindplm.models.cpm1.files import open_release as open_ranks
from mindplm.models.gpt1 import config as gpt1
from mindplm.models.gpt1.files import names, open_release
from mindplm.tokenizers.bpe import SPECIALS, BpeTokenizer
from mindplm.weights.rules import to_ours
from mindplm.weights.torch_io import open_torch, torch_chunks

LETTERS = {chr(0x4E00 + i): i for i in range(400)}


def same(found, wanted) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert np.asarray(found[name]).dtype == array.dtype
        assert np.array_equal(np.asarray(found[name]), array), name


# --- GPT-1 ----------------------------------------------------------------------------------------


def released(path: Path, folder: Path) -> tuple[dict[str, np.ndarray], gpt1.Gpt1Config]:
    """Writes a golden set's parameters as the release has them; returns them under our names."""
    facts = json.loads(path.read_text())
    sizes = facts["config"]
    params = dict(np.load(path.with_name(path.name.replace("run", "params")).with_suffix(".npz")))
    cut = sizes["n_vocab"] + facts["n_special"]
    parts = [params["we"][cut:], params["we"][:cut]]
    for name in names(sizes["n_layer"])[2:]:
        parts.append(params["h" + name[2:]])
    folder.mkdir()
    (folder / "params_shapes.json").write_text(json.dumps([part.shape for part in parts]))
    flat = np.concatenate([part.ravel() for part in parts])
    for number, piece in enumerate(np.array_split(flat, 10)):
        np.save(folder / f"params_{number}.npy", piece)
    pieces = {name: number for number, name in enumerate([*list(LETTERS)[: cut - 3], *SPECIALS])}
    for name, data in BpeTokenizer(pieces, [], "basic").files().items():
        (folder / name).write_bytes(data)
    config = gpt1.Gpt1Config(
        vocab_size=cut, hidden_size=sizes["n_embd"], num_heads=sizes["n_head"],
        ffn_size=4 * sizes["n_embd"], num_layers=sizes["n_layer"], max_len=sizes["n_ctx"],
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(gpt1.to_original(config)))
    theirs = {name: part[0] if part.ndim == 3 else part
              for name, part in zip(names(sizes["n_layer"]), parts)}  # fmt: skip
    rules = gpt1.rules(config, "openai")
    return to_ours(rules, theirs, gpt1.parameter_shapes(config)), config


@pytest.mark.parametrize("path", golden_dirs("gpt1", "tf_run_*.json"), ids=lambda p: p.stem)
def test_the_release_of_gpt1_there_and_back(path, tmp_path):
    wanted, config = released(path, tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "ours", family="gpt1", verify=True)
    assert report.flavour == "openai"
    assert len(report.files) == 11
    saved = checkpoint.read(tmp_path / "ours")
    assert saved.model() == config
    same(saved.weights(), wanted)
    convert(tmp_path / "ours", tmp_path / "back", back="openai", verify=True)
    flat = [
        np.concatenate([np.load(folder / f"params_{i}.npy") for i in range(10)])
        for folder in (tmp_path / "theirs", tmp_path / "back")
    ]
    assert np.array_equal(*flat)
    shapes = [
        json.loads((tmp_path / name / "params_shapes.json").read_text())
        for name in ("theirs", "back")
    ]
    assert shapes[0] == shapes[1]
    again = BpeTokenizer.from_file(tmp_path / "back", "basic")
    assert again.fingerprint == BpeTokenizer.from_file(tmp_path / "theirs").fingerprint


@pytest.mark.parametrize("path", golden_dirs("gpt1", "tf_run_*.json")[:1], ids=lambda p: p.stem)
def test_marks_get_rows_of_their_own(path, tmp_path):
    wanted, config = released(path, tmp_path / "theirs")
    tree = json.loads((tmp_path / "theirs" / "bpe.json").read_text())
    tree["pieces"] = [f"p{i}" for i in range(config.vocab_size)]
    (tmp_path / "theirs" / "bpe.json").write_text(json.dumps(tree))
    source, out = tmp_path / "theirs", tmp_path / "ours"
    convert(source, out, family="gpt1", words="basic+marks", verify=True)
    saved = checkpoint.read(out)
    assert saved.model().vocab_size == config.vocab_size + 3
    table = saved.weights()["embed.weight"]
    assert np.array_equal(table[:-3], wanted["embed.weight"])
    assert 0.005 < table[-3:].std() < 0.05
    tokenizer = BpeTokenizer.from_file(out)
    assert [tokenizer.pieces[name] for name in SPECIALS] == [
        config.vocab_size + i for i in range(3)
    ]


@pytest.mark.parametrize("path", golden_dirs("gpt1", "tf_run_*.json")[:1], ids=lambda p: p.stem)
def test_what_is_missing_or_damaged_in_the_release_is_named(path, tmp_path):
    folder = tmp_path / "theirs"
    released(path, folder)
    whole = np.load(folder / "params_4.npy")
    for broken, words in (
        (whole[:-1], "hold"),
        (whole.reshape(1, -1), "one row"),
        (whole.astype(np.float64), "float32"),
    ):
        np.save(folder / "params_4.npy", broken)
        with pytest.raises(CheckpointError, match=words):
            open_release(folder)
    (folder / "params_4.npy").unlink()
    with pytest.raises(CheckpointError, match="without a gap"):
        open_release(folder)
    np.save(folder / "params_4.npy", np.array([{}] * 3), allow_pickle=True)
    with pytest.raises(CheckpointError, match="object"):
        open_release(folder)


# --- CPM-1 ----------------------------------------------------------------------------------------


def shards_of(theirs: dict[str, np.ndarray], ranks: int) -> list[dict[str, np.ndarray]]:
    """What each rank of the original's layers holds."""
    found: list[dict[str, np.ndarray]] = [{} for _ in range(ranks)]
    for name, array in theirs.items():
        if "query_key_value" in name:
            q, k, v = (np.split(part, ranks) for part in np.split(array, 3))
            parts = [np.concatenate(three) for three in zip(q, k, v)]
        elif name == "word_embeddings.weight" or "dense_h_to_4h" in name:
            parts = np.split(array, ranks)
        elif name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            parts = np.split(array, ranks, 1)
        else:
            parts = [array] * ranks
        for rank, part in zip(found, parts):
            rank[name] = np.ascontiguousarray(part)
    return found


def write_shards(folder: Path, shards: list[dict[str, np.ndarray]]) -> None:
    (folder / "80000").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("80000\n")
    for rank, shard in enumerate(shards):
        data = b"".join(bytes(chunk) for chunk in torch_chunks(shard, inside="module"))
        (folder / "80000" / f"mp_rank_{rank:02d}_model_states.pt").write_bytes(data)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "path", golden_dirs("cpm1", "weights_megatron_*.safetensors"), ids=lambda p: p.stem
)
def test_shards_of_cpm1_there_and_back(path, ranks, tmp_path):
    theirs = {name: array.astype(np.float16) for name, array in load_file(path).items()}
    shards = shards_of(theirs, ranks)
    write_shards(tmp_path / "theirs", shards)
    found, files = open_ranks(tmp_path / "theirs")
    same(found, theirs)
    assert len(files) == ranks
    config_file = path.with_name(path.stem.replace("weights_megatron", "config") + ".json")
    facts = json.loads(config_file.read_text())
    config = cpm1.from_original({k: v for k, v in facts.items() if not k.endswith("_id")})
    ours = to_ours(cpm1.rules(config), theirs, cpm1.parameter_shapes(config))
    checkpoint.write(
        tmp_path / "ours",
        family="cpm1",
        model_config=strict.to_plain(config),
        weights=ours,
        tokenizer_files={"chinese_vocab.model": b"pieces"},
    )
    convert(tmp_path / "ours", tmp_path / "back", back=f"megatron:{ranks}", verify=True)
    for rank, shard in enumerate(shards):
        (own,) = (tmp_path / "back").glob(f"*/mp_rank_{rank:02d}_model_states.pt")
        same(open_torch(own, inside="module"), shard)
    same(open_ranks(tmp_path / "back")[0], theirs)
    with pytest.raises(CheckpointError, match="which 7 ranks cannot share equally"):
        convert(tmp_path / "ours", tmp_path / "seven", back="megatron:7")


GOLDEN_SHARDS = golden_dirs("cpm1", "weights_megatron_*.safetensors")[:1]


@pytest.mark.parametrize("path", GOLDEN_SHARDS, ids=lambda p: p.stem)
def test_ranks_that_do_not_belong_together_are_refused(path, tmp_path):
    shards = shards_of(load_file(path), 2)
    shards[1]["transformer.final_layernorm.bias"] = (
        shards[1]["transformer.final_layernorm.bias"] + 1
    )
    write_shards(tmp_path / "odd", shards)
    found, _ = open_ranks(tmp_path / "odd")
    with pytest.raises(CheckpointError, match="final_layernorm.bias differs between ranks 0 and 1"):
        np.asarray(found["transformer.final_layernorm.bias"])
    (tmp_path / "odd" / "80000" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="expected all from 0 on"):
        open_ranks(tmp_path / "odd")
    del shards[1]["position_embeddings.weight"]
    write_shards(tmp_path / "less", shards)
    with pytest.raises(CheckpointError, match="position_embeddings.weight"):
        open_ranks(tmp_path / "less")


def test_a_number_of_shards_goes_with_megatron_only(tmp_path):
    config = gpt1.Gpt1Config(
        vocab_size=5, hidden_size=2, num_heads=1, ffn_size=8, num_layers=1, max_len=4
    )
    checkpoint.write(
        tmp_path / "ours",
        family="gpt1",
        model_config=strict.to_plain(config),
        weights={n: np.zeros(s, np.float32) for n, s in gpt1.parameter_shapes(config).items()},
        tokenizer_files=BpeTokenizer(dict(list(LETTERS.items())[:5]), [], "basic").files(),
    )
    with pytest.raises(ConfigError, match="megatron:2"):
        convert(tmp_path / "ours", tmp_path / "back", back="openai:2")
    with pytest.raises(ConfigError, match="accepted: openai"):
        convert(tmp_path / "ours", tmp_path / "back", back="megatron:2")
