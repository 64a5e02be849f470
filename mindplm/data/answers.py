"""What was written for a CPM-Bee prompt, as texts and back in its record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mindplm.data.cpm_bee import ANSWER
from mindplm.text import escape, unescape
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

if TYPE_CHECKING:
    from mindplm.data.prompts import Prompt


def answers(
    pairs: Sequence[tuple[int, int]],
    prompt: Prompt,
    table: Mapping[int, str],
    tokenizer: CpmBeeTokenizer,
    stop: Sequence[str] = (),
) -> list[str | None]:
    """Decodes what was written, blank by blank.

    Args:
        pairs: (class, number of its blank) in the order of writing.
        prompt: What was asked.
        table: The prompt's table of its batch.
        tokenizer: Of the model.
        stop: A text ends before the first of these.

    Returns:
        A text for each blank, a literal `<` doubled; None for blanks that were not reached.
    """
    texts: list[str | None] = []
    for blank in prompt.blanks:
        classes = [token for token, number in pairs if number == blank.number]
        texts.append(answer(classes, table, tokenizer, stop) if classes else None)
    return texts


def answer(
    classes: Sequence[int],
    table: Mapping[int, str],
    tokenizer: CpmBeeTokenizer,
    stop: Sequence[str] = (),
    *,
    is_open: bool = False,
) -> str:
    """Decodes one blank; see `answers`.

    Args:
        classes: What was written, with or without the end mark.
        table: Class -> text.
        tokenizer: Of the model.
        stop: The text ends before the first of these.
        is_open: More may follow: an end that may yet become one of `stop` is left out.
    """
    if classes and classes[-1] == tokenizer.eos_id:
        classes = classes[:-1]
    if not stop:
        return tokenizer.decode(classes, table)
    plain = [piece(token, table, tokenizer) for token in classes]
    text = "".join(plain)
    found = [place for place in map(text.find, stop) if place >= 0]
    end = min(found) if found else len(text)
    if is_open and not found:
        end -= max(_overlap(text, word) for word in stop)
    whole, size = 0, 0
    while whole < len(plain) and size + len(plain[whole]) <= end:
        size += len(plain[whole])
        whole += 1
    shown = tokenizer.decode(classes[:whole], table)
    if whole == len(plain) or size == end:
        return shown
    tag = classes[whole] in table or plain[whole] in tokenizer.special_tokens
    if is_open and not found and tag:
        return shown
    return shown + escape(plain[whole][: end - size])


def piece(token: int, table: Mapping[int, str], tokenizer: CpmBeeTokenizer) -> str:
    """The text of a class, nothing doubled."""
    return unescape(table[token]) if token in table else tokenizer.id_to_token[token]


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of the text that a word begins with, and is longer than."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)


def write_back(
    record: Mapping[str, Any], prompt: Prompt, texts: Sequence[str | None]
) -> dict[str, Any]:
    """A copy of the record with a text at the place of each blank; the record is not changed."""
    filled = copy.deepcopy(dict(record))
    for blank, text in zip(prompt.blanks, texts):
        place, key = filled, ANSWER
        for step in blank.path:
            place, key = place[key], step
        place[key] = text
    return filled
