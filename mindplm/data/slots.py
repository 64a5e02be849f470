"""Classification by filling slots: a template around texts, and label words for its masks.

Pieces of a template are literal texts, TEXT_A, TEXT_B, SLOT and SEP. Every piece is cut into tokens
by itself; the slot becomes as many [MASK] as the longest label word has tokens, shorter words are
filled up with "-". Source: fastnlp/CPT, its program of classification by prompts.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.config_shape import ShapeConfig
from mindplm.config_slots import SEP, SLOT, TEXT_A, TEXT_B, pieces_of
from mindplm.data.documents import Document
from mindplm.text import unescape

_FILLING = "-"


@dataclass(frozen=True)
class Slotted:
    """A text in its template.

    Attributes:
        ids: What the encoder reads.
        written: What the writing decoder is asked with, if the slots are there; else None.
        places: Of the masks, in `written` if that is there, else in `ids`.
        cut: Whether the texts were too long.
    """

    ids: list[int]
    written: list[int] | None
    places: list[int]
    cut: bool = False


class Slots:
    """Makes inputs of texts and scores of classes out of scores of words.

    Args:
        template: Pieces of what is read.
        words: Class -> label word.
        tokenizer: A WordPiece tokenizer.
        seq_len: Most ids of an input; texts are cut to fit.
        written: Pieces of a template of the writing decoder's own; None: it sees the first one.
        strip: Whether ASCII punctuation at the end of the first and of the second text goes.
    """

    def __init__(
        self,
        template: Sequence[str],
        words: Mapping[str, str],
        tokenizer: Any,
        seq_len: int,
        *,
        written: Sequence[str] | None = None,
        strip: tuple[bool, bool] = (True, True),
    ):
        self._template, self._written, self._strip = template, written, strip
        self._tokenizer, self._seq_len = tokenizer, seq_len
        cut = [self._ids(word) for word in words.values()]
        self.num_slots = max(map(len, cut))
        filling = self._ids(_FILLING)
        self.word_ids = [ids + filling * (self.num_slots - len(ids)) for ids in cut]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.ids_of(self._tokenizer.tokenize(text))

    def __call__(self, text_a: str, text_b: str | None = None) -> Slotted:
        """Puts texts into the template, cut where they are too long."""
        texts = []
        for text, strip in zip((text_a, text_b or ""), self._strip):
            texts.append(self._ids(text.rstrip(string.punctuation) if strip else text))
        ids, places = self._filled(self._template, texts)
        excess = len(ids) - self._seq_len
        if excess > 0:
            fitting = shortened(texts[0], texts[1], excess)
            ids, places = self._filled(self._template, fitting)
        if self._written is None:
            return Slotted(ids, None, places, excess > 0)
        written, places = self._filled(self._written, texts)
        return Slotted(ids, written, places, excess > 0)

    def _filled(
        self, pieces: Sequence[str], texts: Sequence[list[int]]
    ) -> tuple[list[int], list[int]]:
        tokenizer = self._tokenizer
        ids: list[int] = [tokenizer.cls_id]
        places: list[int] = []
        for piece in pieces:
            if piece == SLOT:
                places += range(len(ids), len(ids) + self.num_slots)
                ids += [tokenizer.mask_id] * self.num_slots
            elif piece == SEP:
                ids.append(tokenizer.sep_id)
            elif piece in (TEXT_A, TEXT_B):
                ids += texts[piece == TEXT_B]
            else:
                ids += self._ids(piece)
        return [*ids, tokenizer.sep_id], places

    def decoder_ids(self, slotted: Slotted, number: int) -> list[int]:
        """What the writing decoder reads for a class: [SEP], then the input with its label word."""
        ids = list(slotted.ids if slotted.written is None else slotted.written)
        for place, word in zip(slotted.places, self.word_ids[number]):
            ids[place] = word
        return [self._tokenizer.sep_id, *ids[:-1]]

    def scores(self, logits_sv: np.ndarray) -> np.ndarray:
        """Score of each class: the sum over the slots of the scores of its label word's tokens."""
        slots = np.arange(self.num_slots)
        return np.array([logits_sv[slots, ids].sum() for ids in self.word_ids])


def slots_of(shape: ShapeConfig, tokenizer: Any, seq_len: int) -> list[Slots]:
    """One for each template of a shape."""
    own = shape.slots
    return [
        Slots(
            pieces_of(template),
            shape.labels,
            tokenizer,
            seq_len,
            written=pieces_of(own.written) if own.written else None,
            strip=(own.strip_first, own.strip_second),
        )
        for template in own.templates
    ]


def texts_of(document: Document, shape: ShapeConfig) -> list[str]:
    """The one or two texts of a record."""
    return [unescape(document.fields[key]) for key in shape.shown]


def shortened(first: list[int], second: list[int], excess: int) -> tuple[list[int], list[int]]:
    """Cuts ids off the ends of two texts: the longer down to the other, then both alike."""
    if not second:
        return first[: len(first) - excess], second
    a, b = len(first), len(second)
    cut = min(excess, abs(a - b))
    a, b = (a - cut, b) if a > b else (a, b - cut)
    rest = excess - cut
    return first[: a - rest // 2], second[: b - (rest - rest // 2)]


def votes(scores: Sequence[np.ndarray]) -> int:
    """The class that most templates choose, the first one on ties."""
    return int(np.bincount([int(own.argmax()) for own in scores]).argmax())
