"""Metrics of Chinese texts by character, as the published figures of CPT and its tasks are counted.

Every character that is no space is a word, Latin letters too; an empty prediction counts as "。".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from mindplm.measure.figures import Figure, mean, of_sums

References = Sequence[Sequence[str]]
"""Accepted texts of each record."""
_ORDERS = (1, 2, 3, 4)
_BETA = 1.2


def characters(text: str) -> str:
    """The characters that count."""
    return "".join(text.split())


def character_bleu(predictions: Sequence[str], references: References) -> dict[str, Figure]:
    """BLEU-1 to BLEU-4 of the whole, 0 to 100.

    Source: Papineni et al. 2002, "BLEU"; Chen and Cherry 2014, "A Systematic Comparison of
    Smoothing Techniques for Sentence-Level BLEU", technique 3.
    """
    rows = [_bleu_sums(_shown(p), [characters(r) for r in own])
            for p, own in zip(predictions, references)]  # fmt: skip
    sums = np.array(rows, np.float64).reshape(-1, 2 * len(_ORDERS) + 2)
    return {f"char_bleu{order}": of_sums(sums, partial(_bleu, order)) for order in _ORDERS}


def _bleu_sums(mine: str, theirs: Sequence[str]) -> list[int]:
    """Matching and all n-grams of each order, length, length of the closest reference."""
    matching, whole = [], []
    for order in _ORDERS:
        counts, most = Counter(_grams(mine, order)), Counter[str]()
        for text in theirs:
            most |= Counter(_grams(text, order))
        matching.append(sum((counts & most).values()))
        whole.append(max(1, sum(counts.values())))
    closest = min((abs(len(text) - len(mine)), len(text)) for text in theirs)[1]
    return [*matching, *whole, len(mine), closest]


def _bleu(order: int, total: np.ndarray) -> np.ndarray:
    count = len(_ORDERS)
    matching, whole = total[:, :order], total[:, count : count + order]
    none = matching == 0
    halves = 2.0 ** np.cumsum(none, 1)  # each order without a match counts half of the one before
    precision = np.where(none, 1 / halves, matching) / np.maximum(whole, 1)
    mine, closest = np.maximum(total[:, -2], 1), total[:, -1]
    brevity = np.exp(np.minimum(0, 1 - closest / mine))
    found = 100 * brevity * np.exp(np.log(precision).mean(1))
    return np.where(none[:, 0], 0.0, found)


def character_rouge(predictions: Sequence[str], references: References) -> dict[str, Figure]:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L over sets of n-grams, 0 to 100, the best reference's.

    A full stop of ASCII ends a sentence and is not counted; ROUGE-L joins the sentences' longest
    common sequences.

    Source: Lin 2004, "ROUGE", sections 2 and 3.2; sets as in the Python package rouge.
    """
    found: dict[str, list[float]] = {"char_rouge1": [], "char_rouge2": [], "char_rougeL": []}
    for prediction, own in zip(predictions, references):
        mine = _sentences(_shown(prediction))
        scores = [_rouge(mine, _sentences(characters(text))) for text in own]
        for name, values in zip(found, zip(*scores)):
            found[name].append(100 * max(values))
    return {name: mean(values) for name, values in found.items()}


def _sentences(text: str) -> list[str]:
    return [part for part in text.split(".") if part]


def _rouge(mine: Sequence[str], theirs: Sequence[str]) -> tuple[float, float, float]:
    scores = []
    for order in (1, 2):
        own, other = (set(_grams("".join(side), order)) for side in (mine, theirs))
        scores.append(_f(len(own & other), len(own), len(other)))
    common: set[str] = set()
    for sentence in theirs:
        for part in mine:
            common |= set(common_sequence(sentence, part))
    own, other = set("".join(mine)), set("".join(theirs))
    return scores[0], scores[1], _f(len(common), len(own), len(other))


def _f(common: int, mine: int, theirs: int) -> float:
    precision, recall = common / max(mine, 1), common / max(theirs, 1)
    return 2 * precision * recall / (precision + recall + 1e-8)


def character_overlap(predictions: Sequence[str], references: References) -> dict[str, Figure]:
    """Means of F1 over characters, and of ROUGE-L with recall weighing 1.2 times as much.

    Source: Lin 2004, "ROUGE", equations 2 to 4.
    """
    found: dict[str, list[float]] = {"char_f1": [], "char_lcs": []}
    for prediction, own in zip(predictions, references):
        mine = _shown(prediction)
        pairs = [(mine, characters(text)) for text in own]
        found["char_f1"].append(max(_unigram_f1(*pair) for pair in pairs))
        found["char_lcs"].append(max(_weighed_f(*pair) for pair in pairs))
    return {name: mean(values) for name, values in found.items()}


def _unigram_f1(mine: str, theirs: str) -> float:
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


def _weighed_f(mine: str, theirs: str) -> float:
    common = len(common_sequence(theirs, mine))
    if not common:
        return 0.0
    precision, recall, square = common / len(mine), common / len(theirs), _BETA**2
    return (1 + square) * precision * recall / (recall + square * precision)


def distinct(predictions: Sequence[str], _: References) -> dict[str, Figure]:
    """Share of different n-grams among all that are written, for 1 to 4 characters.

    Of each text the last n-gram is left out, as in the published figures. There is no interval:
    texts drawn twice by a bootstrap would not be as different.
    """
    found = {}
    for order in _ORDERS:
        grams = [gram for text in predictions for gram in _grams(_shown(text), order)[:-1]]
        value = len(set(grams)) / len(grams) if grams else 0.0
        found[f"distinct{order}"] = Figure(value, value, value, len(predictions))
    return found


def common_sequence(left: str, right: str) -> str:
    """The longest common sequence of characters; of several the one that the tables' walk meets."""
    table = np.zeros((len(left) + 1, len(right) + 1), np.int32)
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            if a == b:
                table[i, j] = table[i - 1, j - 1] + 1
            else:
                table[i, j] = max(table[i - 1, j], table[i, j - 1])
    found, i, j = [], len(left), len(right)
    while i and j:
        if left[i - 1] == right[j - 1]:
            found.append(left[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return "".join(found[::-1])


def _shown(prediction: str) -> str:
    return characters(prediction) or "。"


def _grams(text: str, order: int) -> list[str]:
    return [text[i : i + order] for i in range(len(text) - order + 1)]
