"""Escaping of what people write, and the layout of dialogues."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindplm.data.cpm_bee import to_arrays
from mindplm.errors import DataError
from mindplm.text import TAGS, dialogue, escape, escape_lenient, lenient_record, unescape
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer

TOKENIZER = CpmBeeTokenizer([*SPECIALS, "<eod>", *"<>/_abcmsk01"])
PARTS = ["<", "<<", ">", "<mask_0>", "<mask>", "<s>", "<a>", "</a>", "<_mask>", "mask", "_", "a b"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PARTS)).map("".join))


def is_accepted(text: str) -> bool:
    try:
        to_arrays({"input": text, "<ans>": "a"}, TOKENIZER)
    except DataError:
        return False
    return True


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("a < b", "a << b"),
        ("a << b", "a << b"),
        ("a <<< b", "a <<<< b"),
        ("x<mask_0>y<option_12>", "x<mask_0>y<option_12>"),
        ("<sep><unk_1><ans_2><eod>", "<sep><unk_1><ans_2><eod>"),
        ("<b>bold</b>", "<<b>bold<</b>"),
        ("<<<mask_0>", "<<<mask_0>"),
        ("<a<mask_0>", "<<a<mask_0>"),
        ("<>", "<<>"),
        ("<", "<<"),
        ("</n>", "<</n>"),
        ("< mask_0>", "<< mask_0>"),
        ("<mask_0", "<<mask_0"),
        ("no tag >", "no tag >"),
        ("", ""),
    ],
)
def test_a_stray_opening_is_doubled_and_a_known_tag_is_not(given_text: str, wanted: str) -> None:
    assert escape_lenient(given_text) == wanted
    assert is_accepted(wanted)


@given(TEXTS)
def test_every_text_is_accepted_and_accepted_texts_do_not_change(text: str) -> None:
    lenient = escape_lenient(text, TOKENIZER.special_tokens)
    assert is_accepted(lenient)
    assert escape_lenient(lenient, TOKENIZER.special_tokens) == lenient
    if is_accepted(text):
        assert lenient == text


@given(TEXTS)
def test_escaped_texts_hold_no_tag_and_come_back(text: str) -> None:
    assert unescape(escape(text)) == text
    assert escape_lenient(escape(text)) == escape(text)
    assert not any(token.is_special for token in TOKENIZER.tokenize(escape(text)))


def test_known_tags_are_those_of_the_vocabulary() -> None:
    assert set(TAGS) == set(TOKENIZER.special_tokens)
    assert escape_lenient("<eod><x_1>", ["<x>"]) == "<<eod><x_1>"


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("<用户>你好<AI>", "用户： 你好\n<sep>AI："),
        (
            "<用户>你好\n<AI> 你好！\n<用户>再见<AI>",
            "用户： 你好\n<sep>AI： 你好！\n<sep>用户： 再见\n<sep>AI：",
        ),
        ("规则\n<用户>a", "规则\n<sep>用户： a"),
        ("<AI>", "AI："),
        ("<<用户>a", "<<用户>a"),
        ("<<<用户>a", "<<\n<sep>用户： a"),
        ("nothing", "nothing"),
    ],
)
def test_dialogues_take_the_form_of_the_published_checkpoints(given_text, wanted) -> None:
    assert dialogue(given_text) == wanted
    assert lenient_record({"input": given_text})["input"] == wanted


def test_a_vocabulary_with_the_markers_keeps_them() -> None:
    text = "<用户>a<AI>"
    assert lenient_record({"input": text}, [*TAGS, "<用户>", "<AI>"]) == {"input": text}


def test_records_are_copied_with_keys_and_texts_escaped() -> None:
    record = {"a<b": {"<mask_0>": "1 < 2"}, "<ans>": None, 3: ["x < y"]}
    copy = lenient_record(record)
    assert copy == {"a<<b": {"<mask_0>": "1 << 2"}, "<ans>": None, 3: ["x < y"]}
    assert record == {"a<b": {"<mask_0>": "1 < 2"}, "<ans>": None, 3: ["x < y"]}
    with pytest.raises(DataError, match="two keys.*a<<b"):
        lenient_record({"a<b": "", "a<<b": ""})
