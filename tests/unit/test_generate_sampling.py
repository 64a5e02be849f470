"""Sampling: distributions, cuts, and independence of the sentences beside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from table_network import EOS, NEWLINE, VOCAB, Table, drive, plan_of

from mindplm.errors import ConfigError
from mindplm.generate.sampling import Sampler, nucleus


def test_tokens_come_as_often_as_they_should() -> None:
    num = 4000
    plan = plan_of(*[[(1, 1)]] * num)
    logits = np.random.default_rng(1).normal(size=VOCAB + 2).astype(np.float32) * 2
    options = {"max_new_tokens": 1, "temperature": 0.7, "nonempty": False}
    sampler = Sampler(plan, range(num), **options)
    assert sampler.advance(np.tile(logits, (num, 1))) is None
    counts = np.bincount([pairs[0][0] for pairs in sampler.results()], minlength=VOCAB + 2)
    share = np.exp(logits / 0.7)
    share[1] = 0
    share /= share.sum()
    spread = np.sqrt(num * share * (1 - share)) + 1e-9
    assert counts[1] == 0
    assert (np.abs(counts - num * share) < 4.5 * spread + 1e-6).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9}])
def test_a_batch_draws_what_its_sentences_draw_alone(options) -> None:
    blanks = [[(1, 1)], [(2, 1), (3, 2)], [(0, 1)], [(1, 1)]]
    seeds = [5, 6, 7, 8]
    options = {**options, "max_new_tokens": 12, "repetition_penalty": 1.2}
    together = drive(Sampler(plan_of(*blanks), seeds, **options), Table(3))
    alone = [
        drive(Sampler(plan_of(one), [seed], **options), Table(3))[0]
        for one, seed in zip(blanks, seeds)
    ]
    assert together == alone
    assert together[0] != together[3]
    assert together == drive(Sampler(plan_of(*blanks), seeds, **options), Table(3))


def test_what_stands_for_no_text_is_never_drawn() -> None:
    logits = np.zeros((1, VOCAB + 2), np.float32)
    logits[0, [0, 6]] = 50
    plan = dataclasses.replace(plan_of([(1, 1)]), unwritten=(0, 6))
    for seed in range(5):
        pairs = drive(Sampler(plan, [seed], max_new_tokens=9), lambda feed: logits)[0]
        assert not {token for token, _ in pairs} & {0, 6}


def test_a_blank_does_not_begin_with_its_end() -> None:
    logits = np.zeros((1, VOCAB + 2), np.float32)
    logits[0, [EOS, NEWLINE]] = 50
    plan = plan_of([(1, 1), (2, 2)])
    for seed in range(5):
        pairs = drive(Sampler(plan, [seed], max_new_tokens=5), lambda feed: logits)[0]
        assert pairs[0][0] not in (EOS, NEWLINE)
        assert pairs[1][0] in (EOS, NEWLINE)
    sampler = Sampler(plan, [0], max_new_tokens=1, nonempty=False)
    assert drive(sampler, lambda feed: logits)[0][0][0] in (EOS, NEWLINE)


@pytest.mark.parametrize("width", [5, 3000])
def test_nucleus_is_the_smallest_set_beyond_the_share(width) -> None:
    rng = np.random.default_rng(width)
    for _ in range(5):
        scores = rng.normal(size=width).astype(np.float32)
        weights = np.exp(scores.astype(np.float64))
        for top_k, top_p in [(0, 0.3), (0, 0.95), (4, 1.0), (4, 0.5), (width, 0.7), (0, 1e-9)]:
            classes, kept = nucleus(scores, top_k, top_p)
            order = np.argsort(-weights, kind="stable")[: top_k or width]
            share = np.cumsum(weights[order]) / weights[order].sum()
            assert classes.tolist() == order[: len(classes)].tolist()
            np.testing.assert_allclose(kept / kept[0], weights[classes] / weights[classes[0]])
            if top_p < 1:
                assert share[len(classes) - 1] > top_p
                assert len(classes) == 1 or share[len(classes) - 2] <= top_p
            else:
                assert len(classes) == len(order)


def test_without_cuts_every_class_may_be_drawn() -> None:
    classes, weights = nucleus(np.zeros(7, np.float32), 0, 1.0)
    assert classes.tolist() == list(range(7))
    assert weights.tolist() == [1] * 7


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, word) -> None:
    with pytest.raises(ConfigError, match=word):
        Sampler(plan_of([(1, 1)]), options.pop("seeds", [0]), **options)
