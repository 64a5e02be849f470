"""CPT's pretraining samples: sentences in a row, permuted and with whole words masked or removed.

Half of the samples are for the understanding decoder (words masked, 15 %), half for the writing
decoder (sentences permuted, words collapsed into one mask each, 30 %). Every draw comes from a
`Draw`, in the original's order.

Source: fastnlp/CPT, pre-training folder, and arXiv 2109.05729, section 3.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mindplm.data.masking import jieba_words
from mindplm.tokenizers.words import is_cjk

UNDERSTANDING_RATE, WRITING_RATE, EXTRA_RATE, RANDOM_RATE = 0.15, 0.30, 0.1, 0.1
END_MARKS = "。;；!！?？"
_BREAKS = (
    r"([。！？?])([^”’])",
    r"(\.{3})([^”’])",
    r"(…)([^”’])",
    r"([。！？?][”’])([^，。！？?])",
)


class Draw(Protocol):
    """Where the random numbers come from."""

    def uniform(self, count: int) -> np.ndarray:
        """So many numbers from 0 to 1."""

    def permutation(self, count: int) -> np.ndarray:
        """0 .. count - 1 in random order."""

    def integers(self, count: int) -> np.ndarray:
        """So many ids from 1 to the size of the vocabulary, exclusive."""


class RandomDraw:
    """Draws from a generator of NumPy."""

    def __init__(self, rng: np.random.Generator, vocab_size: int):
        self._rng, self._vocab_size = rng, vocab_size

    def uniform(self, count: int) -> np.ndarray:
        """So many numbers from 0 to 1."""
        return self._rng.random(count)

    def permutation(self, count: int) -> np.ndarray:
        """0 .. count - 1 in random order."""
        return self._rng.permutation(count)

    def integers(self, count: int) -> np.ndarray:
        """So many ids from 1 to the size of the vocabulary, exclusive."""
        return self._rng.integers(1, self._vocab_size, count)


class Marks(NamedTuple):
    """The ids and pieces that a sample depends on."""

    cls_id: int
    sep_id: int
    mask_id: int
    ends: frozenset[int]
    """Ids of END_MARKS."""
    pieces: Sequence[str]
    """Piece of each id."""


@dataclass(frozen=True)
class Sample:
    """One sample, without padding.

    Attributes:
        source: What the encoder reads.
        target: The row before anything was changed.
        writes: Whether it is for the writing decoder.
    """

    source: np.ndarray
    target: np.ndarray
    writes: bool

    @property
    def previous(self) -> np.ndarray:
        """The writing decoder's input, of the target's length; begins with the first row end."""
        return np.concatenate([[self.target[-1]], self.target[:-1]])

    @property
    def predicted(self) -> np.ndarray:
        """Where the target counts: everywhere when written, else where the source differs."""
        if self.writes:
            return self.target != 0
        return self.source != self.target


def cut_sentences(text: str) -> list[str]:
    """Sentences of a line, with their end marks and closing quotes."""
    for pattern in _BREAKS:
        text = re.sub(pattern, r"\1\n\2", text)
    return text.rstrip().split("\n")


def row_of(sentences: Sequence[Sequence[int]], marks: Marks, max_len: int) -> np.ndarray:
    """[CLS], the sentences with [SEP] behind every end mark and sentence; cut, with [SEP] last."""
    row = [marks.cls_id]
    for sentence in sentences:
        for token in sentence:
            row.append(token)
            if token in marks.ends:
                row.append(marks.sep_id)
        if row[-1] != marks.sep_id:
            row.append(marks.sep_id)
    row = row[:max_len]
    row[-1] = marks.sep_id
    return np.array(row, np.int64)


def make_sample(
    sentences: Sequence[Sequence[int]], marks: Marks, max_len: int, draw: Draw
) -> Sample:
    """Makes a sample of sentences, which are ids."""
    target = row_of(sentences, marks, max_len)
    writes = bool(draw.uniform(1)[0] >= 0.5)
    source = permuted(target, marks.sep_id, draw) if writes else target.copy()
    return Sample(masked(source, marks, draw, writes), target, writes)


def permuted(row: np.ndarray, sep_id: int, draw: Draw) -> np.ndarray:
    """The sentences of a row, each up to its [SEP], in random order."""
    ends = (np.flatnonzero(row[1:] == sep_id) + 2).tolist()
    starts = [1, *ends[:-1]]
    chosen = draw.permutation(len(ends))
    order = np.arange(len(ends))
    order[chosen] = chosen[draw.permutation(len(ends))]
    return np.concatenate([row[:1], *(row[starts[i] : ends[i]] for i in order)])


def word_groups(pieces: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Where words begin, and which of them may be masked.

    jieba cuts the joined pieces, special ones and ## included. A word that begins with something
    else than Chinese characters is no candidate; a later token of another script takes the newest
    candidate back, as the original has it.

    Args:
        pieces: [CLS] ... [SEP].

    Returns:
        (flags [len(pieces)], positions of the candidates).
    """
    of_token = [frozenset(), *_aligned(pieces[1:-1]), frozenset([-1])]
    starts = np.zeros(len(pieces), bool)
    candidates: list[int] = []
    is_open = False
    for i in range(1, len(pieces)):
        chinese = all(map(is_cjk, pieces[i]))
        if of_token[i] != of_token[i - 1]:
            starts[i] = True
            if chinese:
                candidates.append(i)
                is_open = True
        elif is_open and not chinese:
            candidates.pop()
            is_open = False
    starts[[0, -1]] = False
    return starts, candidates


def _aligned(pieces: Sequence[str]) -> Iterator[frozenset[int]]:
    """Numbers of the words that each piece has a character of."""
    of_char = [number for number, word in enumerate(jieba_words("".join(pieces))) for _ in word]
    place = 0
    for piece in pieces:
        yield frozenset(of_char[place : place + len(piece)])
        place += len(piece)


def masked(row: np.ndarray, marks: Marks, draw: Draw, writes: bool) -> np.ndarray:
    """A copy of a row with words masked; with `writes` a word is one mask, so rows get shorter."""
    starts, candidates = word_groups([marks.pieces[i] for i in row])
    rate = WRITING_RATE if writes else UNDERSTANDING_RATE
    num_words = math.ceil(len(candidates) * rate)
    num_chosen = num_words + math.ceil(len(candidates) * rate * EXTRA_RATE)
    if not num_chosen:
        return row.copy()
    if num_chosen > len(candidates):
        candidates = np.flatnonzero(starts).tolist()
        num_chosen = min(num_chosen, len(candidates))
        num_words = min(num_words, num_chosen)
    at = np.array(candidates)[draw.permutation(len(candidates))[:num_chosen]]
    random = draw.uniform(num_chosen) < RANDOM_RATE
    result, kept = row.copy(), np.ones(len(row), bool)
    result[at] = marks.mask_id
    result[at[random]] = draw.integers(int(random.sum()))
    at, random = at[:num_words], random[:num_words]
    starts[-1] = True  # no word goes on beyond the end
    while len(at):
        at = at + 1
        goes_on = ~starts[at]
        at, random = at[goes_on], random[goes_on]
        if writes:
            kept[at] = False
        else:
            result[at] = marks.mask_id
            result[at[random]] = draw.integers(int(random.sum()))
    return result[kept]


def split_documents(weights: Sequence[float], num_documents: int) -> list[int]:
    """Boundaries of the parts (training, validation, test) of so many documents.

    Every boundary is rounded, then all are shifted so that the last is the end.
    """
    total = sum(weights)
    bounds = [0]
    for weight in weights:
        bounds.append(bounds[-1] + int(round(weight / total * num_documents)))
    shift = bounds[-1] - num_documents
    return [0, *(bound - shift for bound in bounds[1:])]
