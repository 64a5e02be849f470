"""Answers that are stretches of what is read: which classes may follow what was written."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mindplm.data.cpm_bee import ANSWER
from mindplm.generate.bad_words import without_spaces
from mindplm.text import leaves, unescape

if TYPE_CHECKING:
    from mindplm.generate.rows import Plan


_FORMS = (partial(unicodedata.normalize, "NFKC"), str.lower)


class Copied(NamedTuple):
    """What may be copied.

    Attributes:
        sources: For each sentence of a batch the texts that it may copy from.
        joiner: Stands between two stretches; empty: there is one.
    """

    sources: Sequence[Sequence[str]]
    joiner: str


def texts_of(record: Mapping[str, Any]) -> list[str]:
    """All texts of a record but those below `<ans>`, tags as they are and as they are meant."""
    shown = {key: value for key, value in record.items() if key != ANSWER}
    return sorted({form for text in leaves(shown) for form in (text, unescape(text))})


class Copying:
    """Tells the classes that keep a text a series of stretches.

    Case and Unicode's compatibility forms count if the vocabulary has them. Spaces may be left out,
    since not all tokenizers write them as tokens.

    Args:
        plan: Of the batch.
        copied: What may be copied.
    """

    def __init__(self, plan: Plan, copied: Copied):
        assert plan.piece is not None
        self._plan, self._piece, self._joiner = plan, plan.piece, copied.joiner
        silent = {*plan.unwritten, plan.unk_id, plan.bos_id, plan.eos_id}
        self._joiners: list[int] = []
        self._spaces: list[int] = []
        self._by_text: dict[str, list[int]] = {}
        texts = {i: plan.piece(0, i) for i in range(plan.vocab_size) if i not in silent}
        self._forms = [form for form in _FORMS if all(form(t) == t for t in texts.values())]
        for token, text in texts.items():
            if self._joiner and text.strip() == self._joiner:
                self._joiners.append(token)
            elif text.isspace():
                self._spaces.append(token)
            elif not self._joiner or self._joiner not in text:
                self._by_text.setdefault(self._plain(text), []).append(token)
        self._longest = max(map(len, self._by_text), default=0)
        self._sources = [[_Source.of(self._formed(text)) for text in own] for own in copied.sources]
        self._own = [
            [*([plan.unk_id] if unk else ()), *(plan.vocab_size + np.flatnonzero(ext)).tolist()]
            for unk, ext in zip(plan.allowed_unk, plan.allowed_ext)
        ]
        self._starts: dict[int, set[int]] = {}

    def allowed(self, sentence: int, said: str) -> np.ndarray:
        """The classes that may follow what was written of a blank; int [any number].

        A blank may be empty, what follows a joiner may not. Where nothing can follow, the blank
        ends.
        """
        stretch = self._plain(said.rpartition(self._joiner)[2] if self._joiner else said)
        if stretch:
            found = {*self._following(sentence, stretch), *self._joiners}
            if not said[-1].isspace() and self._may_break(sentence, stretch):
                found.update(self._spaces)
        else:
            if sentence not in self._starts:
                self._starts[sentence] = set(self._following(sentence, ""))
            found = self._starts[sentence]
        if (stretch or not said or not found) and self._plan.eos_id >= 0:
            found = {*found, self._plan.eos_id}
        return np.fromiter(found, int, len(found))

    def _following(self, sentence: int, stretch: str) -> Iterator[int]:
        """Classes that make a longer stretch of this one."""
        for source, _ in self._sources[sentence]:
            for place in _ends(source, stretch):
                for end in range(place + 1, min(place + self._longest, len(source)) + 1):
                    yield from self._by_text.get(source[place:end], ())
            for token in self._own[sentence]:
                text = self._plain(self._piece(sentence, token))
                if text and stretch + text in source:
                    yield token

    def _may_break(self, sentence: int, stretch: str) -> bool:
        sources = self._sources[sentence]
        return any(place in breaks for text, breaks in sources for place in _ends(text, stretch))

    def _formed(self, text: str) -> str:
        for form in self._forms:
            text = form(text)
        return text

    def _plain(self, text: str) -> str:
        return without_spaces(self._formed(text))


class _Source(NamedTuple):
    """A text without its spaces, and the places where they stood."""

    text: str
    breaks: frozenset[int]

    @classmethod
    def of(cls, text: str) -> _Source:
        parts = text.split()
        return cls("".join(parts), frozenset(accumulate(map(len, parts))))


def _ends(source: str, stretch: str) -> Iterator[int]:
    """The places behind each occurrence."""
    place = source.find(stretch)
    while place >= 0:
        yield place + len(stretch)
        place = source.find(stretch, place + 1)
