"""Scores of given answers: the same as writing them, whatever stands beside."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from reference_cpm_bee import Reference, ReferenceNetwork, random_weights
from test_generate_compiled import SIZES, our_weights
from test_generate_engine import CONFIG, TOKENIZER

from mindplm.config import RuntimeConfig
from mindplm.data import prompts as prompting
from mindplm.data.packing import COLUMNS
from mindplm.errors import ConfigError, DataError
from mindplm.generate.bee_layout import BeeLayout
from mindplm.generate.engine import Engine
from mindplm.generate.model import Model, from_cell
from mindplm.generate.rows import Rows
from mindplm.generate.scoring import Score, Scorer, choose, score, score_each
from mindplm.generate.search import log_softmax
from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.nn.values import load_model
from mindplm.runtime import setup

RECORDS = [
    {"input": "abc", "<ans>": "de"},
    {"input": "abc<mask_0>def<mask_1>", "<ans>": {"<mask_0>": "x", "<mask_1>": "yz<mask_1>"}},
    {"input": "hello" * 12, "question": "why", "<ans>": "because"},
    {"input": "x", "options": {"<option_3>": "a", "<option_1>": "b"}, "<ans>": "<option_1>"},
    {"<ans>": ""},
    {"input": "1 < \u30ab", "<ans>": {"a": {"b": "c<"}, "d": "e"}},
]  # fmt: skip


class ReferenceScorer(Scorer):
    """The scorer in NumPy; keeps the shapes that it was given."""

    def __init__(self) -> None:
        self.model = Reference(CONFIG, random_weights(CONFIG, 0))
        self.shapes: set[tuple] = set()

    def __call__(self, columns, allowed) -> np.ndarray:
        self.shapes.add(tuple(columns[name].shape for name in COLUMNS))
        names = ("length", "sample_ids", "segment_ids", "spans", "num_segments", "segment_rel")
        _, logits = self.model.training(
            {
                **{"inputs": columns["ids"], "inputs_sub": columns["subs"]},
                **{"segment_rel_offset": columns["rel_offset"], "context": columns["context"] != 0},
                **{name: columns[name] for name in (*names, "ext_ids", "ext_sub")},
            }
        )
        losses = np.zeros(columns["targets"].shape)
        size = TOKENIZER.vocab_size
        for row, place in zip(*np.nonzero(columns["targets"] >= 0)):
            own = logits[row, columns["target_pos"][row, place]].astype(np.float64)
            own[size:][allowed[row] == 0] = -np.inf
            losses[row, place] = np.logaddexp.reduce(own) - own[columns["targets"][row, place]]
        return losses


@pytest.fixture
def model() -> Model:
    network = ReferenceNetwork(Reference(CONFIG, random_weights(CONFIG, 0)))
    return Model("cpm_bee", SIZES, network, ReferenceScorer())


def test_the_compiled_pass_gives_the_scores_of_the_numpy_one(model) -> None:
    setup(RuntimeConfig(device="cpu"))
    cell = CpmBee(SIZES)
    load_model(cell, our_weights(0), "test")
    compiled = from_cell(cell, SIZES)
    ours = score(compiled, TOKENIZER, RECORDS)
    assert all(map(close, ours, score(model, TOKENIZER, RECORDS)))
    assert ours == score(compiled, TOKENIZER, RECORDS)
    assert len(compiled.scorer._losses.compile_cache) == 1


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


class Forced:
    """A policy that writes given classes and adds up what they cost."""

    def __init__(self, plan, pairs):
        self.rows, self.left, self.nats = Rows(plan, 1, 60), list(pairs), 0.0

    def feed(self):
        return self.rows.next

    def advance(self, logits):
        token = self.left.pop(0)
        self.nats -= float(log_softmax(np.array(logits, np.float64))[0, token])
        if self.left:
            self.rows.write(0, token)
            return np.zeros(1, np.int64)
        return None

    def certain(self, sentence):
        return []

    def results(self):
        return [[]]

    def ranked(self, sentence):
        return [[]]


@pytest.mark.parametrize("examples", [[], [RECORDS[0], RECORDS[3]]], ids=["alone", "shown two"])
@pytest.mark.parametrize("number", range(5))
def test_a_score_is_the_sum_of_what_writing_costs(model, number, examples) -> None:
    record = RECORDS[number]
    ready = prompting.prepare(record, TOKENIZER, examples=examples)
    tables = prompting.batch([ready], TOKENIZER, bucket=256, max_rel=1024, max_ext=32).tables[0]
    classes = {text: token for token, text in tables.items()}
    pairs = []
    for blank in ready.blanks:
        answer = record["<ans>"]
        for key in blank.path:
            answer = answer[key]
        for token in TOKENIZER.tokenize(answer):
            known = classes.get(token.text, TOKENIZER.token_to_id.get(token.text))
            pairs.append((known, blank.number))
        pairs.append((TOKENIZER.eos_id, blank.number))
    made = []

    def make(plan, _numbers):
        made.append(Forced(plan, [token for token, _ in pairs]))
        return made[0]

    engine = Engine(model.network, BeeLayout(TOKENIZER), buckets=[256], batch_size=1)
    list(engine.run([ready], make, max_new_tokens=60))
    found = score_each(model, TOKENIZER, [record], examples=examples)[0]
    assert isinstance(found, Score) and found.num_tokens == len(pairs)
    assert found.nats == pytest.approx(made[0].nats, rel=1e-5)


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


def test_few_shapes_occur(model) -> None:
    records = [{"input": "a" * n, "<ans>": "b" * (n % 7)} for n in range(2, 54)]
    score(model, TOKENIZER, records, batch_size=4)
    assert len(model.scorer.shapes) == 3  # buckets 32, 64 and 128


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
