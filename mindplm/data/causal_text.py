"""Records as the text that a causal language model reads and goes on with.

A record is a dict of texts: "input" is the text itself; other keys stand before it as lines
"key: text", in their order; "title", if the tokenizer has a separator, as CPM-1 reads essays:
title, separator, text. What stands under `<ans>` follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindplm.data.cpm_bee import ANSWER, RecordError

INPUT, TITLE = "input", "title"


@dataclass(frozen=True)
class Framed:
    """A text, and what is read before it; the text is scored, without an end mark.

    Attributes:
        before: What is read; empty: nothing, and the first token of the text is not scored.
        text: What is scored.
    """

    before: str
    text: str


def prompt_ids(record: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Ids of what is read.

    Raises:
        RecordError: A value is no text, or there is none.
    """
    sep = getattr(tokenizer, "sep_id", None)
    ids: list[int] = []
    lines = []
    for key, value in record.items():
        if key == ANSWER:
            continue
        if isinstance(value, Mapping):
            value = "\n".join(f"{name}: {plain_text(item, name)}" for name, item in value.items())
        value = plain_text(value, key)
        if key == TITLE and sep is not None:
            ids = [*tokenizer.encode(value), sep]
        else:
            lines.append(value if key == INPUT else f"{key}: {value}")
    if not lines and not ids:
        raise RecordError(
            f'expected a record with a text, such as {{"{INPUT}": "...", "{ANSWER}": ""}}; its '
            f"keys are {', '.join(map(str, record)) or 'none'}",
            reason="no text",
        )
    return ids + tokenizer.encode("\n".join(lines))


def answer_ids(record: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Ids of the answer and the end mark, if there is one.

    Raises:
        RecordError: There is no answer, or it is no text.
    """
    ids = tokenizer.encode(answer_of(record))
    return [*ids, tokenizer.eos_id] if tokenizer.eos_id >= 0 else ids


def answer_of(record: Mapping[str, Any]) -> str:
    """The text under `<ans>`.

    Raises:
        RecordError: There is no answer, or it is no text.
    """
    answer = record.get(ANSWER)
    if not isinstance(answer, str) or not answer:
        raise RecordError(
            f'expected a text under "{ANSWER}", got {answer!r:.60}', reason="no <ans>"
        )
    return answer


def plain_text(value: Any, key: Any) -> str:
    """A value of a record that must be a text.

    Raises:
        RecordError: It is none.
    """
    if not isinstance(value, str):
        raise RecordError(f"record.{key} is {value!r:.60}; expected a text", reason="not a text")
    return value
