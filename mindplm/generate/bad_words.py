"""Words that must not be written: which classes would complete one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def without_spaces(text: str) -> str:
    """The text as words are looked for in it: tokens say nothing certain about spaces."""
    return "".join(text.split())


class BadWords:
    """Tells the classes that must not follow a text.

    Args:
        words: What must not stand in a text, whichever tokens it is made of.
        texts: Text of each class of the vocabulary.
    """

    def __init__(self, words: Sequence[str], texts: Sequence[str]):
        self._words = [word for word in map(without_spaces, words) if word]
        plain = [without_spaces(text) for text in texts]
        by_start: dict[str, list[int]] = {}
        for number, text in enumerate(plain):
            by_start.setdefault(text[:1], []).append(number)
        self._always = [i for i, text in enumerate(plain) if any(w in text for w in self._words)]
        self._ends = {
            rest: np.array([i for i in by_start.get(rest[0], ()) if plain[i].startswith(rest)], int)
            for word in self._words
            for rest in (word[i:] for i in range(1, len(word)))
        }

    def after(self, said: str) -> np.ndarray:
        """The classes that would complete a word behind a text without spaces."""
        found = [np.array(self._always, int)]
        for word in self._words:
            for i in range(1, len(word)):
                if said.endswith(word[:i]):
                    found.append(self._ends[word[i:]])
        return np.concatenate(found)

    def completes(self, said: str, text: str) -> bool:
        """Whether a text completes a word behind another."""
        whole = said + without_spaces(text)
        return any(word in whole for word in self._words)


def bad_words_of(
    words: Sequence[str], vocab_size: int, piece: Callable[[int, int], str] | None
) -> BadWords | None:
    """Of a plan; None if there are no such words."""
    if not words:
        return None
    assert piece is not None
    return BadWords(words, [piece(0, token) for token in range(vocab_size)])
