"""Scores of given answers: the same as writing them, whatever stands beside."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from test_generate_compiled import SIZES, our_weights
from test_generate_engine import TOKENIZER

from mindplm.data import prompts as prompting
from mindplm.errors import ConfigError, DataError
from mindplm.generate import generate
from mindplm.generate.engine import Engine
from mindplm.generate.model import Model, from_cell
from mindplm.generate.rows import Rows
from mindplm.generate.scoring import Score, choose, score
from mindplm.generate.search import BeamSearch, log_softmax
from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.nn.values import load_model
from mindplm.runtime import setup
from mindplm.config import RuntimeConfig

RECORDS = [
    {"input": "abc", "<ans>": "de"},
    {"input": "abc<mask_0>def<mask_1>", "<ans>": {"<mask_0>": "x", "<mask_1>": "yz<mask_1>"}},
    {"input": "hello" * 12, "question": "why", "<ans>": "because"},
    {"input": "x<option_3>", "options": {"<option_3>": "a", "<option_1>": "b"}, "<ans>": "<option_1>"},
    {"<ans>": ""},
    {"input": "1 < \u30ab", "<ans>": {"a": {"b": "c<"}, "d": "e"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    setup(RuntimeConfig(device="cpu"))
    cell = CpmBee(SIZES)
    load_model(cell, our_weights(0), "test")
    return from_cell(cell, SIZES)


def close(left: Score, right: Score) -> bool:
    return left.num_tokens == right.num_tokens and math.isclose(
        left.nats, right.nats, rel_tol=1e-5, abs_tol=1e-4
    )


def test_a_score_depends_neither_on_the_batch_nor_on_the_bucket(model) -> None:
    before = copy.deepcopy(RECORDS)
    together = score(model, TOKENIZER, RECORDS)
    assert before == RECORDS
    for i, record in enumerate(RECORDS):
        assert close(score(model, TOKENIZER, [record])[0], together[i])
    wide = score(model, TOKENIZER, RECORDS[::-1], batch_size=2, buckets=(256,))[::-1]
    assert all(map(close, wide, together))
    assert [s.num_tokens for s in together] == [3, 6, 8, 2, 1, 5]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_score_is_the_sum_of_what_writing_gives(model, number) -> None:
    """The log-probabilities of a greedy run, with the classes that may be written."""
    record = RECORDS[number]
    total: list[float] = []

    class Summed(BeamSearch):
        def advance(self, logits):
            free = log_softmax(np.array(logits, np.float32))
            parents = super().advance(logits)
            pairs = _last(self)
            total.append(float(free[0, pairs]))
            return parents

    def _last(search) -> int:
        return int(search.candidates[0, 0])

    ready = prompting.prepare(record, TOKENIZER)
    engine = Engine(model.network, TOKENIZER, buckets=[128], batch_size=1)
    options = {"beams": 1, "max_new_tokens": 60}
    _, written = next(
        engine.run([ready], lambda plan, _: Summed(plan, **options), max_new_tokens=60)
    )
    texts = prompting.answers(written.pairs, ready, written.table, TOKENIZER)
    if None in texts or written.pairs[-1][0] != TOKENIZER.eos_id:
        pytest.skip("the greedy run does not end")
    filled = prompting.write_back(record, ready, texts)
    found = score(model, TOKENIZER, [filled], strict=True)[0]
    if found.num_tokens == len(total):
        assert math.isclose(found.nats, -sum(total), rel_tol=1e-4)


def test_scores_can_be_read() -> None:
    found = Score(6.0, 3)
    assert (found.per_token, found.perplexity) == (2.0, math.exp(2))
    assert str(found) == "6.0000 nats, 3 tokens, perplexity 7.389"
    assert Score(1e9, 1).perplexity > 1e300


def test_the_likeliest_option_is_chosen(model) -> None:
    record = {**RECORDS[3], "<ans>": "ignored"}
    choice = choose(model, TOKENIZER, record)
    assert choice.answer in record["options"]
    assert len(choice.scores) == 2
    assert sum(choice.shares) == pytest.approx(1)
    assert choice.scores[choice.best].nats == min(s.nats for s in choice.scores)
    answers = ["a", "bbbbbbbb", {"k": "c"}]
    whole = choose(model, TOKENIZER, {"input": "x", "<ans>": ""}, answers)
    each = choose(model, TOKENIZER, {"input": "x"}, answers, per_token=True)
    assert whole.scores == each.scores
    assert each.best == int(np.argmin([s.per_token for s in each.scores]))
    for i, answer in enumerate(answers):
        alone = score(model, TOKENIZER, [{"input": "x", "<ans>": answer}])[0]
        assert close(alone, whole.scores[i])


def test_few_graphs_are_compiled(model) -> None:
    fresh = from_cell(model.scorer._losses.model, SIZES)
    records = [{"input": "a" * n, "<ans>": "b" * (n % 7)} for n in range(2, 24)]
    score(fresh, TOKENIZER, records, batch_size=4)
    assert len(fresh.scorer._losses.compile_cache) <= 2


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ({"<ans>": "x"}, "expected a list of records, got one dict"),
        (["text"], "record 1: expected a record"),
        ([{"<ans>": "x"}, {"input": "x"}], "record 2: the record has no answers"),
        ([{"<ans>": None}], "record 1: record.<ans> is null"),
        ([{"<ans>": "x" * 3000}], "record 1: has 3007 tokens, the largest bucket holds 2048"),
    ],
)
def test_records_that_cannot_be_scored_are_named(model, records, word) -> None:
    with pytest.raises(DataError, match=word):
        score(model, TOKENIZER, records)


def test_choices_that_cannot_be_made_are_told(model) -> None:
    for record, options in [({"a": "b"}, None), ({}, []), ({}, "ab"), ("text", ["a"])]:
        with pytest.raises(DataError):
            choose(model, TOKENIZER, record, options)
    with pytest.raises(ConfigError, match="batch_size=0"):
        score(model, TOKENIZER, RECORDS, batch_size=0)


def test_nothing_to_score(model) -> None:
    assert score(model, TOKENIZER, []) == []
    assert generate(model, TOKENIZER, []) == []
    assert Rows is not None
