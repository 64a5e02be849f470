"""WordPiece and masking against the original's ids, draws, words and selections."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.data import masking
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

TOKENIZATIONS = [
    path for family in ("bert_mlm", "cpt") for path in golden_dirs(family, "tokenization*.json")
]
VOCAB = SHARED_DATA / "bert" / "vocab.txt" if SHARED_DATA else Path("nowhere")
pytestmark = pytest.mark.skipif(
    not (TOKENIZATIONS and VOCAB.is_file()),
    reason="needs a golden set with bert_mlm or cpt, and its vocabulary data/bert/vocab.txt",
)


@cache
def tokenizer(lower: bool = True) -> WordPieceTokenizer:
    plain = WordPieceTokenizer.from_file(VOCAB)
    return plain if lower else WordPieceTokenizer(plain.lines, lower=False)


def read(name: str) -> Any:
    (path,) = golden_dirs("bert_mlm", name)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TOKENIZATIONS, ids=lambda path: path.parent.name)
def test_texts_have_the_same_pieces_ids_and_decoded_texts(path):
    golden = json.loads(path.read_text(encoding="utf-8"))
    for item in golden["items"]:
        text, own = item["text"], tokenizer(golden["do_lower_case"])
        assert own.tokenize(text) == item["tokens"], text
        assert own.encode(text)[0] == item["ids"], text
        assert own.decode(item["ids"]) == item["decoded"], text
        plain = own.decode(item["ids"], skip_special=True)
        assert plain == item["decoded_skip_special"], text
        assert own.size(text) == len(item["tokens"])


@pytest.mark.parametrize("path", TOKENIZATIONS, ids=lambda path: path.parent.name)
def test_pairs_are_cut_and_typed_the_same(path):
    for pair in json.loads(path.read_text(encoding="utf-8"))["pairs"]:
        most = pair["max_length"]
        ids, types = tokenizer().encode(pair["a"], pair["b"], max_len=most)
        room = most - len(ids)
        assert ids + [0] * room == pair["input_ids"]
        assert types + [0] * room == pair["token_type_ids"]
        assert [1] * len(ids) + [0] * room == pair["attention_mask"]


@pytest.mark.parametrize("path", TOKENIZATIONS, ids=lambda path: path.parent.name)
def test_cased_texts_have_the_same_pieces(path):
    for item in json.loads(path.read_text(encoding="utf-8"))["cased_items"]:
        assert tokenizer(lower=False).tokenize(item["text"]) == item["tokens"], item["text"]


def test_chinese_words_marks_and_groups_are_the_same():
    for item in read("chinese_wwm_groups.json"):
        text = item["text"]
        pieces = tokenizer().encode_pieces(text)[1]
        assert pieces == item["tokens"]
        assert masking.jieba_words(text) == item["jieba"]
        marked = masking.mark_words(pieces, masking.chinese_words(text))
        assert marked == item["marked"], text
        assert masking.reference(marked) == item["ref_positions"], text
        assert masking.groups_of(masking.group_marks(marked)) == item["groups"], text


def test_budget_and_selection_are_the_same():
    groups = {item["text"]: item["groups"] for item in read("chinese_wwm_groups.json")}
    for item in read("chinese_wwm_selection.json"):
        room = masking.budget(item["num_tokens"])
        assert room == item["budget"]
        chosen = masking.select(groups[item["text"]], item["order"], room)
        assert chosen == item["selected"], item["text"]


def test_the_draws_of_the_small_project_give_its_masks():
    golden = read("masking_draws.json")
    special, mask_id = golden["special_ids_never_masked"], golden["mask_id"]
    for item in golden["items"]:
        draws = iter(item["draws"])

        def uniform(draws=draws) -> float:
            kind, value = next(draws)
            assert kind == "random"
            return value

        def any_id(draws=draws) -> int:
            kind, low, high, value = next(draws)
            assert (kind, low, high) == ("randint", 0, golden["vocab_size"] - 1)
            return value

        ids = item["input_ids"]
        if item["mode"] == "token":
            found = masking.mask_tokens_once(ids, special, mask_id, uniform, any_id)
        else:
            goes_on = [tokenizer().lines[i].startswith("##") for i in ids]
            found = masking.mask_words_once(ids, goes_on, special, mask_id, uniform, any_id)
        assert found == item["masked_ids"], item["text"]
        assert next(draws, None) is None, "draws are left over"
