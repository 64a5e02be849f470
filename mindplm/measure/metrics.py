"""Metrics of answers: exact match and F1, spans, BLEU, chrF, ROUGE. Chinese counts by character."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mindplm.errors import ConfigError
from mindplm.measure.figures import Figure, mean, of_sums, share

References = Sequence[Sequence[str]]
"""Accepted texts of each record."""
Pairs = Sequence[Sequence[tuple[str, str]]]
"""(type, text) pairs of each record."""

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_RESAMPLES = 1000


# --- short answers --------------------------------------------------------------------------------


def exact(predictions: Sequence[str], references: References) -> Figure:
    """Share of answers that equal a reference when punctuation and case do not count."""
    return share(sum(map(is_exact, predictions, references)), len(predictions))


def is_exact(prediction: str, references: Sequence[str]) -> bool:
    """Whether an answer equals a reference; see `exact`."""
    return any(_bare(prediction) == _bare(reference) for reference in references)


def f1(predictions: Sequence[str], references: References) -> Figure:
    """Mean F1 of answers; see `f1_of`."""
    return mean([f1_of(p, r) for p, r in zip(predictions, references)])


def f1_of(prediction: str, references: Sequence[str]) -> float:
    """Best F1 of the longest stretch that an answer shares with a reference.

    Counted in segments: Chinese characters and words of other scripts, without punctuation.

    Source: Cui et al. 2019, "A Span-Extraction Dataset for Chinese Machine Reading Comprehension",
    section 4.2.
    """
    best = 0.0
    mine = segments(prediction)
    for reference in references:
        theirs = segments(reference)
        common = _longest_common(mine, theirs)
        if common:
            best = max(best, 2 * common / (len(mine) + len(theirs)))
    return best


def segments(text: str) -> list[str]:
    """Chinese characters and words, in small letters, without punctuation."""
    kept = "".join(c for c in text.lower() if not _is_mark(c))
    return re.findall(r"[\u4e00-\u9fa5]|[^\s\u4e00-\u9fa5]+", kept)


def _bare(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if not _is_mark(c)).split())


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common stretch."""
    best, before = 0, [0] * (len(right) + 1)
    for item in left:
        now = [0] * (len(right) + 1)
        for j, other in enumerate(right, start=1):
            if item == other:
                now[j] = before[j - 1] + 1
                best = max(best, now[j])
        before = now
    return best


# --- spans ----------------------------------------------------------------------------------------


def spans(predictions: Pairs, references: Pairs) -> dict[str, Figure]:
    """Precision, recall and F1 over all (type, text) pairs; one that is said twice counts once."""
    sums = np.array(
        [(len(set(p) & set(r)), len(set(p)), len(set(r))) for p, r in zip(predictions, references)],
        np.float64,
    ).reshape(-1, 3)
    formulas: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "f1": lambda s: 2 * s[:, 0] / np.maximum(s[:, 1] + s[:, 2], 1),
        "precision": lambda s: s[:, 0] / np.maximum(s[:, 1], 1),
        "recall": lambda s: s[:, 0] / np.maximum(s[:, 2], 1),
    }
    return {name: of_sums(sums, formula) for name, formula in formulas.items()}


# --- texts ----------------------------------------------------------------------------------------


def bleu(predictions: Sequence[str], references: References) -> Figure:
    """BLEU of the whole, 0 to 100; characters are the words of a text with Chinese in it.

    Source: sacrebleu, tokenizers zh and 13a, whose bootstrap gives the interval.
    """
    tokenize = "zh" if is_chinese(references) else "13a"
    return _corpus(_needed("sacrebleu").BLEU(tokenize=tokenize), predictions, references)


def chrf(predictions: Sequence[str], references: References) -> Figure:
    """chrF2 of the whole, 0 to 100. Source: sacrebleu."""
    return _corpus(_needed("sacrebleu").CHRF(), predictions, references)


def rouge(predictions: Sequence[str], references: References) -> dict[str, Figure]:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 100, each against the best reference.

    Counted in Chinese characters and words of other scripts, without punctuation.

    Source: Lin 2004, "ROUGE"; computed by rouge-rust, which gives Google's figures.
    """
    found: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeL": []}
    score = _needed("fast_rouge", "rouge-rust").score
    for prediction, accepted in zip(predictions, references):
        mine = _spelled(prediction)
        scores = [score(_spelled(reference), mine) for reference in accepted]
        for name, values in found.items():
            values.append(100 * max(each[name].fmeasure for each in scores))
    return {name: mean(values) for name, values in found.items()}


def is_chinese(references: References) -> bool:
    """Whether most references hold Chinese characters."""
    first = [accepted[0] for accepted in references if accepted]
    return 2 * sum(bool(_CHINESE.search(text)) for text in first) > len(first)


def _spelled(text: str) -> str:
    """The tokens as words of small Latin letters and digits, which is all that ROUGE sees."""
    return " ".join(f"x{token.encode().hex()}" for token in _WORD.findall(text.lower()))


def _corpus(metric: Any, predictions: Sequence[str], references: References) -> Figure:
    if not predictions:
        return Figure(0.0, 0.0, 0.0, 0)
    most = max(map(len, references))
    columns = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    found = metric.corpus_score(list(predictions), columns, n_bootstrap=_RESAMPLES)
    half = found._ci  # its only public form is text
    return Figure(found.score, found.score - half, found.score + half, len(predictions))


def _needed(module: str, package: str = "") -> Any:
    """A library that is not part of the core; ConfigError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise ConfigError(
            f"this metric needs {name}: pip install {name}, or pip install 'mindplm[eval]'"
        ) from error
