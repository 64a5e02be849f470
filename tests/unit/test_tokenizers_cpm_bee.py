"""The CPM-Bee tokenizer: agreement with a plain reading of the rules, round trips, refusals."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.errors import DataError, VocabError
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer, escape, unescape

ENTRIES = [
    *["a", "b", "ab", "abc", "bca", "cab", "abcabd", " a", " ab", "  b", "<", "<<", "<b", "a<"],
    *[">", "s>", "_", "0", "mask", "天", "天地", "地玄", "天地玄黄", "黄", "黄 a"],
]
LINES = [*SPECIALS, *ENTRIES, "<eod>"]
TOKENIZER = CpmBeeTokenizer(LINES)
ALPHABET = "abcd <>天地玄黄宇_0\n\t"
VALID = st.lists(
    st.one_of(
        st.text(ALPHABET, max_size=8).map(escape),
        st.sampled_from(["<mask>", "<mask_0>", "<ans_ab>", "<eod>", "<>>", "<a\n>", "<天>"]),
    ),
    max_size=8,
).map("".join)


def plain_split(text):
    """The two flags of the description, one character at a time."""
    parts, current, opened, inside = [], "", False, False
    for position, c in enumerate(text):
        if inside:
            if c == "<":
                raise ValueError(position)
            current += c
            if c == ">":
                parts.append((current, True))
                current, inside = "", False
        elif opened:
            opened = False
            if c == "<":
                current += c
            else:
                parts.append((current, False))
                current, inside = "<" + c, True
        elif c == "<":
            opened = True
        else:
            current += c
    if opened or inside:
        raise ValueError("end")
    return [*parts, (current, False)]


def plain_pieces(text, known):
    """Greedy longest match by trying every length; None marks an unknown run."""
    pieces, run, start = [], "", 0
    while start < len(text):
        for end in range(len(text), start, -1):
            if text[start:end] in known:
                break
        else:
            run += text[start]
            start += 1
            continue
        if run:
            pieces.append((run, True))
        run = ""
        pieces.append((text[start:end], False))
        start = end
    return [*pieces, (run, True)] if run else pieces


def plain_tokenize(text, tokenizer):
    known = set(tokenizer.id_to_token) - set(tokenizer.special_tokens)
    tokens, start = [], 0
    for part, is_tag in plain_split(text):
        pieces = [(part, False)] if is_tag else plain_pieces(part, known)
        for piece, unknown in pieces:
            tokens.append((piece, start, unknown, is_tag))
            start += len(piece)
    return tokens


@settings(max_examples=300, deadline=None)
@given(VALID)
def test_agrees_with_plain_greedy_match(text):
    assert [tuple(token) for token in TOKENIZER.tokenize(text)] == plain_tokenize(text, TOKENIZER)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abc天地 <", min_size=1, max_size=6), unique=True, max_size=25),
    st.text("abc天地 <", max_size=40),
)
def test_agrees_with_plain_greedy_match_for_any_vocabulary(entries, text):
    lines = [*SPECIALS, *(entry for entry in entries if entry != " ")]
    tokenizer = CpmBeeTokenizer(lines)
    text = escape(text)
    assert [tuple(token) for token in tokenizer.tokenize(text)] == plain_tokenize(text, tokenizer)


@settings(max_examples=300, deadline=None)
@given(st.text(ALPHABET, max_size=12))
def test_refuses_what_the_plain_split_refuses_at_the_same_place(text):
    try:
        plain_split(text)
    except ValueError as error:
        with pytest.raises(DataError) as caught:
            TOKENIZER.encode(text)
        place = error.args[0]
        start = "end of text inside" if place == "end" else f"'<' at position {place} inside"
        assert str(caught.value).startswith(start)
        assert "a literal '<' is written '<<'" in str(caught.value)
    else:
        TOKENIZER.encode(text)


@settings(max_examples=300, deadline=None)
@given(VALID, VALID)
def test_decode_returns_the_text_and_tables_chain(first, second):
    ids, table = TOKENIZER.encode(first)
    more, both = TOKENIZER.encode(second, table)
    assert TOKENIZER.decode(ids, table) == first
    assert TOKENIZER.decode(ids + more, both) == first + second
    assert len(set(both.values())) == len(both)
    assert sorted(both) == list(range(TOKENIZER.vocab_size, TOKENIZER.vocab_size + len(both)))
    assert [token.text for token in TOKENIZER.tokenize(first)] == [
        table.get(i) or TOKENIZER.id_to_token[i] for i in ids
    ]


@given(st.text())
def test_escape_makes_any_text_plain(text):
    assert unescape(escape(text)) == text
    assert not any(token.is_special for token in TOKENIZER.tokenize(escape(text)))


def test_ids_and_names():
    t = TOKENIZER
    assert (t.pad_id, t.unk_id, t.mask_id, t.newline_id, t.space_id) == (0, 1, 2, 4, 5)
    assert (t.bos_id, t.eos_id, t.vocab_size) == (6, 7, len(LINES))
    assert t.lines == LINES
    assert t.id_to_token[4:6] == ["\n", " "]
    assert t.special_tokens["<eod>"] == len(LINES) - 1
    assert "</n>" not in t.special_tokens


def test_negative_ids_are_skipped_and_foreign_ids_refused():
    assert TOKENIZER.decode([-100, 11, -1]) == "a"
    with pytest.raises(DataError, match=r"id 999 stands for no token"):
        TOKENIZER.decode([999], {998: "x"})


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match=r"half a surrogate pair, U\+D800"):
        TOKENIZER.encode("a\ud800")


def test_long_text_is_quoted_around_the_stray_mark():
    with pytest.raises(DataError) as caught:
        TOKENIZER.encode("a" * 500 + "<" + "b" * 500)
    assert len(str(caught.value)) < 250


def test_file_round_trip_keeps_every_byte(tmp_path):
    TOKENIZER.save(tmp_path)
    again = CpmBeeTokenizer.from_file(tmp_path / "vocab.txt")
    assert again.lines == TOKENIZER.lines
    assert again.fingerprint == TOKENIZER.fingerprint
    assert TOKENIZER.files() == {"vocab.txt": (tmp_path / "vocab.txt").read_bytes()}
    assert CpmBeeTokenizer([*LINES, "z"]).fingerprint != TOKENIZER.fingerprint


def test_empty_lines_are_skipped_and_last_line_feed_is_optional(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes("\n".join([*LINES[:12], "", *LINES[12:]]).encode())
    assert CpmBeeTokenizer.from_file(path).lines == LINES


def test_pickle_carries_no_automaton():
    TOKENIZER.encode("ab")
    again = pickle.loads(pickle.dumps(TOKENIZER))
    assert again.encode("abc宇<mask_3>") == TOKENIZER.encode("abc宇<mask_3>")


@pytest.mark.parametrize("missing", SPECIALS)
def test_missing_special_is_named(missing):
    with pytest.raises(VocabError, match=f"no entry {missing}$"):
        CpmBeeTokenizer([line for line in LINES if line != missing])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        ("\n".join([*LINES, "", "ab"]).encode(), rf"v.txt:{len(LINES) + 2}: .*'ab'.* on line 14$"),
        ("\n".join([*LINES, " "]).encode(), rf"v.txt:{len(LINES) + 1}: .*' '.* on line 6$"),
        ("\n".join(LINES).encode() + b"\nx\xff\n", rf"v.txt:{len(LINES) + 1}: not UTF-8"),
        ("\r\n".join(LINES).encode(), "no entry <pad>.*carriage return"),
        (b"\xef\xbb\xbf" + "\n".join(LINES).encode(), "no entry <pad>; .*byte order mark"),
    ],
)
def test_bad_file_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(VocabError, match=message) as caught:
        CpmBeeTokenizer.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(VocabError, match="no such vocabulary file"):
        CpmBeeTokenizer.from_file(tmp_path / "none.txt")
    with pytest.raises(VocabError, match="cannot be read"):
        CpmBeeTokenizer.from_file(tmp_path)


def test_entry_with_line_feed_is_refused():
    with pytest.raises(VocabError, match="holds a line feed"):
        CpmBeeTokenizer([*LINES, "a\nb"])
