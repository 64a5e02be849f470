"""CPM-Bee data against the golden files: records to arrays, targets, extension table."""

from __future__ import annotations

import ast
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, SHARED_DATA, golden_dirs

from mindplm.data.cpm_bee import RecordState, Sample, to_arrays
from mindplm.data.original import as_batch
from mindplm.data.packing import (
    COLUMNS,
    GOLDEN_NAMES,
    TOKEN_COLUMNS,
    Row,
    RowShape,
    collate,
    columns_from_batch,
    ext_table,
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


@pytest.mark.parametrize("folder", golden_dirs("cpm_bee", "model_*"), ids=lambda f: f.name)
def test_batch_of_the_model_sets(folder):
    """Targets and extension table follow from the tokens; COLUMNS hold the same batch."""
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    vocab_size = json.loads((folder / "info.json").read_text())["config"]["vocab_size"]
    marks = SimpleNamespace(vocab_size=vocab_size, bos_id=6, eos_id=7)
    rows = [_row(inputs, i) for i in range(len(inputs["length"]))]
    seq_len = inputs["inputs"].shape[1]
    np.testing.assert_array_equal(as_batch(rows, seq_len, marks)["target"], inputs["target"])
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
