"""Building a WordPiece vocabulary from a corpus: characters, English words and pieces of words.

The steps are deterministic: the same texts in the same order give the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from mindplm.errors import VocabError
from mindplm.tokenizers.wordpiece import SPECIALS
from mindplm.tokenizers.words import basic_words, is_cjk

ASCII = tuple(chr(code) for code in range(33, 127))
_LONGEST_PIECE = 12
_MOST_FREQUENT = 3755
"""Characters of the first level of GB 2312: those of everyday Chinese."""


def everyday_characters() -> list[str]:
    """The first level of GB 2312 in its order."""
    cells = (bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    known = []
    for code in cells:
        try:
            known.append(code.decode("gb2312"))
        except UnicodeDecodeError:
            continue
    return known[:_MOST_FREQUENT]


def build(
    texts: Iterable[str], size: int, *, lower: bool = True, min_char_count: int = 3
) -> list[str]:
    """Lines of a vocabulary file.

    Special pieces and ASCII come first, then everyday Chinese and the characters of the texts,
    then words and beginnings and ends of words, by how many characters a piece covers.

    Args:
        texts: The corpus.
        size: Most entries.
        lower: Whether the tokenizer lower-cases.
        min_char_count: Characters from this number on.

    Raises:
        VocabError: The size does not hold the characters.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(basic_words(text, lower))
    chars: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            chars[char] += count
    frequent = [c for c, n in _ranked(chars) if n >= min_char_count and not c.isspace()]
    alone = dict.fromkeys(chain(ASCII, everyday_characters(), frequent))
    joined = [f"##{c}" for c in alone if c.isalnum() and not is_cjk(c)]
    lines = [*SPECIALS, *alone, *joined]
    if lower:
        lines = [line for line in lines if line in SPECIALS or line == line.lower()]
    if len(lines) > size:
        raise VocabError(f"size={size}, expected at least {len(lines)} for the characters alone")
    taken = set(lines)
    gains: Counter[str] = Counter()
    for word, count in words.items():
        for piece in _pieces(word):
            gains[piece] += count * (len(piece.replace("##", "", 1)) - 1)
    best = (piece for piece, _ in _ranked(gains) if piece not in taken)
    return [*lines, *(piece for _, piece in zip(range(size - len(lines)), best))]


def _pieces(word: str) -> Iterable[str]:
    """A word, its beginnings and its ends, of 2 characters or more."""
    if len(word) < 2:
        return
    if len(word) <= _LONGEST_PIECE:
        yield word
    for cut in range(2, min(len(word), _LONGEST_PIECE)):
        yield word[:cut]
        yield "##" + word[len(word) - cut :]


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
