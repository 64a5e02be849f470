"""Questions about a text whose answer is a stretch of it: windows for a head, and answers back.

A text is cut into words: Chinese characters and signs stand alone, others join until white space.
Windows of word pieces slide over it, each behind the question. Source: fastnlp/CPT, its program
for CMRC 2018, and google-research/bert, run_squad.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.data.cpm_bee import RecordError
from mindplm.data.documents import Document
from mindplm.data.shapes import joined
from mindplm.text import unescape

STRIDE = 128
MOST_QUESTION, MOST_ANSWER, NUM_BEST = 64, 50, 20
_SKIPPED = "。，：:.,"


@dataclass(frozen=True)
class Window:
    """A question and a stretch of its text as ids.

    Attributes:
        ids: [CLS] question [SEP] stretch [SEP].
        first: Place of the stretch.
        words: Number of the word of each piece of the stretch.
        best: For each piece whether it has more text around it here than in other windows.
        begin, end: Places of the answer's first and last piece; 0 if it is not all here.
    """

    ids: list[int]
    first: int
    words: list[int]
    best: list[bool]
    begin: int = 0
    end: int = 0


def words_of(text: str) -> tuple[list[str], list[int]]:
    """Words, and for each character the number of its word (white space: of the word before)."""
    words: list[str] = []
    numbers: list[int] = []
    is_open = False
    for character in text:
        if character.isspace() or ord(character) == 0x3000:
            is_open = False
        elif _alone(character):
            words.append(character)
            is_open = False
        elif is_open:
            words[-1] += character
        else:
            words.append(character)
            is_open = True
        numbers.append(len(words) - 1)
    return words, numbers


def _alone(character: str) -> bool:
    code = ord(character)
    chinese = 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    return chinese or unicodedata.category(character)[0] in "PS"


def answer_words(text: str, numbers: Sequence[int], answer: str, start: int) -> tuple[int, int]:
    """Numbers of the first and last word of an answer.

    Args:
        text: The text.
        numbers: From `words_of`.
        answer: A stretch of it.
        start: Where it begins; up to three characters too far right. Negative: look for it.

    Raises:
        RecordError: It does not stand there.
    """
    begins = [start - back for back in range(4)] if start >= 0 else [text.find(answer)]
    found = next((b for b in begins if b >= 0 and text[b : b + len(answer)] == answer), -1)
    if found < 0:
        raise RecordError(f"the answer {answer!r} is not in the text", reason="answer not in text")
    last = found + len(answer) - 1
    while found < last and (text[found].isspace() or text[found] in _SKIPPED):
        found += 1
    return numbers[found], numbers[last]


def windows(
    question: str,
    words: Sequence[str],
    tokenizer: Any,
    seq_len: int,
    *,
    stride: int = STRIDE,
    answer: tuple[int, int, str] | None = None,
) -> list[Window]:
    """The windows over a text.

    Args:
        question: The question; at most 64 pieces of it are read.
        words: The words of the text.
        tokenizer: Cuts words into pieces.
        seq_len: Most ids of a window.
        stride: From one window to the next.
        answer: Numbers of the first and last word of the answer, and the answer.

    Raises:
        RecordError: The question leaves no room for the text.
    """
    asked = tokenizer.tokenize(question)[:MOST_QUESTION]
    room = seq_len - len(asked) - 3
    if room < 1:
        raise RecordError(f"the question has {len(asked)} tokens", reason="question too long")
    cut = [tokenizer.tokenize(word) for word in words]
    pieces = [piece for parts in cut for piece in parts]
    owner = [number for number, parts in enumerate(cut) for _ in parts]
    begin = end = -1
    if answer is not None:
        begin = owner.index(answer[0])
        end = len(owner) - 1 - owner[::-1].index(answer[1])
        begin, end = _tightened(pieces, begin, end, tokenizer.tokenize(answer[2]))
    stretches = _stretches(len(pieces), room, stride)
    first = len(asked) + 2
    head = ["[CLS]", *asked, "[SEP]"]
    found = []
    for number, (start, stop) in enumerate(stretches):
        inside = start <= begin and end < stop
        found.append(
            Window(
                tokenizer.ids_of([*head, *pieces[start:stop], "[SEP]"]),
                first,
                owner[start:stop],
                [_best_window(stretches, place) == number for place in range(start, stop)],
                begin - start + first if inside else 0,
                end - start + first if inside else 0,
            )
        )
    return found


def _stretches(total: int, room: int, stride: int) -> list[tuple[int, int]]:
    found, start = [], 0
    while True:
        length = min(room, total - start)
        found.append((start, start + length))
        if start + length >= total:
            return found
        start += min(length, stride)


def _best_window(stretches: Sequence[tuple[int, int]], place: int) -> int:
    """The window with the most text on the smaller side, and among those the longest."""
    scores = [
        min(place - start, stop - 1 - place) + 0.01 * (stop - start)
        if start <= place < stop
        else -1.0
        for start, stop in stretches
    ]
    return int(np.argmax(scores))


def _tightened(
    pieces: Sequence[str], begin: int, end: int, wanted: Sequence[str]
) -> tuple[int, int]:
    """The stretch between two pieces that is the answer exactly, or both as they are."""
    for first in range(begin, end + 1):
        last = first + len(wanted) - 1
        if last <= end and list(pieces[first : last + 1]) == list(wanted):
            return first, last
    return begin, end


def windows_of(
    document: Document, tokenizer: Any, seq_len: int, *, answered: bool = True
) -> list[Window]:
    """The windows of a record, the answer marked if wished."""
    text, question = (unescape(document.fields[key]) for key in ("input", "question"))
    words, numbers = words_of(text)
    answer = None
    if answered:
        wanted = document.references[0]
        answer = (*answer_words(text, numbers, wanted, document.start), wanted)
    stride = min(STRIDE, max(1, seq_len // 2))
    return windows(question, words, tokenizer, seq_len, stride=stride, answer=answer)


# --- answers --------------------------------------------------------------------------------------


def best_answers(
    words: Sequence[str],
    found: Sequence[Window],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    num_best: int = NUM_BEST,
    most: int = MOST_ANSWER,
) -> list[tuple[str, float]]:
    """The likeliest stretches of a text, the best first, with probabilities among them.

    Args:
        words: The words of the text.
        found: Its windows.
        scores: For each window the scores of its places as begin and as end.
        num_best: Begins and ends of a window that are tried, and answers that are kept.
        most: Pieces of the longest answer.
    """
    tried: list[tuple[float, int, int]] = []
    for window, (begins, ends) in zip(found, scores):
        places = range(window.first, window.first + len(window.words))
        firsts = [i for i in _largest(begins, num_best) if i in places]
        lasts = [i for i in _largest(ends, num_best) if i in places]
        for i in firsts:
            if not window.best[i - window.first]:
                continue
            for j in lasts:
                if i <= j < i + most:
                    words_ij = (window.words[i - window.first], window.words[j - window.first])
                    tried.append((float(begins[i] + ends[j]), *words_ij))
    texts: dict[str, float] = {}
    for score, i, j in sorted(tried, key=lambda item: -item[0]):
        text = joined(list(words[i : j + 1]))
        if text not in texts:
            texts[text] = score
        if len(texts) == num_best:
            break
    values = np.array(list(texts.values()) or [0.0])
    chances = np.exp(values - values.max())
    return list(zip(texts, (chances / chances.sum()).tolist()))


def _largest(scores: np.ndarray, count: int) -> list[int]:
    return np.argsort(-scores, kind="stable")[:count].tolist()
