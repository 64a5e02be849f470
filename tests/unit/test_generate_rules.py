"""Rules beyond the original's: limits of blanks, stop strings, penalties, cuts, several results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from table_network import BOS, EOS, UNK, VOCAB, Table, drive, plan_of

from mindplm.errors import ConfigError
from mindplm.generate.copying import Copied, Copying, texts_of
from mindplm.generate.rows import Extras, Rows
from mindplm.generate.sampling import Sampler, nucleus
from mindplm.generate.search import BeamSearch

BLANKS = [[(1, 1)], [(2, 1), (3, 2)], [(0, 1), (1, 2), (2, 3)]]
LETTERS = "0123456789ABCD"
SHOWN = ("23 52C", "3D8")
EXTRAS = [
    Extras(copied=Copied([SHOWN] * 3, "4")),
    Extras(copied=Copied([SHOWN] * 3, ""), per_blank=True, stop=("52",)),
    Extras(per_blank=True),
    Extras(min_new_tokens=3),
    Extras(penalize_written=True),
    Extras(stop=("34", "5")),
    Extras(bad_words=("34", "5", "272")),
    Extras(per_blank=True, stop=("2",), min_new_tokens=2, penalize_written=True),
]


def plan(*blanks):
    return replace(plan_of(*blanks), piece=lambda _, token: LETTERS[token])


def policy(made, kind: str, extras: Extras, limit: int = 6, penalty: float = 1.3):
    options = {"max_new_tokens": limit, "repetition_penalty": penalty, "extras": extras}
    if kind == "beams":
        return BeamSearch(made, beams=3, **options)
    if kind == "one beam":
        return BeamSearch(made, beams=1, **options)
    temperature = 0 if kind == "greedy" else 1.0
    return Sampler(made, range(len(made.blanks)), temperature=temperature, **options)


def by_blank(pairs) -> dict[int, list[int]]:
    texts: dict[int, list[int]] = {}
    for token, number in pairs:
        texts.setdefault(number, []).append(token)
    return texts


KINDS = pytest.mark.parametrize("kind", ["greedy", "sample", "beams"])


@KINDS
@pytest.mark.parametrize("extras", EXTRAS)
def test_a_batch_writes_what_its_sentences_write_alone(kind, extras) -> None:
    for seed in range(4):
        together = drive(policy(plan(*BLANKS), kind, extras), Table(seed))
        for i, one in enumerate(BLANKS):
            alone = policy(plan(one), kind, extras)
            if kind == "sample":
                alone = Sampler(
                    plan(one), [i], max_new_tokens=6, repetition_penalty=1.3, extras=extras
                )
            assert drive(alone, Table(seed)) == [together[i]]


@pytest.mark.parametrize("extras", EXTRAS)
def test_one_beam_is_the_greedy_choice(extras) -> None:
    for seed in range(6):
        beam = drive(policy(plan(*BLANKS), "one beam", extras), Table(seed))
        assert beam == drive(policy(plan(*BLANKS), "greedy", extras), Table(seed))


@KINDS
@pytest.mark.parametrize("limit", [1, 3])
def test_each_blank_has_its_own_limit(kind, limit) -> None:
    never_ends = Table(0, used=(2, 3, 5))
    for pairs, blanks in zip(
        drive(policy(plan(*BLANKS), kind, Extras(per_blank=True), limit), never_ends), BLANKS
    ):
        texts = by_blank(pairs)
        assert list(texts) == [number for _, number in blanks]
        assert {len(text) for text in texts.values()} == {limit}


@KINDS
def test_no_blank_ends_before_its_least_length(kind) -> None:
    for seed in range(6):
        made = policy(plan(*BLANKS), kind, Extras(min_new_tokens=3), 20)
        for pairs in drive(made, Table(seed)):
            for text in by_blank(pairs).values():
                assert EOS not in text[:3]


@KINDS
def test_a_stop_string_closes_its_blank_across_tokens(kind) -> None:
    closed = 0
    for seed in range(12):
        made = policy(plan(*BLANKS), kind, Extras(stop=("35", "232")), 20, 1.0)
        for pairs in drive(made, Table(seed, used=(2, 3, 5))):
            for number, text in by_blank(pairs).items():
                shown = "".join(LETTERS[token] for token in text)
                last = number == pairs[-1][1]
                assert not any(word in shown[:-1] for word in ("35", "232"))
                assert last or shown.endswith(("35", "232"))
                closed += shown.endswith(("35", "232"))
    assert closed > 6


@KINDS
def test_no_blank_holds_a_bad_word(kind) -> None:
    words, met = ("35", "2 32", "A"), 0
    for seed in range(12):
        table = Table(seed, used=(2, 3, 5, VOCAB + 1))
        for extras in (Extras(), Extras(bad_words=words)):
            for pairs in drive(policy(plan(*BLANKS), kind, extras, 20, 1.0), table):
                shown = ["".join(LETTERS[t] for t in ids) for ids in by_blank(pairs).values()]
                found = sum(word.replace(" ", "") in text for word in words for text in shown)
                met += found
                assert not (extras.bad_words and found)
    assert met > 12


def test_bad_words_ask_for_the_text_of_own_classes_only() -> None:
    own = [{VOCAB: "xy"}, {VOCAB + 1: "y"}]
    made = replace(
        plan_of([(0, 1)], [(0, 1)], allowed=[[True, False], [False, True]]),
        piece=lambda sentence, token: own[sentence].get(token) or LETTERS[:VOCAB][token],
    )
    rows = Rows(made, 1, 9, Extras(bad_words=("y", "3")))
    forbidden = rows.scores(np.ones((2, VOCAB + 2), np.float32), 1.0, 0) < 0
    assert [np.flatnonzero(row).tolist() for row in forbidden] == [[UNK, 3, VOCAB, VOCAB + 1]] * 2


@KINDS
@pytest.mark.parametrize("joiner", ["4", ""])
def test_a_blank_holds_nothing_but_stretches_of_its_own_texts(kind, joiner) -> None:
    shown = [("23 52C", "3D8"), ("AAB",), ("9", "82")]
    copied, several, foreign = Extras(copied=Copied(shown, joiner)), 0, 0
    for seed in range(20):
        for extras in (Extras(), copied):
            for texts, pairs in zip(shown, drive(policy(plan(*BLANKS), kind, extras), Table(seed))):
                for ids in by_blank(pairs).values():
                    text = "".join(LETTERS[token] for token in ids if token != EOS)
                    parts = text.removesuffix(joiner).split(joiner) if joiner else [text]
                    strange = [x for x in parts if all(x not in t.replace(" ", "") for t in texts)]
                    assert not (extras.copied and (strange or "" in parts[1:]))
                    several += bool(extras.copied) and len(parts) > 1
                    foreign += len(strange)
    assert foreign > 50 and bool(several) == bool(joiner)


def test_what_may_follow_a_stretch() -> None:
    """Tokens of several characters, spaces, several texts, and what only one record has."""
    pieces = ["<s>", "</s>", "<unk>", "a", "ab", "B", "，", "；", " ", "c d", "b；", "\n"]
    own = {0: {2: "字", 12: "语"}, 1: {13: "b"}}
    made = replace(
        plan_of([(0, 1)], [(0, 1)], allowed=[[True, False], [False, True]]),
        **{"bos_id": 0, "eos_id": 1, "unk_id": 2, "newline_id": 11, "vocab_size": 12},
        allowed_unk=np.array([True, False]),
        piece=lambda sentence, token: own[sentence].get(token) or pieces[token],
    )
    record = {"input": "a B，字语 acd", "more": {"x": "a<<x"}, "<ans>": {"x": "ab"}}
    assert texts_of(record) == ["a B，字语 acd", "a<<x", "a<x"]
    copying = Copying(made, Copied([texts_of(record), ["ab,"]], "；"))

    def after(said: str, sentence: int = 0) -> str:
        texts = [own[sentence].get(i) or pieces[i] for i in copying.allowed(sentence, said)]
        return "|".join(sorted(texts))

    assert after("") == "</s>|B|a|c d|字|语|，"
    assert after("a；") == "B|a|c d|字|语|，"
    assert after("a") == "\n| |</s>|B|c d|；"
    assert after("x；a ") == "</s>|B|c d|；"
    assert after("aB") == after("a B") == "</s>|，|；"
    assert after("aB，字") == "</s>|语|；"
    assert after("ab") == "</s>|；"
    assert after("a", 1) == "</s>|b|；"
    assert after("zz；") == "B|a|c d|字|语|，"
    assert Copying(made, Copied([[], []], "；")).allowed(0, "").tolist() == [1]


def test_a_vocabulary_without_capitals_copies_them_in_its_own_form() -> None:
    pieces = ["</s>", "ab", "c", ","]
    made = replace(
        plan_of([(0, 1)], ext=()),
        **{"bos_id": -1, "eos_id": 0, "unk_id": -1, "vocab_size": 4},
        piece=lambda _, token: pieces[token],
    )
    copying = Copying(made, Copied([["AB，ｃ"]], "；"))
    assert sorted(copying.allowed(0, "")) == [0, 1, 2, 3]
    assert sorted(copying.allowed(0, "ab")) == [0, 3]
    assert sorted(copying.allowed(0, "ab,")) == [0, 2]


def test_the_corrected_penalty_falls_on_what_was_written() -> None:
    """An appended class by itself, not its base; no begin mark, and no end mark."""
    rows = Rows(plan([(1, 1), (2, 2)]), 1, 9, Extras(penalize_written=True))
    logits = np.ones((1, VOCAB + 2), np.float32)
    for token in (5, VOCAB + 1, EOS, 3):
        rows.scores(logits, 2.0, 0)
        rows.write(0, token)
    everything = rows.scores(logits, 2.0, 0)[0]
    assert np.flatnonzero(everything == 0.5).tolist() == [3, 5, VOCAB + 1]
    rows.num_fed -= 1
    window = rows.scores(logits, 2.0, 2)[0]
    assert np.flatnonzero(window == 0.5).tolist() == [3]
    plain = Rows(plan([(1, 1)]), 1, 9)
    plain.scores(logits, 2.0, 0)
    plain.write(0, VOCAB + 1)
    assert np.flatnonzero(plain.scores(logits, 2.0, 0)[0] == 0.5).tolist() == [BOS, 10]


def test_min_p_keeps_what_is_likely_beside_the_best() -> None:
    scores = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    for min_p, wanted in [(0.0, 4), (0.3, 3), (0.6, 2), (0.9, 1), (1.0, 1)]:
        assert len(nucleus(scores, 0, 1.0, min_p)[0]) == wanted
    assert nucleus(scores, 2, 1.0, 0.1)[0].tolist() == [1, 3]
    assert nucleus(scores, 0, 0.5, 0.6)[0].tolist() == [1, 3]


@pytest.mark.parametrize("extras", [Extras(), Extras(per_blank=True, stop=("3",))])
def test_ranked_results_differ_and_begin_with_the_best(extras) -> None:
    for seed in range(5):
        search = policy(plan(*BLANKS), "beams", extras)
        for sentence, best in enumerate(drive(search, Table(seed))):
            ranked = search.ranked(sentence)
            assert ranked[0] == best
            assert 1 < len(ranked) <= 3
            assert len({tuple(pairs) for pairs in ranked}) == len(ranked)


@KINDS
@pytest.mark.parametrize("extras", [Extras(), *EXTRAS])
def test_what_is_certain_stays(kind, extras) -> None:
    for seed in range(4):
        made, table = policy(plan(*BLANKS), kind, extras), Table(seed)
        seen: list[list] = [[] for _ in BLANKS]
        going = True
        while going:
            going = made.advance(table(made.feed())) is not None
            for sentence in range(len(BLANKS)):
                seen[sentence].append(list(made.certain(sentence)))
        for sentence, whole in enumerate(made.results()):
            for part in seen[sentence]:
                assert whole[: len(part)] == part


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"stop": ("a", "")}, "stop="),
        ({"stop": "ab"}, "stop="),
    ],
)
def test_rules_that_make_no_sense_are_refused(options, word) -> None:
    with pytest.raises(ConfigError, match=word):
        Extras(**options)
