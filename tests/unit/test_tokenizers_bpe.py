"""Byte-pair vocabularies of one's own: nothing is lost, merges are those of their frequency."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.errors import DataError, VocabError
from mindplm.tokenizers.bpe import BpeTokenizer
from mindplm.tokenizers.bpe_vocab import HEAD, build
from mindplm.tokenizers.words import split

TEXTS = ["low lower lowest", "new newer newest wide", "the widest  river\n\nflows; 12 times_"] * 3
TOKENIZER = build(TEXTS, 160)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]) | st.just("\n")))
def test_the_exact_form_loses_nothing(text):
    assert "".join(split(text, "exact")) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_the_exact_form_keeps_every_character():
    text = "naïve — café\t“中文” １２ x²_ \r\n é\u0301🙂"
    assert "".join(split(text, "exact")) == text


def test_frequent_pairs_become_pieces():
    assert TOKENIZER.vocab_size <= 160
    assert TOKENIZER.by_id[: len(HEAD)] == list(HEAD)
    assert len(TOKENIZER.encode("newest lowest")) <= 4
    first = TOKENIZER.merges[0]
    words = [word for text in TEXTS for word in split(text + "\n", "exact")]
    best = max("".join(words).count("".join(pair)) for pair in TOKENIZER.merges)
    assert sum(word.count("".join(first)) for word in words) == best


def test_merges_follow_the_plain_algorithm():
    """The same as counting everything anew after each merge."""
    from collections import Counter

    counts = Counter(word for text in TEXTS for word in split(text + "\n", "exact"))
    words = {word: list(word) for word in counts}
    for pair in TOKENIZER.merges:
        totals: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for both in zip(parts, parts[1:]):
                totals[both] += counts[word]
        most = max(totals.values())
        assert totals[pair] == most and pair == min(p for p, n in totals.items() if n == most)
        fused = BpeTokenizer({}, [pair], "exact")
        words = {word: _again(parts, pair) for word, parts in words.items()}
        assert fused.vocab_size == 0


def _again(parts, pair):
    made, i = [], 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            made.append("".join(pair))
            i += 2
        else:
            made.append(parts[i])
            i += 1
    return made


def test_it_is_deterministic_and_survives_files_and_processes(tmp_path):
    for name, data in TOKENIZER.files().items():
        (tmp_path / name).write_bytes(data)
    assert build(TEXTS, 160).files() == TOKENIZER.files()
    again = BpeTokenizer.from_file(tmp_path / "bpe.json")
    assert again.files() == TOKENIZER.files()
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode("a river") == TOKENIZER.encode("a river")
    assert (again.unk_id, again.eos_id) == (0, 1)


def test_marks_are_no_text():
    ids = [TOKENIZER.eos_id, *TOKENIZER.encode("low"), TOKENIZER.specials["_start_"]]
    assert TOKENIZER.decode(ids) == "low"
    assert TOKENIZER.encode("中") == [TOKENIZER.unk_id]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[1]", "mapping"),
        ("{", "not a JSON"),
        (json.dumps({"a": 5}), "expected 0 to 0"),
        (json.dumps({"words": "odd", "pieces": ["a"], "merges": []}), "words='odd'"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, word):
    path = tmp_path / "bpe.json"
    path.write_text(content)
    (tmp_path / "merges.txt").write_text("#v\n")
    with pytest.raises(VocabError, match=word):
        BpeTokenizer.from_file(path)


def test_what_cannot_be_built_is_told():
    with pytest.raises(VocabError, match="size=50"):
        build(TEXTS, 50)
    with pytest.raises(DataError, match="no text"):
        build([" \n"], 500)
