"""A trained BERT: conversion both ways, the reference values of its network, and its guesses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA
from mindspore import Tensor

from mindplm import checkpoint
from mindplm.convert import convert
from mindplm.fill import Filler
from mindplm.models.bert.cell import Bert, BertLoss
from mindplm.nn.values import load_model
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

FOLDER = (SHARED_DATA or Path("nowhere")) / "real_weights"
SMILES = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
    r"|\%[0-9]{2}|[0-9])"
)
pytestmark = pytest.mark.skipif(
    not (FOLDER / "rxnfp_bert_mlm").is_dir(),
    reason="needs the trained weights data/real_weights beside the golden set",
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "ours"
    source = FOLDER / "rxnfp_bert_mlm"
    report = convert(source, out, family="bert", dtype="float32", words=SMILES, verify=True)
    assert report.verified == report.tensors == 202
    return out


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "golden" / "rxnfp_bert_mlm.npz"))


def test_the_network_gives_the_reference_values(ours, golden):
    saved = checkpoint.read(ours)
    model = Bert(saved.model())
    load_model(model, saved.weights(), "real")
    ids = golden["input_ids"].astype(np.int32)
    order = np.ascontiguousarray(
        np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    )
    spans = golden["attention_mask"].astype(np.int32)
    columns = [Tensor(a) for a in (ids, np.zeros_like(ids), order, spans)]
    states = model.encoder(*columns)
    for number in (0, 6, 12):
        wanted = golden[f"hidden_{number}"]
        assert np.abs(states[number].asnumpy() - wanted).max() < 5e-5, number
    flat = model.project(states[-1].reshape((-1, states[-1].shape[-1]))).asnumpy()
    logits = flat.reshape((*ids.shape, -1))
    assert np.abs(logits - golden["logits"]).max() < 1e-4
    labels = golden["labels"].astype(np.int32)
    total, count = BertLoss(model)(*columns, Tensor(order), Tensor(labels))
    mean = float(total.asnumpy()) / float(count.asnumpy())
    assert mean == pytest.approx(float(golden["mlm_loss"]), abs=1e-5)
    masked = labels >= 0
    right = (logits.argmax(-1) == labels)[masked].sum()
    assert (right, masked.sum()) == (28, 29)


def test_masked_tokens_of_reactions_are_guessed(ours, golden):
    """The texts of the reference batch, cut by the tokenizer from their own spelling."""
    filler = Filler(ours)
    lines = filler.tokenizer.lines
    texts, wanted = [], []
    for row, labels in zip(golden["input_ids"], golden["labels"]):
        real = row[row != filler.tokenizer.pad_id]
        texts.append("".join(lines[i] for i in real[1:-1]))
        assert filler.tokenizer.encode(texts[-1])[0] == real.tolist()
        wanted.append([lines[i] for i in labels if i >= 0])
    found = filler(texts, top=2)
    guesses = [[best[0][0] for best in filled.guesses] for filled in found]
    pairs = [pair for row, right in zip(guesses, wanted) for pair in zip(row, right)]
    assert sum(guess == right for guess, right in pairs) == 28
    assert all(best[0][1] >= best[1][1] for filled in found for best in filled.guesses)


def test_the_way_back_gives_the_same_tensors(ours, tmp_path):
    out = tmp_path / "theirs"
    report = convert(ours, out, back="hf", verify=True)
    assert report.verified == 202
    again = tmp_path / "again"
    convert(out, again, family="bert")
    before, after = (checkpoint.read(path).weights() for path in (ours, again))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    tokenizer = WordPieceTokenizer.from_file(again / "vocab.txt")
    assert tokenizer.pattern == SMILES
