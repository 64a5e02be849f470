"""Indexed data sets and maps of samples of CPT's pretraining, and rows made of such ids."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import numpy as np
import pytest
from conftest import golden_dirs

from mindplm import assets
from mindplm.config import SourceConfig
from mindplm.data import cpt_rows, indexed, masked_rows
from mindplm.data.indexed import IndexedDataset, sample_map, write_indexed
from mindplm.data.kinds import RowSettings
from mindplm.data.packing import RowShape
from mindplm.data.preprocess import preprocess
from mindplm.data.records import open_folder
from mindplm.errors import ConfigError, DataError
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

INDEXES = golden_dirs("cpt", "indexed_*.idx")
TOKENIZER = WordPieceTokenizer.from_file(assets.path("vocab_wordpiece.txt"))
DOCUMENTS = [[[5, 6, 7], [8]], [[9] * 50, [10, 11]], [[12]]]


@pytest.mark.parametrize("path", INDEXES, ids=lambda path: path.stem)
def test_an_index_is_read_and_written_as_the_original_does(path, tmp_path):
    facts = json.loads(path.with_suffix(".json").read_text())
    found = IndexedDataset(path)
    assert found.dtype == facts["dtype"]
    assert found.sizes.tolist() == facts["sizes"]
    assert found.document_starts.tolist() == facts["doc_idx"]
    assert [ids.tolist() for ids in found] == facts["items"]
    documents = [found.document(number) for number in range(found.num_documents)]
    assert [ids.tolist() for ids in chain(*documents)] == facts["items"]
    vocab_size = 1 << (15 if facts["best_fitting_dtype"] == "uint16" else 20)
    write_indexed(tmp_path / "own", documents, vocab_size=vocab_size)
    for theirs, ours in zip(indexed.files_of(path), indexed.files_of(tmp_path / "own")):
        assert ours.read_bytes() == theirs.read_bytes(), ours.suffix


MAPS = [
    pytest.param(case, id=f"{path.stem}-{number}")
    for path in golden_dirs("cpt", "samples_mapping*.json")
    for number, case in enumerate(json.loads(path.read_text()))
]


@pytest.mark.parametrize("case", MAPS)
def test_samples_come_in_the_originals_order(case):
    found = sample_map(
        case["doc_idx"],
        case["sizes"],
        num_epochs=case["num_epochs"],
        max_num_samples=case["max_num_samples"],
        max_len=case["max_seq_length"],
        short_prob=case["short_seq_prob"],
        seed=case["seed"],
        min_sentences=case["min_num_sent"],
    )
    assert found.tolist() == case["mapping"]


def rows_of(path, folder, kind=cpt_rows.ROWS):
    settings = RowSettings(RowShape(24, 0, 0, 24))
    source = SourceConfig(path=str(path))
    report = preprocess([source], TOKENIZER, settings, folder, kind=kind, progress=False)
    return report, open_folder(folder, kind=kind)


def test_rows_of_an_index_hold_each_token_once(tmp_path):
    write_indexed(tmp_path / "own", DOCUMENTS, vocab_size=1000)
    report, rows = rows_of(tmp_path / "own.idx", tmp_path / "rows")
    assert report["documents"] == 3
    read = list(rows.read(np.arange(len(rows))))
    found = [row.tokens[0].tolist() for row in read]
    assert sorted(chain(*found)) == sorted(chain(*chain(*DOCUMENTS)))
    assert all(len(set(ids) & {5, 9, 12}) <= 1 for ids in found)  # documents are not mixed
    assert max(int(row.tokens[1].sum()) for row in read) == 3  # side by side


def test_an_index_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "own.idx"
    write_indexed(path, [*DOCUMENTS, [[TOKENIZER.vocab_size]], []], vocab_size=100_000)
    report, _ = rows_of(path, tmp_path / "rows")
    assert {k: v["count"] for k, v in report["invalid"].items()} == {
        "unknown token": 1,
        "empty document": 1,
    }
    with pytest.raises(ConfigError, match="only cpt's pretraining rows"):
        rows_of(path, tmp_path / "others", masked_rows.ROWS)
    ids = path.with_suffix(".bin")
    data = ids.read_bytes()
    ids.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"own\.bin: \d+ bytes, expected"):
        IndexedDataset(path)
    ids.write_bytes(data)
    head = path.read_bytes()
    for damaged, message in (
        (b"TNTIDX\0\0" + head, "not of the older container"),
        (head[:-8], "damaged index"),
        (head[:17] + b"\7" + head[18:], "numbers with fractions"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            IndexedDataset(path)
    shutil.copy(ids, tmp_path / "alone.bin")
    with pytest.raises(DataError, match=r"alone\.idx: no such file"):
        IndexedDataset(tmp_path / "alone.bin")
