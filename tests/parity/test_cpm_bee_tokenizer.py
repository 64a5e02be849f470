"""The CPM-Bee tokenizer against the original's, on the published vocabulary: exact."""

from __future__ import annotations

import json
import re

import pytest
from conftest import GOLDEN, SHARED_DATA

from mindplm.errors import DataError
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer, escape, unescape

FILE = GOLDEN / "cpm_bee" / "tokenizer.json"
VOCAB = SHARED_DATA / "cpm_bee" / "bee.txt" if SHARED_DATA else None
if not FILE.is_file() or VOCAB is None or not VOCAB.is_file():
    pytest.skip("golden tokenizer cases or vocabulary not found", allow_module_level=True)

GOLD = json.loads(FILE.read_text("utf-8"))
GOOD = [case for case in GOLD["cases"] if "error" not in case]
BAD = [case for case in GOLD["cases"] if "error" in case]


@pytest.fixture(scope="module")
def tokenizer():
    return CpmBeeTokenizer.from_file(VOCAB)


def read_table(table):
    return {int(i): text for i, text in table.items()}


def test_vocabulary(tokenizer):
    assert tokenizer.vocab_size == GOLD["vocab_size"]
    assert tokenizer.special_tokens == GOLD["special_tokens"]
    assert max(map(len, tokenizer.id_to_token)) == GOLD["max_word_len"]
    for ours, theirs in [
        ("bos_id", "bos"), ("eos_id", "eos"), ("unk_id", "unk"), ("mask_id", "mask"),
        ("newline_id", "newline_id"), ("space_id", "space_id"),
    ]:  # fmt: skip
        assert getattr(tokenizer, ours) == GOLD[theirs]


@pytest.mark.parametrize("case", GOOD, ids=range(len(GOOD)))
def test_case(tokenizer, case):
    text = case["text"]
    tokens = [[t.text, t.start, int(t.is_unknown), int(t.is_special)]
              for t in tokenizer.tokenize(text)]  # fmt: skip
    assert tokens == case["tokens"]
    ids, table = tokenizer.encode(text)
    assert ids == case["ids"]
    assert table == read_table(case["ext_table"])
    assert tokenizer.decode(ids, table) == case["decoded"]
    assert escape(text) == case["escaped"]
    assert unescape(text) == case["unescaped"]
    if "decoded_without_ext" in case:
        assert tokenizer.decode(ids) == case["decoded_without_ext"]
    else:
        with pytest.raises(DataError, match="stands for no token"):
            tokenizer.decode(ids)


@pytest.mark.parametrize("case", BAD, ids=range(len(BAD)))
def test_refused_case(tokenizer, case):
    with pytest.raises(DataError) as caught:
        tokenizer.encode(case["text"])
    message = str(caught.value)
    inside = re.fullmatch(r"Invalid special token at pos (\d+)", case["message"])
    if inside:
        assert message.startswith(f"'<' at position {inside[1]} inside the tag")
    else:
        assert case["message"].startswith("Unexpected end of text")
        assert message.startswith("end of text inside the tag")
        assert repr(case["text"]) in message
    assert "a literal '<' is written '<<'" in message
    with pytest.raises(DataError):
        tokenizer.tokenize(case["text"])
    ids, table = tokenizer.encode(case["escaped"])
    assert ids == case["escaped_ids"]
    assert table == read_table(case["escaped_ext_table"])
    assert tokenizer.decode(ids, table) == case["escaped_decoded"]


@pytest.mark.parametrize("chain", GOLD["chained"], ids=range(len(GOLD["chained"])))
def test_table_is_handed_on(tokenizer, chain):
    table: dict = {}
    for link in chain:
        before = dict(table)
        ids, after = tokenizer.encode(link["text"], table)
        assert table == before, "the table given is not changed"
        assert ids == link["ids"]
        assert after == read_table(link["ext_table_after"])
        table = after
