"""Rows of causal models: windows over texts laid end to end, records, characters, columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.config import ShapeConfig, SourceConfig
from mindplm.data.causal_rows import (
    APART,
    LM,
    RECORD,
    TASKS,
    CausalDrawer,
    CausalPacker,
    collate,
    record_piece,
    text_piece,
)
from mindplm.data.cpm1_tasks import sample_bounds
from mindplm.data.cpm_bee import RecordError
from mindplm.data.draw import Work
from mindplm.data.kinds import RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.sources import SourceReader


class Letters:
    """Ids are code points; 0 ends texts."""

    vocab_size, eos_id, sep_id = 200, 0, 1

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]


def rows_of(texts: list[str], seq_len: int, task: str):
    packer = CausalPacker(4, RowShape(seq_len, 0, 0, seq_len))
    rows = []
    for text in texts:
        piece = text_piece(text, Letters())
        piece.task = TASKS.index(task)
        rows += packer.add(piece)
    return [*rows, *packer.flush()]


TEXTS = st.lists(st.text("abcdefgh", max_size=12), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(2, 9))
def test_joined_windows_are_those_of_the_original(texts, seq_len):
    """Every token but the first is a label once; windows begin where the original's do."""
    whole = [i for text in texts for i in [*Letters().encode(text), 0]]
    rows = rows_of(texts, seq_len, LM)
    labels = [label for row in rows for label in row.tokens[1].tolist()]
    inputs = [i for row in rows for i in row.tokens[0].tolist()]
    assert (inputs, labels) == (whole[:-1], whole[1:])
    assert all(row.lengths.tolist() == [len(row)] for row in rows)
    assert all(len(row) == seq_len for row in rows[:-1])
    bounds = sample_bounds([len(text) + 1 for text in texts], range(len(texts)), seq_len)
    assert len(rows) - (len(rows[-1]) < seq_len if rows else 0) == len(bounds) - 1


@settings(max_examples=60, deadline=None)
@given(TEXTS.map(lambda texts: [text or "a" for text in texts]), st.integers(2, 9))
def test_texts_that_are_apart_predict_nothing_of_each_other(texts, seq_len):
    rows = rows_of(texts, seq_len, APART)
    ends = np.cumsum([len(text) + 1 for text in texts])
    place = 0
    for row in rows:
        assert row.lengths.sum() == len(row) and (row.lengths > 0).all()
        starts = set(np.cumsum(row.lengths[:-1]).tolist())
        for i, label in enumerate(row.tokens[1].tolist()):
            assert (label == IGNORE) == (place + i + 1 in ends)
            assert (i in starts) == (i > 0 and place + i in ends)
        assert row.num_targets == (row.tokens[1] != IGNORE).sum() > 0
        place += len(row)


@pytest.mark.parametrize("seq_len", [3, 7, 100])
def test_characters_are_those_of_the_predicted_tokens(seq_len):
    texts = ["abcdef", "gh", "abcabcabcabc"]
    rows = rows_of(texts, seq_len, LM)
    assert sum(row.num_chars for row in rows) == pytest.approx(sum(map(len, texts)), abs=1)


def test_records_predict_their_answers():
    piece = record_piece({"title": "a", "hint": "b", "input": "c", "<ans>": "xy"}, Letters())
    read = [ord("a"), 1, *map(ord, "hint: b\nc")]
    assert piece.tokens[0].tolist() == [*read, *map(ord, "xy")]
    assert piece.tokens[1].tolist() == [IGNORE] * (len(read) - 1) + [ord("x"), ord("y"), 0]
    assert (piece.num_targets, piece.num_chars) == (3, 2)


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ({"input": "a"}, "<ans>"),
        ({"input": "a", "<ans>": ""}, "<ans>"),
        ({"input": 3, "<ans>": "b"}, "record.input"),
        ({"<ans>": "b"}, "expected a record with a text"),
    ],
)
def test_records_that_cannot_be_used_are_named(record, word):
    with pytest.raises(RecordError, match=word):
        record_piece(record, Letters())


def test_columns_of_a_batch():
    rows = rows_of(["abc", "de"], 20, APART)
    piece = record_piece({"input": "a", "<ans>": "b"}, Letters())
    piece.task = TASKS.index(RECORD)
    packer = CausalPacker(4, RowShape(20, 0, 0, 20))
    rows += [*packer.add(piece), *packer.flush()]
    shape = RowShape(8, 0, 0, 6)
    columns = collate(rows, num_rows=3, shape=shape, marks=None, draws=None)
    assert columns["ids"].tolist()[1:] == [[97, 98, *[0] * 6], [0] * 8]
    assert columns["spans"].tolist()[0] == [1, 1, 1, 1, 2, 2, 0, 0]
    assert columns["positions"].tolist()[0] == [0, 1, 2, 3, 0, 1, 0, 0]
    assert columns["target_pos"].tolist()[0] == [0, 1, 2, 4, 5, 0]
    assert columns["targets"].tolist()[0] == [98, 99, 0, 101, 0, IGNORE]


def test_texts_of_shaped_lines_are_read_as_they_are(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("a < b\tyes\n", encoding="utf-8")
    shape = ShapeConfig("classification", columns=("text", "label"), answer="text",
                        labels={"yes": "a<b", "no": "x"}, show_options=False)  # fmt: skip
    source = SourceConfig(str(path), shape=shape, tasks={"record": 1.0})
    (document,) = SourceReader(source)
    drawer = CausalDrawer([source], ["data"], Letters(), RowSettings(RowShape(64, 0, 0, 64)))
    drawn = drawer(Work(0, 0, 0, document))
    wanted = record_piece({"input": "a < b", "<ans>": "a<b"}, Letters())
    assert np.array_equal(drawn.instances[0].tokens, wanted.tokens)


def test_a_declared_transform_makes_records(tmp_path):
    path = tmp_path / "poems.jsonl"
    path.write_text('{"title": "moon", "text": "a line"}\n', encoding="utf-8")
    source = SourceConfig(
        str(path), tasks={"record": 1.0}, transforms=[{"title": "$title", "<ans>": "$text"}]
    )
    (document,) = SourceReader(source)
    drawer = CausalDrawer([source], ["data"], Letters(), RowSettings(RowShape(64, 0, 0, 64)))
    drawn = drawer(Work(0, 0, 0, document))
    wanted = record_piece({"title": "moon", "<ans>": "a line"}, Letters())
    assert np.array_equal(drawn.instances[0].tokens, wanted.tokens)
