"""SentencePiece models of CPM-1's kind: made from texts, and the one that ships."""

from __future__ import annotations

from unicodedata import normalize

import pytest

from mindplm import assets
from mindplm.errors import VocabError
from mindplm.tokenizers.pieces_vocab import build
from mindplm.tokenizers.sentencepieces import NEWLINE, SPACE, Cpm1Tokenizer

TEXTS = [
    "话说天下大势，分久必合，合久必分。",
    "周末七国分争，并入于秦。\n及秦灭之后，楚、汉分争。",
] * 9
SIZE = 40


def test_the_same_texts_give_the_same_model() -> None:
    made = build(TEXTS, SIZE)
    assert made.vocab_size == SIZE
    assert made.pieces.data == build(TEXTS, SIZE).pieces.data


def test_texts_are_had_back_and_no_mark_comes_out_of_a_text() -> None:
    made = build(TEXTS, SIZE)
    for text in TEXTS[:2]:
        ids = made.encode(text)
        assert made.decode(ids) == normalize("NFKC", text)
        assert not set(ids) & {made.unk_id, made.sep_id, made.pad_id, made.mask_id, made.eos_id}


@pytest.mark.parametrize("size", [5, 10_000])
def test_a_size_that_the_texts_do_not_give_is_refused(size: int) -> None:
    with pytest.raises(VocabError, match=f"no model of {size} pieces"):
        build(TEXTS, size)


def test_the_model_that_ships() -> None:
    model = Cpm1Tokenizer.from_file(assets.path("pieces_chinese.model"))
    assert model.vocab_size == 8000
    text = "话说天下大势，分久必合\n合久必分 。"
    ids = model.encode(text)
    assert model.decode(ids) == normalize("NFKC", text)
    assert {SPACE, NEWLINE} <= {model.pieces.model.id_to_piece(token) for token in ids}
