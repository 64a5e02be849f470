"""Folders of rows: whole or not there, damage named, staleness explained."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from data_samples import POEM, SHAPE, settings, small_tokenizer, source, write_lines, write_rows

from mindplm.data.fingerprint import check_fresh, fingerprint, is_fresh, source_names
from mindplm.data.packing import row_pairs
from mindplm.data.preprocess import preprocess
from mindplm.data.records import open_folder
from mindplm.data.row_writer import RowWriter, new_rows
from mindplm.errors import DataError

TOKENIZER = small_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train"
    write_rows(path, TOKENIZER)
    return path


def test_rows_come_back_in_any_order_as_often_as_asked(folder):
    rows = open_folder(folder)
    every = list(rows.read(np.arange(len(rows))))
    assert len(every) == len(rows) > 10
    numbers = np.array([3, 0, 3, len(rows) - 1] * len(rows))
    for number, row in zip(numbers, rows.read(numbers)):
        np.testing.assert_array_equal(row.tokens, every[number].tokens)
        np.testing.assert_array_equal(row.segment_rel, every[number].segment_rel)
        np.testing.assert_array_equal(row.task_ids, every[number].task_ids)


def test_the_index_agrees_with_the_rows(folder):
    rows = open_folder(folder)
    assert rows.shape == SHAPE
    assert rows.marks.vocab_size == TOKENIZER.vocab_size
    for number, row in enumerate(rows.read(np.arange(len(rows)))):
        assert rows.index.length[number] == len(row)
        assert rows.index.num_targets[number] == row.num_targets
        for got, want in zip(rows.index.pairs(number), row_pairs(row.ids, row.subs)):
            np.testing.assert_array_equal(got, want)


def test_many_files_are_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("mindplm.data.row_writer._FILE_BYTES", 1)
    monkeypatch.setattr("mindplm.data.row_writer._ROWS_A_WRITE", 5)
    count = write_rows(tmp_path / "train", TOKENIZER)
    rows = open_folder(tmp_path / "train")
    assert len(rows.facts["records"]) > 2
    lengths = [len(row) for row in rows.read(np.arange(count)[::-1])]
    assert lengths == rows.index.length[::-1].tolist()


def test_a_folder_may_be_renamed_and_is_replaced_whole(tmp_path):
    write_rows(tmp_path / "a", TOKENIZER, count=40)
    (tmp_path / "a").rename(tmp_path / "b")
    write_rows(tmp_path / "a", TOKENIZER, count=20, seed=1)
    first, second = open_folder(tmp_path / "b"), open_folder(tmp_path / "a")
    assert len(first) > len(second)
    assert len(list(first.read(np.arange(len(first))))) == len(first)
    write_rows(tmp_path / "b", TOKENIZER, count=20, seed=1)
    assert len(open_folder(tmp_path / "b")) == len(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="holds no prepared rows"):
        write_rows(tmp_path / "train", TOKENIZER)
    assert (tmp_path / "train" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("failure", [
    RuntimeError("[ERROR] No free disk to be used"), OSError(errno.ENOSPC, "No space left"),
])  # fmt: skip
def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch, failure):
    count = write_rows(tmp_path / "train", TOKENIZER)

    def fail(*_):
        raise failure

    monkeypatch.setattr("mindspore.mindrecord.FileWriter.write_raw_data", fail)
    with pytest.raises(DataError, match="no space left") as caught:
        write_rows(tmp_path / "train", TOKENIZER, count=5)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(open_folder(tmp_path / "train")) == count
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(RowWriter, "finish", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_rows(tmp_path / "train", TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_unfinished_rows_do_not_appear(tmp_path):
    with pytest.raises(AssertionError), new_rows(tmp_path / "train", SHAPE, TOKENIZER):
        pass
    assert not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path):
    write_rows(tmp_path / "train", TOKENIZER)
    for path in sorted((tmp_path / "train").iterdir()):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DataError, match=f"{re.escape(str(path))}|damaged"):
            open_folder(tmp_path / "train")
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=re.escape(str(path))):
            open_folder(tmp_path / "train")
        path.unlink()
        with pytest.raises(DataError, match=re.escape(str(path))):
            open_folder(tmp_path / "train")
        path.write_bytes(content)
    open_folder(tmp_path / "train")


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder of prepared rows; run preprocess"):
        open_folder(tmp_path / "train")
    with pytest.raises(DataError, match=r"rows.json: missing"):
        open_folder(tmp_path)


def test_stale_rows_are_refused_with_what_changed(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"text": POEM}])
    sources, own = [source(path)], settings()
    rows = tmp_path / "train"
    assert not is_fresh(rows, sources, TOKENIZER, own)
    preprocess(sources, TOKENIZER, own, rows, progress=False)
    assert is_fresh(rows, sources, TOKENIZER, own)
    shape = SHAPE._replace(seq_len=128)
    for changed, words in [
        ((sources, small_tokenizer("!"), own), "another vocabulary"),
        ((sources, TOKENIZER, replace(own, shape=shape)), "seq_len was 96, is 128"),
        ((sources, TOKENIZER, replace(own, repeat=2)), "repeat was 1, is 2"),
        (([source(path, weight=2.0)], TOKENIZER, own), "weight of source a was 1.0, is 2.0"),
        (([source(path, tasks={"lm": 1.0})], TOKENIZER, own), "tasks of source a"),
        ((sources * 2, TOKENIZER, own), "source a#2 was added"),
    ]:
        with pytest.raises(DataError, match=re.escape(words)):
            check_fresh(rows, *changed)
    path.rename(tmp_path / "gone")  # rows are enough to train
    check_fresh(rows, sources, TOKENIZER, own)
    write_lines(path, [{"text": POEM[1:]}])
    with pytest.raises(DataError, match="the files of source a changed"):
        check_fresh(rows, sources, TOKENIZER, own)
    write_lines(path, [{"text": POEM}])  # the same again, at another time
    check_fresh(rows, sources, TOKENIZER, own)


def test_damaged_rows_are_not_fresh(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"text": POEM}])
    rows = tmp_path / "train"
    preprocess([source(path)], TOKENIZER, settings(), rows, progress=False)
    (rows / "index.npz").unlink()
    assert not is_fresh(rows, [source(path)], TOKENIZER, settings())


def test_fingerprints_are_plain_values(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": POEM}])
    mark = fingerprint([source(tmp_path / "a.jsonl")], TOKENIZER, settings())
    assert json.loads(json.dumps(mark)) == mark


def test_sources_have_different_names():
    made = [source("a/x.jsonl"), source("b/x.txt.gz"), source("embedded:poems"), source("x")]
    assert source_names(made) == ["x", "x#2", "poems", "x#3"]
