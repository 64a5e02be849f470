"""GPT-1's normalisation, words and byte pairs against the original's, stage by stage."""

from __future__ import annotations

import importlib.util
import json

import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.tokenizers import words
from mindplm.tokenizers.bpe import SPECIALS, BpeTokenizer

FILES = golden_dirs("gpt1", "tokenization*.json")
WORD_FILES = golden_dirs("gpt1", "bpe_words*.json")
FOLDER = SHARED_DATA / "gpt1" if SHARED_DATA else None
if FOLDER is None or not FOLDER.is_dir():
    pytest.skip("no folder data/gpt1 with the vocabulary", allow_module_level=True)
RULES = all(importlib.util.find_spec(name) for name in ("ftfy", "spacy"))
NEEDS_RULES = pytest.mark.skipif(not RULES, reason="needs the packages ftfy and spacy")


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return BpeTokenizer.from_file(FOLDER)


def items(path):
    return json.loads(path.read_text(encoding="utf-8"))["items"]


@pytest.mark.parametrize("path", WORD_FILES, ids=lambda p: p.stem)
def test_pieces_of_words(path, tokenizer):
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert cases
    for case in cases:
        assert list(tokenizer.cut(case["word"])) == case["bpe"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_stage_from_the_words_on(path, tokenizer):
    for item in items(path):
        assert words.standardise(item["fixed"]) == item["standardized"]
        pieces = [list(tokenizer.cut(word.lower())) for word in item["words"]]
        assert pieces == item["pieces"]
        ids = [tokenizer.pieces.get(p, tokenizer.unk_id) for word in pieces for p in word]
        assert ids == item["ids"]
        assert tokenizer.decode(item["ids"]) == item["decoded"]


@NEEDS_RULES
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_whole_texts(path, tokenizer):
    for item in items(path):
        assert words.fix(item["text"]) == item["fixed"]
        assert words.english_words(item["standardized"]) == item["words"]
        assert tokenizer.encode(item["text"]) == item["ids"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_basic_words_of_the_hf_port(path):
    basic = BpeTokenizer.from_file(FOLDER, "basic")
    for item in items(path):
        assert words.basic_words(item["text"]) == item["basic_words"]
        ids = basic.encode(item["text"])
        assert ids == item["basic_ids"]
        assert [basic.by_id[i] for i in ids if i] == [
            p for p in item["basic_pieces"] if p in basic.pieces and p != "<unk>"
        ]
        assert basic.decode(ids) == item["basic_decoded"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_sizes_and_special_ids(path, tokenizer):
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert (tokenizer.vocab_size, tokenizer.unk_id) == (golden["n_vocab"], golden["unk_id"])
    assert {n: tokenizer.with_specials().pieces[n] for n in SPECIALS} == golden["special"]


def test_files_give_the_same_tokenizer(tokenizer, tmp_path):
    larger = tokenizer.with_specials()
    for name, data in larger.files().items():
        (tmp_path / name).write_bytes(data)
    again = BpeTokenizer.from_file(tmp_path)
    assert (again.pieces, again.merges, again.form) == (larger.pieces, larger.merges, "rules")
    assert again.fingerprint == larger.fingerprint != tokenizer.fingerprint
