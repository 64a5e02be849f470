"""CPM-Bee data against the golden files: records to arrays, packing, targets, extension table."""

from __future__ import annotations

import ast
import io
import json
import pickle
import random
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, SHARED_DATA, golden_dirs

from mindplm.data.cpm_bee import RecordState, Sample, to_arrays
from mindplm.data.instances import Instance, append_incontext, make_instance
from mindplm.data.packing import (
    COLUMNS,
    GOLDEN_NAMES,
    IGNORE,
    TOKEN_COLUMNS,
    Packer,
    Row,
    RowShape,
    collate,
    columns_from_batch,
    ext_table,
    row_targets,
)
from mindplm.errors import DataError
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

GOLD = GOLDEN / "cpm_bee"
VOCAB = SHARED_DATA / "cpm_bee" / "bee.txt" if SHARED_DATA else None


def read(name: str) -> Any:
    path = GOLD / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


CONVERT = read("convert.json") or {"records": [], "chains": [], "invalid": []}


@pytest.fixture(scope="module")
def tokenizer() -> CpmBeeTokenizer:
    if VOCAB is None or not VOCAB.is_file():
        pytest.skip("the published vocabulary is not here")
    return CpmBeeTokenizer.from_file(VOCAB)


@pytest.fixture(scope="module")
def arrays() -> Any:
    with np.load(GOLD / "convert.npz") as file:
        return dict(file)


def check(sample: Sample, case: dict, arrays: dict) -> None:
    key = case["key"]
    ours = {"ids": sample.ids, "sub": sample.subs, "segs": sample.segs, "rel": sample.rel}
    for name, got in {**ours, "context": sample.context}.items():
        want = arrays[f"{key}/{name}"]
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want, err_msg=name)
    assert sample.num_segments == case["num_segments"]
    assert sample.state.table == {int(i): t for i, t in case["ext_table"].items()}
    want_subs = {b: {int(i): s for i, s in d.items()} for b, d in case["token_id_table"].items()}
    assert sample.state.subs == want_subs


@pytest.mark.parametrize("case", CONVERT["records"], ids=lambda c: f"{c['key']}-{c['name']}")
def test_record_arrays(case, tokenizer, arrays):
    shuffle = None
    if case["shuffle_answer"]:
        np.random.seed(case["np_seed"])
        shuffle = np.random
    sample = to_arrays(case["data"], tokenizer, max_depth=case["max_depth"], shuffle=shuffle)
    check(sample, case, arrays)
    if "rng_after" in case:
        assert np.random.random_sample() == case["rng_after"]


@pytest.mark.parametrize("chain", CONVERT["chains"], ids=lambda c: c[0]["key"])
def test_chain_of_samples(chain, tokenizer, arrays):
    state: RecordState | None = None
    for case in chain:
        sample = to_arrays(case["data"], tokenizer, state=state)
        check(sample, case, arrays)
        state = sample.state


@pytest.mark.parametrize("case", CONVERT["invalid"], ids=lambda c: c["name"])
def test_invalid_record(case, tokenizer):
    record = json.loads(case["json"]) if case["json"] else ast.literal_eval(case["data_repr"])
    with pytest.raises(DataError, match="record"):
        to_arrays(record, tokenizer)


# Packing. The original's loops are replayed with our conversion and packer; the random streams
# (numpy's and Python's global generators) must stay in step with it to the end of the run.

FIELDS = (
    *("inputs", "inputs_sub", "length", "context", "sample_ids", "num_segments", "segment_ids"),
    *("segment_rel_offset", "segment_rel", "spans", "target", "task_ids", "ext_ids", "ext_sub"),
)


def as_golden(
    rows: list[Row], max_length: int, marks: Any, share: slice = slice(None)
) -> dict[str, np.ndarray]:
    """A share of a batch in the original's fields, with the extension table of the whole."""
    ids, subs = ext_table(rows)
    shape = RowShape(max_length, max(len(row.segment_rel) for row in rows), len(ids), max_length)
    taken = rows[share]
    columns = collate(taken, num_rows=len(taken), shape=shape, marks=marks, ext=(ids, subs))
    batch = {GOLDEN_NAMES.get(name, name): value for name, value in columns.items()}
    batch["context"] = columns["context"].astype(bool)
    batch["target"] = np.full_like(columns["ids"], IGNORE)
    batch["task_ids"] = np.zeros_like(columns["ids"])
    for i, row in enumerate(taken):
        batch["target"][i, : len(row)] = row_targets(row, (ids, subs), marks)
        batch["task_ids"][i, : len(row)] = row.task_ids[row.spans]
    return {name: batch[name] for name in FIELDS}


def compare(got: dict[str, np.ndarray], arrays: dict, prefix: str) -> None:
    for name in FIELDS:
        want = arrays[f"{prefix}/{name}"]
        np.testing.assert_array_equal(got[name], want, err_msg=f"{prefix}/{name}")


def shares(run: dict, emitted: list[list[Row]], tokenizer: Any) -> list[dict | None]:
    """What this worker gets of each global batch; None where nothing."""
    size, rank = run["batch_size"], run["rank"]
    part = slice(rank * size, (rank + 1) * size)
    return [
        as_golden(rows, run["max_length"], tokenizer, part) if rows[part] else None
        for rows in emitted
    ]


@pytest.mark.parametrize("run", read("pack/finetune.json"), ids=lambda r: r["tag"])
def test_finetune_batches(run, tokenizer):
    np.random.seed(run["np_seed"])
    lines = (GOLD / "pack" / "finetune.jsonl").read_text(encoding="utf-8").splitlines()
    rows_of_batch = run["batch_size"] * run["world_size"]
    emitted = []
    for _ in range(run["epochs"]):
        packer = Packer(rows_of_batch, RowShape(run["max_length"], 0, 0, 0))
        np.random.choice(1, p=np.ones(1, np.float32))
        for line in lines:
            sample = to_arrays(json.loads(line), tokenizer, shuffle=np.random)
            if len(sample) > run["max_length"]:
                continue
            np.random.choice(1, p=np.ones(1, np.float32))  # number of examples of the next one
            if rows := packer.add(make_instance(sample)):
                emitted.append(rows)
        if (rows := packer.flush()) and not run["drop_last"]:
            emitted.append(rows)
    assert np.random.random_sample() == run["np_random_after"]
    ours = shares(run, emitted, tokenizer)
    assert len(ours) == len(run["batches"])
    with np.load(GOLD / "pack" / "finetune_batches.npz") as arrays:
        for i, (got, want) in enumerate(zip(ours, run["batches"])):
            assert (got is None) == want["none"]
            if got is not None:
                compare(got, arrays, f"{run['tag']}/{i}")


class PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists and texts; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


class Blocks:
    """The original's dataset reader, shuffling blocks with Python's global generator."""

    def __init__(self, folder: Path, rank: int, world: int):
        meta = json.loads((folder / "meta.bin").read_text())
        self.content = (folder / meta["file_name"]).read_bytes()
        self.size, self.lines = meta["block_size"], meta["nlines"]
        self.all = [b for b in range(meta["block_end"]) if b % world == rank]
        self.unused: list[int] = []
        self.records: list[Any] = []
        self._refill()

    def _refill(self) -> None:
        self.unused = list(self.all)
        random.shuffle(self.unused)

    def _load(self, block: int) -> list[Any]:
        content = self.content[block * self.size : (block + 1) * self.size]
        records, at = [], 0
        while content[at] == 0x1F:
            (length,) = struct.unpack_from("<I", content, at + 1)
            records.append(PlainUnpickler(io.BytesIO(content[at + 5 : at + 5 + length])).load())
            at += 5 + length
        return records

    def read(self) -> Any:
        while not self.records:
            if not self.unused:
                self._refill()
            self.records = self._load(self.unused.pop())
        record = self.records.pop(0)
        if not self.records:  # the next block is chosen as soon as one ends
            if not self.unused:
                self._refill()
            self.records = self._load(self.unused.pop())
        return record


class Source:
    """One entry of a mixture: draws an instance as the original does."""

    def __init__(self, entry: dict, task: int, run: dict):
        folder = GOLD / "pack" / "mixture"
        self.blocks = Blocks(folder / entry["path"], run["rank"], run["world_size"])
        self.weight = entry["weight"] * self.blocks.lines
        counts = np.array(entry.get("incontext_weight", [1.0]), np.float32)
        self.counts = counts / counts.sum()
        self.transforms = entry.get("transforms", [])
        self.script: dict[str, Any] = {}
        if isinstance(self.transforms, str):
            exec((folder / self.transforms).read_text(encoding="utf-8"), self.script)
        self.task, self.max_length = task, run["max_length"]

    def instance(self, tokenizer: Any) -> Instance:
        count = int(np.random.choice(len(self.counts), p=self.counts))
        change = self._transform(count)
        while True:
            record = change(self.blocks.read())
            sample = to_arrays(record, tokenizer, shuffle=np.random)
            if len(sample) <= self.max_length:
                break
        raw = {"input": record, "samples": []}
        instance = make_instance(sample, task=self.task, raw=raw)
        for _ in range(count):
            if len(instance) >= self.max_length:
                break
            example = change(self.blocks.read())
            sample = to_arrays(example, tokenizer, state=sample.state, shuffle=np.random)
            if len(instance) + len(sample) > self.max_length:
                break
            instance = append_incontext(instance, sample)
            raw["samples"].append(example)
        return instance

    def _transform(self, count: int) -> Any:
        if self.script:
            seed = random.random()
            return lambda data: self.script["transform"](data, count, random.Random(seed))
        if not self.transforms:
            return lambda data: data
        chosen = self.transforms[np.random.choice(len(self.transforms))]
        return lambda data: {k: data[v[1:]] if v[0] == "$" else v for k, v in chosen.items()}


@pytest.mark.parametrize("run", read("pack/mixture/mixture.json"), ids=lambda r: r["tag"])
def test_mixture_batches(run, tokenizer):
    random.seed(run["seed"])
    np.random.seed(run["seed"])
    entries = read("pack/mixture/datasets.json")
    sources = [Source(entry, i, run) for i, entry in enumerate(entries)]
    weights = np.array([source.weight for source in sources], np.float32)
    weights /= weights.sum()
    packer = Packer(run["batch_size"], RowShape(run["max_length"], 0, 0, 0))
    emitted, picked = [], []
    while len(emitted) < len(run["batches"]):
        chosen = np.random.choice(len(sources), p=weights)
        picked.append(entries[chosen]["dataset_name"])
        if rows := packer.add(sources[chosen].instance(tokenizer)):
            emitted.append(rows)
    assert picked == run["picked_datasets"]
    assert np.random.random_sample() == run["np_random_after"]
    assert random.random() == run["random_after"]
    with np.load(GOLD / "pack" / "mixture" / "batches.npz") as arrays:
        for i, (rows, want) in enumerate(zip(emitted, run["batches"])):
            assert [raw for row in rows for raw in row.raw] == want["raw_data"]
            _renumber_tasks(rows, [e["task_name"] for e in entries], want["task_names"])
            got = as_golden(rows, run["max_length"], tokenizer)
            compare(got, arrays, f"{run['tag']}/{i}")


def _renumber_tasks(rows: list[Row], names: list[str], of_batch: list[str]) -> None:
    for row in rows:
        row.task_ids = np.array([of_batch.index(names[t]) for t in row.task_ids], np.int32)


@pytest.mark.parametrize("folder", golden_dirs("cpm_bee", "model_*"), ids=lambda f: f.name)
def test_batch_of_the_model_sets(folder):
    """Targets and extension table follow from the tokens; COLUMNS hold the same batch."""
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    vocab_size = json.loads((folder / "info.json").read_text())["config"]["vocab_size"]
    marks = SimpleNamespace(vocab_size=vocab_size, bos_id=6, eos_id=7)
    rows = [_row(inputs, i) for i in range(len(inputs["length"]))]
    seq_len = inputs["inputs"].shape[1]
    np.testing.assert_array_equal(as_golden(rows, seq_len, marks)["target"], inputs["target"])
    for got, name in zip(ext_table(rows), ("ext_ids", "ext_sub")):
        np.testing.assert_array_equal(got, inputs[name])
    limits = {"max_rel": inputs["segment_rel"].shape[1] + 5, "max_ext": 40, "max_targets": seq_len}
    columns = columns_from_batch(inputs, **limits)
    assert tuple(columns) == COLUMNS
    ours = collate(rows, num_rows=len(rows), shape=RowShape(seq_len, *limits.values()), marks=marks)
    for name in COLUMNS:
        assert ours[name].dtype == np.int32
        np.testing.assert_array_equal(ours[name], columns[name], err_msg=name)


def _row(inputs: dict[str, np.ndarray], i: int) -> Row:
    length = inputs["length"][i]
    columns = [inputs[GOLDEN_NAMES.get(name, name)][i, :length] for name in TOKEN_COLUMNS]
    tokens = np.stack(columns).astype(np.int32)
    spans = tokens[TOKEN_COLUMNS.index("spans")]
    first = [np.flatnonzero(spans == s)[0] for s in np.unique(spans)]
    tasks = inputs["task_ids"][i, first]
    return Row(tokens, segment_rel=inputs["segment_rel"][i], task_ids=tasks)
