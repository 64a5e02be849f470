"""Records as the pair of texts that an encoder-decoder reads and writes.

What is read of a record: the text under "input", "text" or "context", or lines "key: value" for
other keys; with a question (under "query", "question" or "prompt") it becomes

    TEXT: the text QUERY: the question

and without one it is the text alone. "options", a list or a dict of texts, are listed in the
question: at its {options}, or behind it. What is written stands under `<ans>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mindplm.data.causal_text import plain_text
from mindplm.data.cpm_bee import ANSWER, RecordError
from mindplm.data.tasks import language_of

CONTEXT_KEYS = ("input", "text", "context")
QUERY_KEYS = ("query", "question", "prompt")
OPTIONS, PLACE = "options", "{options}"
_QUOTED = {"en": '"{}"', "zh": "\u201c{}\u201d"}
_COMMAS = {"en": ", ", "zh": "\u3001"}
_OR = {"en": " or ", "zh": "\u8fd8\u662f"}


class Source(NamedTuple):
    """What is read: a text, and what is asked about it; None: nothing is, the text is all."""

    context: str
    query: str | None = None

    def __str__(self) -> str:
        return "".join(self.parts)

    @property
    def parts(self) -> tuple[str, str]:
        """The part that may be cut, and the part that is kept; joined they are what is read."""
        if self.query is None:
            return self.context, ""
        asked = f"QUERY: {self.query}"
        return (f"TEXT: {self.context} ", asked) if self.context else ("", asked)


def options_text(options: Sequence[str], language: str) -> str:
    """Options as a question lists them: "a", "b" or "c"."""
    quoted = [_QUOTED[language].format(option) for option in options]
    first, last = quoted[:-1], quoted[-1]
    return _COMMAS[language].join(first) + _OR[language] + last if first else last


def source_of(record: Mapping[str, Any]) -> Source:
    """What is read of a record.

    Raises:
        RecordError: A value is no text, or there is none.
    """
    query: str | None = None
    lines = []
    for key, value in record.items():
        if key in (ANSWER, OPTIONS):
            continue
        text = plain_text(value, key)
        if key in QUERY_KEYS:
            query = text if query is None else f"{query}\n{text}"
        else:
            lines.append(text if key in CONTEXT_KEYS else f"{key}: {text}")
    context = "\n".join(line for line in lines if line)
    if not context and not query:
        keys = ", ".join(map(str, record)) or "none"
        raise RecordError(
            f'expected a record with a text, such as {{"input": "...", "{ANSWER}": ""}}; its keys '
            f"are {keys}",
            reason="no text",
        )
    return Source(context, _asked(query, record, context))


def _asked(query: str | None, record: Mapping[str, Any], context: str) -> str | None:
    """The question with its options."""
    if OPTIONS not in record:
        return query
    given = record[OPTIONS]
    given = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(given, (list, tuple)) or not given:
        raise RecordError(f"record.{OPTIONS} holds no texts to choose from", reason="no options")
    texts = [plain_text(item, OPTIONS) for item in given]
    listed = options_text(texts, language_of((query or context).replace(PLACE, "")))
    if query is None or PLACE not in query:
        return f"{query} {listed}" if query else listed
    return query.replace(PLACE, listed)


class Cut(NamedTuple):
    """Ids that were made to fit, and whether anything was cut off."""

    ids: list[int]
    cut: bool


def source_ids(source: Source, tokenizer: Any, room: int) -> Cut:
    """Ids of what is read, with the end mark; only the context is cut, at its end.

    Raises:
        RecordError: The question alone does not fit, or nothing is read.
    """
    head, tail = (tokenizer.encode(part) for part in source.parts)
    left = room - 1 - len(tail)
    if left < bool(head):
        raise RecordError(
            f"the question has {len(tail)} tokens, seq_len is {room}", reason="too long"
        )
    if not head and not tail:
        raise RecordError("the text to be read has no tokens", reason="no text")
    return Cut([*head[:left], *tail, tokenizer.eos_id], len(head) > left)


def target_ids(text: str, tokenizer: Any, room: int) -> Cut:
    """Ids of what is written, with the end mark."""
    ids = tokenizer.encode(text)
    return Cut([*ids[: room - 1], tokenizer.eos_id], len(ids) > room - 1)
