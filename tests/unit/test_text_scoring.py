"""Scores of texts by a model that reads from left to right: those of the training pass."""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindplm import assets
from mindplm.config import RuntimeConfig, ShapeConfig
from mindplm.config_task import TaskConfig
from mindplm.data.causal_rows import record_piece
from mindplm.data.causal_text import Framed
from mindplm.data.packing import IGNORE
from mindplm.errors import ConfigError, DataError
from mindplm.generate.model import from_cell
from mindplm.generate.scoring import choose, score, score_each
from mindplm.measure.run import evaluate_task
from mindplm.models.gpt1.cell import network
from mindplm.models.gpt1.config import Gpt1Config
from mindplm.models.t5.cell import T5, T5Loss
from mindplm.models.t5.config import T5Config
from mindplm.nn.causal import CausalLoss
from mindplm.nn.init import initialise
from mindplm.runtime import setup
from mindplm.tokenizers.bpe_vocab import build
from mindplm.tokenizers.sentencepieces import T5Tokenizer

TOKENIZER = build(["the cat sat on the mat", "a dog < a cat"] * 3, 130, min_char_count=1)
CONFIG = Gpt1Config(
    vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_heads=2, ffn_size=32, num_layers=1,
    max_len=48,
)  # fmt: skip
PIECES = T5Tokenizer.from_file(assets.path("pieces_t5.model"))
RECORDS = [
    {"input": "the cat", "<ans>": "sat"},
    {"input": "the dog sat on the mat", "question": "where", "<ans>": "on the mat"},
    {"input": "", "<ans>": "a"},
]


@pytest.fixture(scope="module")
def model():
    setup(RuntimeConfig(device="cpu"))
    cell = network(CONFIG)
    initialise(cell, 3)
    for weight in cell.get_parameters():
        weight.set_data(weight * Tensor(4.0, ms.float32))
    return from_cell(cell, CONFIG, "gpt1")


def test_scores_are_those_of_training_and_of_each_record_alone(model):
    found = score(model, TOKENIZER, RECORDS, buckets=(16, 32), batch_size=2)
    loss = CausalLoss(model.cell)
    for record, own in zip(RECORDS[:2], found):
        inputs, labels = record_piece(record, TOKENIZER).tokens
        order = np.arange(len(inputs))
        columns = (inputs, order, np.ones_like(order), order, labels)
        total, count = loss(*(Tensor(np.array([c], np.int32)) for c in columns))
        np.testing.assert_allclose(own.nats, float(total), rtol=1e-5)
        assert own.num_tokens == int(count) == (labels != IGNORE).sum()
        alone = score(model, TOKENIZER, [record], buckets=(32,), batch_size=1)[0]
        np.testing.assert_allclose(alone.nats, own.nats, rtol=1e-5)
    assert found[2].num_tokens == 2  # behind the mark that ends texts


def test_a_framed_text_counts_without_what_stands_before_and_without_an_end(model):
    behind, alone = (
        score_each(model, TOKENIZER, [Framed(before, "the cat sat")], buckets=(16, 32))[0]
        for before in ("a dog", "")
    )
    count = len(TOKENIZER.encode("the cat sat"))
    assert (behind.num_tokens, alone.num_tokens) == (count, count - 1)
    assert behind.nats != alone.nats


def test_options_are_chosen_and_long_texts_refused(model):
    record = {"input": "the cat", "<ans>": ""}
    choice = choose(model, TOKENIZER, record, ["sat", "the mat"])
    nats = [s.nats for s in choice.scores]
    assert choice.best == int(np.argmin(nats))
    (error,) = score_each(model, TOKENIZER, [{"input": "cat " * 60, "<ans>": "a"}])
    assert isinstance(error, DataError)
    assert "at most 49 are read" in str(error)


def test_a_template_puts_candidates_into_the_text(model, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a dog < a cat", "label": "x"}\n')
    shape = ShapeConfig("classification", labels={"x": "the", "y": "mat"}, answer="text")
    task = TaskConfig(
        shape, ("accuracy",), method="likelihood", template="on {answer}|{input}", name="t"
    )
    (prediction,) = evaluate_task(model, TOKENIZER, task, str(path)).predictions
    framed = [Framed(f"on {word}", "a dog < a cat") for word in ("the", "mat")]
    wanted = [s.nats for s in score_each(model, TOKENIZER, framed)]
    np.testing.assert_allclose(prediction.nats, wanted, rtol=1e-6)
    assert prediction.answer == ("the", "mat")[int(np.argmin(wanted))]


@pytest.mark.parametrize("template", ["{answer}{input}", "{other}|{input}", "|{input|}", "{|}"])
def test_templates_that_cannot_be_filled_are_refused(template):
    shape = ShapeConfig("classification", labels={"x": "the", "y": "mat"}, answer="text")
    with pytest.raises((ConfigError, ValueError), match="template"):
        TaskConfig(shape, ("accuracy",), method="likelihood", template=template)


def test_a_family_that_cannot_be_asked_says_so(model):
    silent = dataclasses.replace(model, scorer=None)
    with pytest.raises(ConfigError, match="gpt1 cannot be asked"):
        score(silent, TOKENIZER, RECORDS)


# --- text to text ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair_model():
    setup(RuntimeConfig(device="cpu"))
    config = T5Config(
        PIECES.vocab_size, 16, 2, 32, 1, num_decoder_layers=1, head_dim=8, gated=True, tied=False
    )
    cell = T5(config)
    initialise(cell, 3)
    return from_cell(cell, config, "t5")


def test_answers_of_t5_are_scored_and_chosen(pair_model):
    record = {"text": "the cat sat", "query": "where is {options}?", "options": ["cat", "a mat"]}
    records = [{**record, "<ans>": option} for option in record["options"]]
    found = score(pair_model, PIECES, records, buckets=(64,), batch_size=2)
    loss = T5Loss(pair_model.cell)
    for own, answer in zip(found, record["options"]):
        read = PIECES.encode('TEXT: the cat sat QUERY: where is "cat" or "a mat"?') + [1]
        written = [*PIECES.encode(answer), 1]
        columns = (read, [1] * len(read), [0, *written[:-1]], written)
        total, count = loss(*(Tensor(np.array([c], np.int32)) for c in columns))
        np.testing.assert_allclose(own.nats, float(total), rtol=1e-5)
        assert own.num_tokens == int(count) == len(written)
    choice = choose(pair_model, PIECES, record)
    assert choice.answer == record["options"][int(np.argmin([s.nats for s in found]))]
    (error,) = score_each(pair_model, PIECES, [{"input": "cat " * 60, "<ans>": "a"}], buckets=(16,))
    assert "the largest bucket holds" in str(error)
    with pytest.raises(DataError, match="can be shown no examples"):
        pair_model.layout(PIECES).prepare(record, strict=False, examples=[records[0]])
