"""Records with blanks to prompts and back."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from mindplm.data import prompts as prompting
from mindplm.data.instances import IDS, SEGMENTS
from mindplm.errors import DataError
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer

TOKENIZER = CpmBeeTokenizer([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz"])
RECORD = {
    "input": "ab<mask_0>c<mask_1>\u30ab",
    "options": {"<option_5>": "x", "<option_2>": "y"},
    "<ans>": {"<mask_1>": "old", "deep": {"er": "", "empty": {}}, "last": None},
}


def prepare(record):
    return prompting.prepare(record, TOKENIZER)


def batch(*records, bucket=80, max_rel=400, max_ext=6):
    return prompting.batch(
        [prepare(record) for record in records],
        TOKENIZER,
        bucket=bucket,
        max_rel=max_rel,
        max_ext=max_ext,
    )


def test_blanks_are_the_leaves_of_the_answer_in_order() -> None:
    prompt = prepare(RECORD)
    assert [b.path for b in prompt.blanks] == [("<mask_1>",), ("deep", "er"), ("last",)]
    assert [b.number for b in prompt.blanks] == [1, 2, 3]
    for blank in prompt.blanks:
        assert blank.segment not in prompt.tokens[SEGMENTS]
    assert len(prompt.rel) == prompt.num_segments**2


def test_texts_under_the_answer_do_not_matter() -> None:
    other = copy.deepcopy(RECORD)
    other["<ans>"]["<mask_1>"] = "something else"
    for name in ("tokens", "rel"):
        np.testing.assert_array_equal(getattr(prepare(other), name), getattr(prepare(RECORD), name))
    assert prepare(other).blanks == prepare(RECORD).blanks


def test_answers_go_to_their_places_in_a_copy() -> None:
    record = copy.deepcopy(RECORD)
    filled = prompting.write_back(record, prepare(record), ["one", "two", None])
    assert record == RECORD
    assert filled["<ans>"] == {"<mask_1>": "one", "deep": {"er": "two", "empty": {}}, "last": None}
    assert {**filled, "<ans>": 0} == {**RECORD, "<ans>": 0}
    assert filled["options"] is not record["options"]


def test_a_plain_text_is_continued() -> None:
    record = prompting.as_record("ab")
    assert record == {"input": "ab", "<ans>": ""}
    assert prompting.write_back(record, prepare(record), ["c"]) == {"input": "ab", "<ans>": "c"}


def test_padding_is_on_the_left_and_counts_no_segments() -> None:
    both = batch(RECORD, {"input": "ab", "<ans>": ""})
    counts = both.columns["num_segments"]
    for i, record in enumerate((RECORD, {"input": "ab", "<ans>": ""})):
        prompt = prepare(record)
        real = len(prompt) + 1
        assert (counts[i] != 0).tolist() == [False] * (80 - real) + [True] * real
        np.testing.assert_array_equal(both.columns["ids"][i, 80 - real : -1], prompt.tokens[IDS])
        assert both.columns["context"][i, -1] == 0
        assert both.columns["ids"][i, -1] == TOKENIZER.bos_id
    assert all(array.dtype == np.int32 for array in both.columns.values())
    assert tuple(both.columns) == prompting.COLUMNS


def test_records_share_classes_but_not_permissions() -> None:
    other = {"input": "<mask_7><mask_3><mask_9>", "<ans>": ""}
    both = batch(RECORD, other)
    first = TOKENIZER.vocab_size
    assert both.tables[0] == {
        TOKENIZER.mask_id: "<mask_0>",
        TOKENIZER.unk_id: "\u30ab",
        TOKENIZER.token_to_id["<option>"]: "<option_5>",
        first: "<mask_1>",
        first + 1: "<option_2>",
    }
    assert both.tables[1] == {
        TOKENIZER.mask_id: "<mask_7>",
        first: "<mask_3>",
        first + 2: "<mask_9>",
    }
    assert both.num_ext == prompting.num_ext([prepare(RECORD), prepare(other)]) == 3
    assert both.columns["ext_sub"].tolist() == [1, 1, 2, 0, 0, 0]
    assert both.allowed_ext[:, :3].tolist() == [[True, True, False], [True, False, True]]


def test_answers_are_decoded_blank_by_blank() -> None:
    prompt = prepare(RECORD)
    table = batch(RECORD).tables[0]
    letter, eos = TOKENIZER.token_to_id["a"], TOKENIZER.eos_id
    pairs = [(letter, 1), (TOKENIZER.vocab_size, 1), (eos, 1), (TOKENIZER.unk_id, 2)]
    texts = prompting.answers(pairs, prompt, table, TOKENIZER)
    assert texts == ["a<mask_1>", "\u30ab", None]
    assert prompting.answers([(eos, 1)], prompt, table, TOKENIZER) == ["", None, None]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"input": "x"}, ['no key "<ans>"', "input"]),
        ({}, ['no key "<ans>"', "none"]),
        ({"input": "x", "<ans>": {}}, ["record.<ans>", "no text to write"]),
        ({"input": "x", "<ans>": {"a": {}}}, ["record.<ans>", "no text to write"]),
        ({"input": "x", "<ans>": {"a": 3}}, ["record.<ans>.a", "int 3"]),
        ({"input": "x", "<ans>": ["a"]}, ["record.<ans>", "list"]),
        ({"input": ["x"], "<ans>": ""}, ["record.input", "list"]),
        ({"input": "x < y", "<ans>": ""}, ["record.input"]),
        ({"input": "<blank_1>", "<ans>": ""}, ["record.input", "<blank_1>"]),
        (["x"], ["a record", "list"]),
    ],
)
def test_what_cannot_be_asked_is_named(record, words) -> None:
    with pytest.raises(DataError) as error:
        prepare(record)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("room", "words"),
    [
        ({"bucket": 20}, "69 tokens with its begin mark, there is room for 20"),
        ({"max_rel": 9}, "pairs of segments, there is room for 9"),
        ({"max_ext": 1}, "2 indexed tokens, there is room for 1"),
    ],
)
def test_what_does_not_fit_is_counted(room, words) -> None:
    with pytest.raises(DataError, match=words):
        batch(RECORD, **room)


def test_a_prompt_is_a_text_or_a_record() -> None:
    with pytest.raises(DataError, match="got int 3"):
        prompting.as_record(3)
