"""CPT's pretraining samples and schedules against the original's words, draws and rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.config import OptimConfig
from mindplm.data import cpt_text
from mindplm.data.cpt_text import Marks
from mindplm.tokenizers.wordpiece import WordPieceTokenizer
from mindplm.train.schedule import learning_rate

VOCAB = SHARED_DATA / "bert" / "vocab.txt" if SHARED_DATA else Path("nowhere")
pytestmark = pytest.mark.skipif(
    not (golden_dirs("cpt", "pretrain_samples*.json") and VOCAB.is_file()),
    reason="needs a golden set with cpt, and its vocabulary data/bert/vocab.txt",
)


def read(name: str) -> Any:
    (path,) = golden_dirs("cpt", name)
    return json.loads(path.read_text(encoding="utf-8"))


class Recorded:
    """Hands out the recorded draws and checks that they are asked for in their order."""

    def __init__(self, draws: list[list[Any]]):
        self._draws = iter(draws)

    def uniform(self, count: int) -> np.ndarray:
        kind, values = next(self._draws)
        assert kind in ("rand", "uniform") and len(values) == count
        return np.array(values)

    def permutation(self, count: int) -> np.ndarray:
        kind, size, values = next(self._draws)
        assert (kind, size) == ("randperm", count)
        return np.array(values, np.int64)

    def integers(self, count: int) -> np.ndarray:
        kind, values = next(self._draws)
        assert kind == "randint" and len(values) == count
        return np.array(values, np.int64)

    def is_empty(self) -> bool:
        return next(self._draws, None) is None


@pytest.fixture(scope="module")
def marks() -> Marks:
    tokenizer = WordPieceTokenizer.from_file(VOCAB)
    known = tokenizer.piece_to_id
    ends = frozenset(known[mark] for mark in cpt_text.END_MARKS if mark in known)
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    return Marks(*ids, ends=ends, pieces=tokenizer.lines)


def test_sentences_are_cut_the_same():
    for item in read("cut_sentences.json"):
        assert cpt_text.cut_sentences(item["text"]) == item["sentences"], item["text"]


def test_words_and_candidates_are_the_same():
    for item in read("wwm_groups.json"):
        starts, candidates = cpt_text.word_groups(item["tokens"])
        assert starts.astype(int).tolist() == item["is_word_start"], item["text"]
        assert candidates == item["maskable_starts"], item["text"]


def test_samples_are_the_same_with_the_recorded_draws(marks):
    for item in read("pretrain_samples.json"):
        size, draws = item["max_seq_length"], Recorded(item["draws"])
        sample = cpt_text.make_sample(item["sentences"], marks, size, draws)
        assert draws.is_empty()
        wanted = item["out"]

        def padded(values, size=size) -> list[int]:
            return np.pad(values, (0, size - len(values))).astype(int).tolist()

        assert int(sample.writes) == wanted["use_decoder"]
        assert padded(sample.target) == wanted["target"]
        assert padded(sample.source) == wanted["source"]
        assert padded(sample.previous) == wanted["prev_output_tokens"]
        assert padded(sample.predicted) == wanted["loss_mask"]
        assert padded(sample.source != 0) == wanted["attn_mask"]


def test_documents_are_split_the_same():
    for item in read("split_indices.json"):
        text = item["spec"]
        weights = [float(part) for part in text.replace("/", ",").split(",")]
        weights = [*weights, 0.0, 0.0][:3]
        found = cpt_text.split_documents(weights, item["size"])
        assert found == item["result"], item


def test_learning_rates_of_both_programs_are_the_same():
    golden = read("lr.json")
    for item in golden["annealing"]:
        if item["style"] not in ("linear", "cosine", "constant"):
            continue
        config = OptimConfig(
            lr=item["max_lr"],
            schedule=item["style"],
            warmup_steps=item["warmup_steps"],
            warmup_from_zero=True,
            min_lr_ratio=item["min_lr"] / item["max_lr"],
        )
        for step, value in item["values"]:
            found = learning_rate(config, step, item["decay_steps"])
            assert found == pytest.approx(value, rel=1e-9, abs=1e-18), (item["style"], step)
    for item in golden["finetune_linear_power"]:
        config = OptimConfig(
            lr=item["base_lr"],
            schedule="linear",
            warmup_steps=item["warmup_steps"],
            warmup_from_zero=True,
            min_lr_ratio=0.0,
            power=item["power"],
        )
        factors = [
            learning_rate(config, step, item["total"]) / item["base_lr"]
            for step in range(len(item["factors"]))
        ]
        np.testing.assert_allclose(factors, item["factors"], rtol=1e-9, atol=1e-15)
