"""The beam search against brute force, and its parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_network import BOS, EOS, UNK, VOCAB, Table, drive, plan_of

from mindplm.errors import ConfigError
from mindplm.generate.rows import FORBIDDEN, Feed, Rows
from mindplm.generate.sampling import Sampler
from mindplm.generate.search import BeamSearch, best_of, log_softmax

USED = (2, 3, 5, EOS)


def brute_force(table: Table, blanks, length: int, exponent: float) -> list[tuple[int, int]]:
    """The best of all sequences that end with the last blank or at the length limit."""
    best = (-np.inf, [])
    for size in range(1, length + 1):
        for tokens in itertools.product(USED, repeat=size):
            total, pairs = 0.0, []
            last, position, blank, over = BOS, 0, 0, False
            for token in tokens:
                if over:
                    break
                one = np.array([0])
                feed = Feed(one + last, one, one + blanks[blank][0], one + position)
                total += log_softmax(table(feed).astype(np.float64))[0, token]
                pairs.append((token, blanks[blank][1]))
                last, position = token, position + 1
                if token == EOS:
                    blank, last, position = blank + 1, BOS, 0
                    over = blank == len(blanks)
            if len(pairs) == size and (over or size == length):
                best = max(best, (total / size**exponent, pairs))
    return best[1]


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("blanks", [[(1, 1)], [(1, 1), (3, 2)], [(0, 1), (2, 2), (3, 3)]])
def test_a_search_wide_enough_finds_the_best_sequence(blanks, exponent) -> None:
    for seed in range(4):
        table = Table(seed, used=USED)
        search = BeamSearch(plan_of(blanks), beams=200, max_new_tokens=4, length_penalty=exponent)
        assert drive(search, table) == [brute_force(table, blanks, 4, exponent)]


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_a_batch_writes_what_its_sentences_write_alone(beams, penalty) -> None:
    blanks = [[(1, 1)], [(2, 1), (3, 2)], [(0, 1), (1, 2), (2, 3)]]
    allowed = [[True, False], [False, False], [True, True]]
    unk = [True, False, False]
    options = {"beams": beams, "max_new_tokens": 9, "repetition_penalty": penalty}
    for seed in range(5):
        together = drive(
            BeamSearch(plan_of(*blanks, allowed=allowed, unk=unk), **options), Table(seed)
        )
        for i, one in enumerate(blanks):
            plan = plan_of(one, allowed=[allowed[i]], unk=[unk[i]])
            assert drive(BeamSearch(plan, **options), Table(seed)) == [together[i]]


@pytest.mark.parametrize("window", [0, 3])
def test_one_beam_is_the_greedy_choice(window) -> None:
    plan = plan_of([(1, 1)], [(2, 1), (3, 2)])
    options = {"max_new_tokens": 8, "repetition_penalty": 1.3, "repetition_window": window}
    for seed in range(10):
        search = drive(BeamSearch(plan, beams=1, **options), Table(seed))
        assert search == drive(Sampler(plan, temperature=0, **options), Table(seed))


def test_no_more_is_written_than_allowed() -> None:
    table = Table(0, used=(2, 3))
    for limit in (1, 2, 5):
        plan = plan_of([(1, 1), (2, 2)])
        for policy in (
            BeamSearch(plan, beams=2, max_new_tokens=limit),
            Sampler(plan, temperature=0, max_new_tokens=limit),
        ):
            pairs = drive(policy, table)[0]
            assert len(pairs) == limit
            assert {number for _, number in pairs} == {1}


def test_the_end_of_a_blank_opens_the_next() -> None:
    plan = plan_of([(3, 1), (1, 2)])
    search = BeamSearch(plan, beams=1, max_new_tokens=6)
    logits = np.zeros((1, VOCAB + 2), np.float32)
    fed = []
    for token in (VOCAB + 1, EOS, 5):
        fed.append([int(values[0]) for values in search.feed()])
        logits[:] = 0
        logits[0, token] = 9
        assert search.advance(logits).tolist() == [0]
    fed.append([int(values[0]) for values in search.feed()])
    assert fed == [[BOS, 0, 3, 0], [10, 3, 3, 1], [BOS, 0, 1, 0], [5, 0, 1, 1]]


def test_parents_tell_which_row_goes_on() -> None:
    search = BeamSearch(plan_of([(1, 1)], [(1, 1)]), beams=2, max_new_tokens=6)
    logits = np.zeros((4, VOCAB + 2), np.float32)
    logits[0, [2, 3]] = 9, 8
    logits[2, [5, 8]] = 9, 8
    assert search.advance(logits).tolist() == [0, 0, 2, 2]
    assert search.feed().ids.tolist() == [2, 3, 5, 8]
    logits[:] = 0
    logits[1, 9] = 30
    assert search.advance(logits).tolist()[:1] == [1]
    assert search.feed().ids[0] == 9
    assert search.feed().positions.tolist() == [2] * 4


def test_bans_come_before_the_penalty() -> None:
    plan = plan_of([(1, 1)], [(1, 1)], allowed=[[True, False], [False, True]], unk=[False, True])
    rows = Rows(plan, 1, 4)
    rows.next.ids[:] = UNK
    logits = np.ones((3, VOCAB + 5), np.float32)
    logits[:, VOCAB + 2 :] = -np.inf
    scores = rows.scores(logits, 2.0, 0)
    assert scores.shape == (2, VOCAB + 2)
    assert scores[:, VOCAB:].tolist() == [[1, FORBIDDEN], [FORBIDDEN, 1]]
    assert scores[:, UNK].tolist() == [2 * FORBIDDEN, 0.5]
    assert logits.max() == 1


def test_the_penalty_counts_each_fed_token_once() -> None:
    rows = Rows(plan_of([(1, 1)]), 1, 6)
    logits = np.array([[-1.0, 1.0] * 7], np.float32)
    for token in (5, 2, 2, 3):
        rows.next.ids[:] = token
        everything = rows.scores(logits, 2.0, 0)[0]
        rows.num_fed -= 1
        window = rows.scores(logits, 2.0, 2)[0]
    assert [everything[i] for i in (2, 3, 5)] == [-2, 0.5, 0.5]
    assert [window[i] for i in (2, 3, 5)] == [-2, 0.5, 1]


def test_nan_scores_are_refused() -> None:
    search = BeamSearch(plan_of([(1, 1)]), beams=1)
    with pytest.raises(FloatingPointError, match="NaN"):
        search.advance(np.full((1, VOCAB + 2), np.nan, np.float32))


@given(st.integers(0, 10**6), st.integers(1, 900), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_best_of_equals_a_stable_sort(seed, width, count, coarse) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, width + count)).astype(np.float32)
    scores[:, rng.integers(0, width, 5)] = -np.inf
    if coarse:
        scores = np.round(scores)
    values, indices = best_of(scores, count)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, wanted, 1))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"beams": 0}, "beams=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"repetition_penalty": 0.9}, "repetition_penalty=0.9"),
        ({"repetition_window": -1}, "repetition_window=-1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options, word) -> None:
    with pytest.raises(ConfigError, match=word):
        BeamSearch(plan_of([(1, 1)]), **options)
