"""Metrics against values that can be computed by hand, and against the golden reading metric."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import GOLDEN, golden_dirs

from mindplm.measure import characters, metrics
from mindplm.measure.figures import Figure, mean, of_sums, share


def test_wilsons_interval() -> None:
    # 7 of 10: centre (0.7 + z^2/20) / (1 + z^2/10), with z^2 = 3.8415
    found = share(7, 10)
    assert (found.value, found.count) == (0.7, 10)
    assert found.low == pytest.approx(0.39678, abs=1e-5)
    assert found.high == pytest.approx(0.89221, abs=1e-5)
    assert share(0, 5).low == 0 and share(5, 5).high == 1 and share(0, 0).count == 0


def test_a_bootstrap_interval_covers_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3, 1, 400)
    found = mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)
    assert mean([1.0, 1.0]) == Figure(1.0, 1.0, 1.0, 2)
    assert of_sums(np.zeros((0, 3)), lambda s: s[:, 0]).count == 0


@pytest.mark.skipif(GOLDEN is None or not (GOLDEN / "cpt").is_dir(), reason="no golden cpt")
def test_reading_metric_agrees_with_the_golden_cases() -> None:
    assert GOLDEN is not None
    cases = json.loads((GOLDEN / "cpt" / "mrc_metric.json").read_text())
    assert cases
    for case in cases:
        assert metrics.segments(case["prediction"]) == case["segments"]
        found = metrics.f1_of(case["prediction"], case["answers"])
        assert found == pytest.approx(case["f1"], abs=1e-12), case
        assert metrics.is_exact(case["prediction"], case["answers"]) == bool(case["em"]), case


@pytest.mark.parametrize("path", golden_dirs("cpt", "gen_metrics*.json"), ids=lambda p: p.stem)
def test_figures_of_generation_agree_with_the_golden_ones(path) -> None:
    facts = json.loads(path.read_text())
    texts = ["".join(words) for words in facts["hyps"]]
    references = [["".join(words) for words in own] for own in facts["refs"]]
    bleu = characters.character_bleu(texts, references)
    for order, value in facts["bleu"].items():
        assert bleu[f"char_bleu{order}"].value == pytest.approx(100 * value, rel=1e-9)
    for order, value in facts["distinct"].items():
        found = characters.distinct(texts, references)[f"distinct{order}"]
        assert found.value == pytest.approx(value, rel=1e-12)
    whole = characters.character_overlap(texts, references)
    assert whole["char_f1"].value == pytest.approx(facts["unigram_f1"], rel=1e-9)
    assert whole["char_lcs"].value == pytest.approx(facts["rouge_l"], rel=1e-9)
    for i, (f1, lcs) in enumerate(zip(facts["unigram_f1_each"], facts["rouge_l_each"])):
        found = characters.character_overlap(texts[i : i + 1], references[i : i + 1])
        assert found["char_f1"].value == pytest.approx(f1, rel=1e-9)
        assert found["char_lcs"].value == pytest.approx(lcs, rel=1e-9)


@pytest.mark.parametrize("path", golden_dirs("cpt", "rouge*.json"), ids=lambda p: p.stem)
def test_rouge_by_character_agrees_with_the_golden_one(path) -> None:
    facts = json.loads(path.read_text())
    references = [[text] for text in facts["refs"]]
    sides = [(facts["hyps"], references, facts["avg"])]
    sides += [([h], [r], e) for h, r, e in zip(facts["hyps"], references, facts["each"])]
    for texts, own, wanted in sides:
        found = characters.character_rouge(texts, own)
        for ours, theirs in (("1", "rouge-1"), ("2", "rouge-2"), ("L", "rouge-l")):
            assert found[f"char_rouge{ours}"].value == pytest.approx(100 * wanted[theirs]["f"])


def test_figures_by_character_of_texts_without_anything_in_common() -> None:
    assert characters.character_bleu(["北"], [["南京"]])["char_bleu1"].value == 0
    assert characters.character_rouge([""], [["南京"]])["char_rougeL"].value == 0
    assert characters.character_overlap([""], [["南。"]])["char_f1"].value == pytest.approx(2 / 3)
    assert characters.distinct([""], [["无"]])["distinct1"].value == 0


def test_exact_and_f1_of_all() -> None:
    predictions, references = ["北京。", "上海"], [["北京"], ["上海市", "沪"]]
    assert metrics.exact(predictions, references).value == 0.5
    assert metrics.f1(predictions, references).value == pytest.approx((1 + 0.8) / 2)


def test_spans() -> None:
    found = metrics.spans(
        [[("人名", "小楠"), ("地名", "北京")], [("地名", "上海"), ("地名", "上海")], []],
        [[("人名", "小楠")], [("地名", "上海")], [("地名", "天津"), ("人名", "王")]],
    )
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["recall"].value == pytest.approx(2 / 4)
    assert found["f1"].value == pytest.approx(2 * 2 / (3 + 4))
    assert found["f1"].low <= found["f1"].value <= found["f1"].high


def test_bleu_and_chrf() -> None:
    same = [["今天天气很好"], ["我们去北京"]]
    assert metrics.bleu(["今天天气很好", "我们去北京"], same).value == pytest.approx(100)
    assert metrics.chrf(["今天天气很好", "我们去北京"], same).value == pytest.approx(100)
    # By characters: 6, 4, 3, 2 of 7, 6, 5, 4 n-grams are right.
    part = metrics.bleu(["你好吗世界很大"], [["你好吗世界真大"]])
    assert part.value == pytest.approx(100 * math.prod([6 / 7, 4 / 6, 3 / 5, 2 / 4]) ** 0.25)
    english = metrics.bleu(["the cat sat on a mat", "x y z w"], [["the cat sat on a mat"], ["b"]])
    assert 0 < english.value < 100 and english.low <= english.value <= english.high
    several = metrics.bleu(["今天很好天气", "好"], [["今天", "今天很好天气"], ["好"]])
    assert several.value == pytest.approx(100)


def test_rouge_counts_characters() -> None:
    found = metrics.rouge(["北京是中国首都！"], [["北京是中国的首都"]])
    assert found["rouge1"].value == pytest.approx(100 * 2 * 7 / (7 + 8))
    assert found["rouge2"].value == pytest.approx(100 * 2 * 5 / (6 + 7))
    assert found["rougeL"].value == pytest.approx(100 * 2 * 7 / (7 + 8))
    best = metrics.rouge(["GPT模型"], [["无关", "gpt 模型"]])
    assert best["rougeL"].value == pytest.approx(100)
    assert metrics.rouge([""], [["无"]])["rouge1"].value == 0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"needs sacrebleu: .*mindplm\[eval\]"):
        metrics.bleu(["a"], [["a"]])
