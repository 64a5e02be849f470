"""The golden `pack` folder: batches, mixtures, binary data sets, transforms, text splitting."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.data import long_text, transforms
from mindplm.data.binary import DatasetWriter, load, read_meta
from mindplm.data.binary_reader import DatasetReader, shuffle_dataset
from mindplm.data.cpm_bee import RecordError
from mindplm.data.original import FIELDS, MixtureSampler, as_batch, finetune_batches
from mindplm.errors import DataError
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

PACK = golden_dirs("cpm_bee", "pack")
VOCAB = SHARED_DATA / "cpm_bee" / "bee.txt" if SHARED_DATA else None


def cases(name: str) -> list[Any]:
    """(file, case) of each file of that name whose content is a list."""
    files = [path for folder in PACK for path in sorted(folder.rglob(name))]
    return [(path, case) for path in files for case in json.loads(path.read_text("utf-8"))]


def label(value: Any) -> str:
    return value.get("tag", "") if isinstance(value, dict) else value.parent.name


@pytest.fixture(scope="module")
def tokenizer() -> CpmBeeTokenizer:
    if VOCAB is None or not VOCAB.is_file():
        pytest.skip("the published vocabulary is not here")
    return CpmBeeTokenizer.from_file(VOCAB)


def compare(got: dict[str, np.ndarray], arrays: Any, prefix: str) -> None:
    stored = {name[len(prefix) :] for name in arrays.files if name.startswith(prefix)}
    assert stored == set(FIELDS)
    for name in FIELDS:
        np.testing.assert_array_equal(got[name], arrays[prefix + name], err_msg=prefix + name)


def test_every_golden_file_is_read_by_a_test():
    read = {"finetune.json", "finetune.jsonl", "finetune_batches.npz", "transforms.json",
            "txt_split.json", "mixture", "binary"}  # fmt: skip
    for folder in PACK:
        assert {path.name for path in folder.iterdir()} <= read
        parts = {"mixture.json", "datasets.json", "batches.npz"}
        found = {path.name for path in (folder / "mixture").iterdir()}
        names = {path.stem for path in (folder / "mixture").glob("*.jsonl")}
        assert found == parts | names | {f"{name}.jsonl" for name in names}
        binary = {path.name for path in (folder / "binary").iterdir()}
        assert binary == {"binary.json", "json", "pickle"}


@pytest.mark.parametrize(("path", "run"), cases("finetune.json"), ids=label)
def test_finetune_batches(path, run, tokenizer):
    np.random.seed(run["np_seed"])
    random.seed(run["np_seed"])
    lines = (path.parent / "finetune.jsonl").read_text(encoding="utf-8").splitlines()
    size, rank = run["batch_size"], run["rank"]
    share = slice(rank * size, (rank + 1) * size)
    got = []
    for epoch in range(run["epochs"]):
        batches = finetune_batches(
            lambda: map(json.loads, lines),
            tokenizer,
            batch_size=size,
            max_length=run["max_length"],
            world=run["world_size"],
            drop_last=run["drop_last"],
        )
        got += [(epoch, rows) for rows in batches]
    assert np.random.random_sample() == run["np_random_after"]
    assert len(got) == len(run["batches"])
    with np.load(path.parent / "finetune_batches.npz") as arrays:
        for i, ((epoch, rows), want) in enumerate(zip(got, run["batches"])):
            assert epoch == want["epoch"]
            assert (not rows[share]) == want["none"]
            if rows[share]:
                batch = as_batch(rows, run["max_length"], tokenizer, share)
                compare(batch, arrays, f"{run['tag']}/{i}/")
                assert len(rows[share]) == want["rows"]
            if want.get("raw_data") is not None:  # kept of the first batches only
                assert [raw for row in rows for raw in row.raw] == want["raw_data"]


@pytest.mark.parametrize(("path", "run"), cases("mixture.json"), ids=label)
def test_mixture_batches(path, run, tokenizer):
    random.seed(run["seed"])
    np.random.seed(run["seed"])
    sampler = MixtureSampler(
        path.parent / "datasets.json",
        tokenizer,
        batch_size=run["batch_size"],
        max_length=run["max_length"],
        rank=run["rank"],
        world=run["world_size"],
    )
    batches = [batch for _, batch in zip(run["batches"], sampler)]
    assert [name.rpartition(".")[2] for name in sampler.picked] == run["picked_datasets"]
    assert np.random.random_sample() == run["np_random_after"]
    assert random.random() == run["random_after"]
    assert sampler.state() == run["state"]
    with np.load(path.parent / "batches.npz") as arrays:
        for i, ((rows, names), want) in enumerate(zip(batches, run["batches"])):
            assert names == want["task_names"]
            assert [raw for row in rows for raw in row.raw] == want["raw_data"]
            compare(as_batch(rows, run["max_length"], tokenizer), arrays, f"{run['tag']}/{i}/")


@pytest.mark.parametrize("path", [p / "mixture" for p in PACK], ids=lambda p: p.parent.name)
def test_mixture_data_sets_hold_their_lines(path):
    for source in sorted(path.glob("*.jsonl")):
        lines = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
        reader = DatasetReader(path / source.stem / "data", shuffle=False, passes=1)
        texts = [json.dumps(value, sort_keys=True) for value in reader]
        assert sorted(texts) == sorted(json.dumps(line, sort_keys=True) for line in lines)
        assert len(reader) == len(lines)


@pytest.mark.parametrize(("path", "case"), cases("transforms.json"), ids=lambda v: "")
def test_transforms(path, case):
    given = case["transform"], case["data"]
    if "result" in case:
        assert transforms.apply(*given, parity=True) == case["result"]
        assert transforms.apply(*given) == case["result"]
        return
    with pytest.raises(RecordError) as caught:
        transforms.apply(*given, parity=True)
    missing_key = caught.value.reason == "no field"
    assert missing_key == (case["error"] == "KeyError")
    if missing_key:
        assert f"there is no {case['message']}" in str(caught.value)


@pytest.mark.parametrize(("path", "case"), cases("txt_split.json"), ids=lambda v: "")
def test_text_splitting(path, case):
    text = long_text.clean(case["text"])
    assert text == case["preprocessed"]
    assert long_text.split(text, case["min"], case["max"]) == case["parts"]


# Binary data sets.

BINARY = [
    pytest.param(path / kind, json.loads((path / "binary.json").read_text("utf-8")), id=kind)
    for path in [folder / "binary" for folder in PACK]
    for kind in ("pickle", "json")
]
FILES = [path / "binary" / "binary.json" for path in PACK]


def numbers(records: Any) -> list[int]:
    return [record["i"] for record in records]


def write(folder: Path, name: str, objects: list[Any], payload: Any) -> None:
    with DatasetWriter(folder, name, block_bytes=256, payload=payload) as writer:
        for value in objects:
            writer.write(value)


@pytest.mark.parametrize(("folder", "gold"), BINARY)
def test_binary_read_orders(folder, gold):
    case = gold[folder.name]
    reader = DatasetReader(folder, shuffle=False, passes=1)
    assert numbers(reader) == case["read_order_noshuffle"]
    assert (len(reader), reader.nbytes) == (case["len"], case["nbytes"])
    assert [
        r for _, r in sorted(zip(case["read_order_noshuffle"], reader), key=lambda p: p[0])
    ] == (gold["objects"])
    random.seed(3)
    reader = DatasetReader(folder, passes=1)
    assert numbers(reader) == case["read_order_shuffle_seed3"]
    assert numbers(reader) == case["second_pass_shuffle"]


@pytest.mark.parametrize(("folder", "gold"), BINARY)
def test_binary_shares_of_ranks(folder, gold):
    for place, want in gold[folder.name]["ranks"].items():
        rank, world = map(int, place.split("/"))
        random.seed(want["seed"])
        reader = DatasetReader(folder, rank=rank, world=world)
        assert reader.state()["states"] == want["unused_blocks_in_list_order"]
        assert numbers(reader.read() for _ in range(60)) == want["first_60_reads"]
        assert reader.state() == want["state_after"]


@pytest.mark.parametrize(("folder", "gold"), BINARY)
def test_binary_resume(folder, gold):
    want = gold[folder.name]["resume"]
    random.seed(want["seed"])
    reader = DatasetReader(folder)
    for _ in range(want["skip"]):
        reader.read()
    state = reader.state()
    assert {name: [values] for name, values in state.items()} == want["state"]
    assert numbers(reader.read() for _ in want["next"]) == want["next"]
    reader = DatasetReader(folder)
    reader.load_state([state])
    after = want["next_after_reload"]
    assert numbers(reader.read() for _ in after) == after


@pytest.mark.parametrize(("folder", "gold"), BINARY)
def test_binary_writing_gives_the_same_bytes(folder, gold, tmp_path):
    """Pickles may be written in several ways, so only JSON is compared to the byte."""
    files = read_meta(folder)
    start = 0
    for file in files:
        part = gold["objects"][start : start + file.nlines]
        write(tmp_path / "d", file.file_name, part, folder.name)
        start += file.nlines
        if folder.name == "json":
            path = tmp_path / "d" / file.file_name
            assert path.read_bytes() == (folder / file.file_name).read_bytes()
    if folder.name == "json":
        assert (tmp_path / "d" / "meta.bin").read_text().splitlines() == gold["json"]["meta"]
    reader = DatasetReader(tmp_path / "d", shuffle=False, passes=1)
    assert sorted(numbers(reader)) == list(range(len(gold["objects"])))


@pytest.mark.parametrize("path", FILES)
def test_binary_shuffle(path, tmp_path):
    gold = json.loads(path.read_text("utf-8"))
    want = gold["shuffle"]
    write(tmp_path / "source", "x", gold["objects"], "json")
    assert DatasetReader(tmp_path / "source").nbytes == want["source_nbytes"]
    random.seed(want["seed"])
    shuffle_dataset(
        tmp_path / "source",
        tmp_path / "target",
        "o",
        block_bytes=want["block_size"],
        bucket_bytes=want["bucket_size"],
    )
    assert (tmp_path / "target" / "meta.bin").read_text().splitlines() == want["meta"]
    assert numbers(DatasetReader(tmp_path / "target", shuffle=False, passes=1)) == want["order"]


@pytest.mark.parametrize("path", FILES)
def test_binary_errors(path, tmp_path):
    gold = json.loads(path.read_text("utf-8"))
    assert gold["too_large"]["error"] == gold["duplicate"]["error"] == "ValueError"
    with pytest.raises(DataError, match="a record of 300 bytes, a block has 256"):
        write(tmp_path / "d", "a", [b"x" * 300], "raw")
    assert not (tmp_path / "d" / "a").exists()
    write(tmp_path / "d", "a", [b"x" * 250], "raw")
    with pytest.raises(DataError, match="has a file of that name already"):
        write(tmp_path / "d", "a", [], "raw")
    assert load(b'{"i": 1}') == {"i": 1}
