"""Ways to cut a text into the words that byte-pair encoding works on.

`rules` is what GPT-1 was trained with and needs the packages ftfy and spacy; `basic` is what the
HF port does without them; `exact` keeps every character, case and space, for vocabularies of one's
own.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from mindplm.errors import VocabError

FORMS = ("rules", "basic", "exact")
_ASCII_FORMS = {
    **dict.fromkeys(map(ord, "\u2013\u2014\u2015"), "-"),
    0x2026: "...",
    0xB4: "'",
}
_RUN = re.compile(r"""([-~!";?+,)(\\/*\[\]}{|_])\1*""")
_BREAK = re.compile(r"\s*\n\s*")
_BLANKS = re.compile(r"[^\S\n]+")
_EXACT = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+|_+|\s")
_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
_ASCII_SIGNS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def split(text: str, form: str) -> list[str]:
    """The words of a text in one of FORMS.

    Raises:
        VocabError: `rules` without the packages that it needs.
    """
    if form == "exact":
        return _EXACT.findall(text)
    if form == "basic":
        return basic_words(text)
    return [word.lower() for word in english_words(standardise(fix(text)))]


def fix(text: str) -> str:
    """Repairs wrongly decoded characters, as ftfy does."""
    return _module("ftfy").fix_text(text)


def standardise(text: str) -> str:
    """One kind of dash, dots and accent; spaces around runs of signs; one kind of white space.

    Source: GPT-1 (openai/finetune-transformer-lm), its text normalisation.
    """
    text = _RUN.sub(r" \g<0> ", text.translate(_ASCII_FORMS))
    return _BLANKS.sub(" ", _BREAK.sub(" \n ", text)).strip()


def english_words(text: str) -> list[str]:
    """Words by spaCy's rules for English, without a trained model."""
    return [token.text for token in _english()(text)]


def basic_words(text: str, lower: bool = True) -> list[str]:
    """Words of a text; each sign and each Chinese character is its own.

    Args:
        text: The text.
        lower: Whether words are lower-cased and lose their accents.

    Source: the basic tokenizer of BERT (google-research/bert).
    """
    spread = text.translate(_SPREAD)
    if lower:
        spread = unicodedata.normalize("NFD", spread.lower()).translate(_ACCENTS)
    return spread.translate(_SIGNS).split()


def chunks(text: str) -> list[str]:
    """What stands between white space and Chinese characters, which are chunks of their own."""
    return text.translate(_SPREAD).split()


def is_cjk(char: str) -> bool:
    """Whether a character is a Chinese one."""
    return any(low <= ord(char) <= high for low, high in _CJK)


def is_sign(char: str) -> bool:
    """Whether a character is punctuation or another ASCII sign."""
    return char in _ASCII_SIGNS or unicodedata.category(char)[0] == "P"


def _spread(char: str) -> str:
    if _is_control(char):
        return ""
    if is_cjk(char):
        return f" {char} "
    return " " if char.isspace() or unicodedata.category(char) == "Zs" else char


def _is_control(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char in "\0\ufffd" or unicodedata.category(char)[0] == "C"


def _is_accent(char: str) -> bool:
    return unicodedata.category(char) == "Mn"


class _Table(dict):
    """For str.translate: what stands for a character, found when it first occurs."""

    def __init__(self, of: Callable[[str], str]):
        super().__init__()
        self._of = of

    def __missing__(self, code: int) -> str:
        self[code] = text = self._of(chr(code))
        return text


_SPREAD = _Table(_spread)
_ACCENTS = _Table(lambda char: "" if _is_accent(char) else char)
_SIGNS = _Table(lambda char: f" {char} " if is_sign(char) else char)


def halves(text: str, room: int, size: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """Parts of a text of at most `room` tokens, by halving it; and their sizes."""
    tokens = size(text)
    if tokens <= room or len(text) < 2:
        yield text, tokens
        return
    middle = len(text) // 2
    for half in (text[:middle], text[middle:]):
        yield from halves(half, room, size)


@functools.cache
def _english() -> Any:
    _module("spacy")
    from spacy.lang.en import English

    return English().tokenizer


@functools.cache
def chinese_words() -> Any:
    """jieba with its own dictionary: words that others add to jieba's do not change texts."""
    import jieba  # slow to import

    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer()


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VocabError(
            f"words=rules, the way GPT-1 cuts texts, needs the packages ftfy and spacy ({error}); "
            "install mindplm[gpt1], or choose words=basic, which gives other ids for some texts"
        ) from None
