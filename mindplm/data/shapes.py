"""Common kinds of data files as records, with what an evaluation needs: candidates, references.

Texts of the files are escaped, so that a `<` in them opens no tag.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mindplm.config_shape import ShapeConfig
from mindplm.data.cpm_bee import ANSWER
from mindplm.data.dialogue import dialogue_records
from mindplm.data.documents import Document, Item, Lines, Problem, json_lines, text_lines
from mindplm.data.signal_records import signal_documents
from mindplm.data.tables import SEPARATORS, table_rows
from mindplm.errors import DataError
from mindplm.text import escape, unescape

BLANK = "<mask_0>"
OUTSIDE = "O"


class RowError(DataError):
    """A row that is no record of the shape; `reason` is a short name of why, to count by."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def shaped(shape: ShapeConfig, lines: Lines, label: str, suffix: str) -> Iterator[Item]:
    """The records of a file.

    Args:
        shape: What its lines are.
        lines: Its lines.
        label: What it is called in messages.
        suffix: Of its name, in small letters, such as .tsv.

    Yields:
        Documents whose fields are records, and problems.

    Raises:
        DataError: The file as a whole cannot be used.
    """
    if shape.kind == "extraction":
        yield from _extraction(shape, lines, label)
        return
    if shape.kind == "signal":
        yield from signal_documents(shape, lines, label)
        return
    rows = _squad(lines, label) if shape.kind == "reading" else _rows(shape, lines, label, suffix)
    make = _MAKERS[shape.kind]
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        try:
            documents = make(shape, row)
        except RowError as error:
            yield Problem(row.place, error.reason, str(error))
        else:
            yield from documents


def balanced(items: Iterator[Item], counts: Mapping[str, int]) -> Iterator[Item]:
    """The same items, with weights that make all labels as frequent as the most frequent one."""
    most = max(counts.values(), default=1)
    for item in items:
        if isinstance(item, Document) and item.label in counts:
            item = replace(item, weight=most / counts[item.label])
        yield item


def label_counts(items: Iterator[Item]) -> Counter[str]:
    """How many documents have each label."""
    return Counter(item.label for item in items if isinstance(item, Document))


# --- rows -----------------------------------------------------------------------------------------


def _rows(shape: ShapeConfig, lines: Lines, label: str, suffix: str) -> Iterator[Item]:
    if suffix not in SEPARATORS:
        rows = json_lines(lines, label)
    else:
        rows = table_rows(lines, label, separator=SEPARATORS[suffix], columns=shape.columns)
    patterns = {column: re.compile(text, re.DOTALL) for column, text in shape.patterns.items()}
    for row in rows:
        yield row if isinstance(row, Problem) or not patterns else _matched(row, patterns)


def _matched(row: Document, patterns: Mapping[str, re.Pattern[str]]) -> Item:
    """The row with the named groups of the patterns as further columns."""
    fields = dict(row.fields)
    for column, pattern in patterns.items():
        value = fields.get(column)
        match = pattern.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            message = f"column {column!r} does not match shape.patterns.{column}"
            return Problem(row.place, "pattern does not match", message)
        fields.update(match.groupdict())
    return replace(row, fields=fields)


def _squad(lines: Lines, label: str) -> Iterator[Item]:
    """Questions of a file in SQuAD's layout, with their paragraph."""
    try:
        tree = json.loads(b"".join(raw for _, raw in lines).decode("utf-8"))
        articles = [p for article in tree["data"] for p in article["paragraphs"]]
        questions = [(p["context"], question) for p in articles for question in p["qas"]]
    except UnicodeDecodeError:
        raise DataError(f"{label}: not UTF-8") from None
    except ValueError as error:
        raise DataError(f"{label}: not JSON: {error}") from None
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{label}: not in SQuAD's layout (data, paragraphs, context, qas): {error!r}"
        ) from None
    for number, (context, question) in enumerate(questions, start=1):
        name = question.get("id", number) if isinstance(question, dict) else number
        fields = question if isinstance(question, dict) else {}
        yield Document(f"{label}:{name}", {**fields, "context": context})


def _text(row: Document, column: str, joiner: str = "") -> str:
    """The text of a column; numbers as they are written, lists joined."""
    if column not in row.fields:
        keys = ", ".join(row.fields) or "none"
        raise RowError("no column", f"there is no {column!r} (columns: {keys})")
    value = row.fields[column]
    if joiner and isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = joiner.join(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise RowError("wrong type", f"{column!r} holds a value of type {kind}; expected text")
    if not value.strip():
        raise RowError("empty text", f"{column!r} is empty")
    return value.strip()


# --- answers to choose from -----------------------------------------------------------------------


def _choice(shape: ShapeConfig, row: Document) -> list[Document]:
    """A record of which one of several answers is right."""
    if shape.kind == "choices":
        words = _options(shape, row)
        right = _number(_text(row, shape.label), words)
        label = str(right)
    else:
        label, words = _text(row, shape.label), list(shape.labels.values())
        if label not in shape.labels:
            known = ", ".join(shape.labels)
            raise RowError("unknown label", f"label {label!r} is not known; accepted: {known}")
        right = list(shape.labels).index(label)
    kept = shape.max_chars or None
    record: dict[str, Any] = {
        escape(key): escape(_text(row, column, shape.joiner)[:kept])
        for key, column in shape.shown.items()
    }
    candidates: list[Any] = [f"<option_{i}>" for i in range(len(words))]
    if shape.show_options:
        record["options"] = dict(zip(candidates, map(escape, words)))
    if shape.answer == "text":
        candidates = [escape(text) for text in words]
    if shape.question:
        record[escape(shape.question_key)] = escape(shape.question)
    if shape.gap:
        candidates = [{BLANK: candidate} for candidate in candidates]
        _open_gap(record, escape(shape.gap))
    slot = ANSWER
    if shape.answer == "input":
        slot, candidates = escape(shape.answer_key), [escape(text) for text in words]
        record[ANSWER] = record.pop(escape(next(iter(shape.shown))))
    record[slot] = candidates[right]
    return [
        replace(
            row,
            fields=record,
            label=label,
            candidates=tuple(candidates),
            slot=slot,
            references=(candidates[right],),
        )
    ]


def _options(shape: ShapeConfig, row: Document) -> list[str]:
    only = shape.options[0]
    if len(shape.options) > 1 or not isinstance(row.fields.get(only), list):
        words = [_text(row, column) for column in shape.options]
    else:
        words = [_text(Document(row.place, {only: item}), only) for item in row.fields[only]]
    if len(set(words)) < max(2, len(words)):
        raise RowError("unusable options", f"options {words}, expected at least two, all different")
    return words


def _number(label: str, words: list[str]) -> int:
    if label in words:
        return words.index(label)
    if label.isdecimal() and int(label) < len(words):
        return int(label)
    known = f"0 to {len(words) - 1}, or one of {', '.join(words)}"
    raise RowError("unknown label", f"label {label!r} is not known; accepted: {known}")


def _open_gap(record: dict[str, Any], gap: str) -> None:
    """Puts a blank in the place of a mark, which must be there once."""
    found = [key for key, value in record.items() if isinstance(value, str) and gap in value]
    count = sum(record[key].count(gap) for key in found)
    if count != 1:
        raise RowError("no gap", f"the gap {gap!r} occurs {count} times, expected once")
    record[found[0]] = record[found[0]].replace(gap, BLANK)


# --- the other kinds ------------------------------------------------------------------------------


def _reading(shape: ShapeConfig, row: Document) -> list[Document]:
    answers = row.fields.get("answers")
    given = [a for a in answers or [] if isinstance(a, dict)]
    given = [a for a in given if isinstance(a.get("text"), str) and a["text"].strip()]
    texts = [a["text"].strip() for a in given]
    if not texts:
        raise RowError("no answer", "the question has no answer")
    context, start = _text(row, "context"), given[0].get("answer_start", -1)
    if isinstance(start, int) and start >= 0:
        start = max(0, start - row.fields["context"].index(context[0]))
    record = {
        "input": escape(context),
        "question": escape(_text(row, "question")),
        ANSWER: escape(texts[0]),
    }
    start = start if isinstance(start, int) else -1
    return [Document(row.place, record, references=tuple(dict.fromkeys(texts)), start=start)]


def _translation(shape: ShapeConfig, row: Document) -> list[Document]:
    source, target = _text(row, shape.source), _text(row, shape.target)
    made = []
    for prompt, given, wanted in (
        (shape.forward, source, target),
        (shape.backward, target, source),
    ):
        if prompt:
            record = {"input": escape(given), "prompt": escape(prompt), ANSWER: escape(wanted)}
            made.append(Document(row.place, record, label=prompt, references=(wanted,)))
    return made


def _dialogue(shape: ShapeConfig, row: Document) -> list[Document]:
    try:
        made = dialogue_records(
            row.fields, together=shape.turns == "together", markers=shape.markers
        )
    except DataError as error:
        raise RowError("unusable dialogue", str(error)) from None
    return [Document(row.place, record, references=references) for record, references in made]


def _records(shape: ShapeConfig, row: Document) -> list[Document]:
    if ANSWER not in row.fields:
        keys = ", ".join(row.fields) or "none"
        raise RowError("no <ans>", f"record without {ANSWER} (keys: {keys})")
    return [replace(row, references=(plain(row.fields[ANSWER]),))]


def plain(value: Any) -> Any:
    """A part of a record with its texts as people write them, a `<` not doubled."""
    if isinstance(value, str):
        return unescape(value).strip()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


_MAKERS: dict[str, Callable[[ShapeConfig, Document], list[Document]]] = {
    "classification": _choice,
    "pairs": _choice,
    "choices": _choice,
    "reading": _reading,
    "translation": _translation,
    "dialogue": _dialogue,
    "records": _records,
}


# --- tagged tokens --------------------------------------------------------------------------------


def _extraction(shape: ShapeConfig, lines: Lines, label: str) -> Iterator[Item]:
    """A record of each sentence of tagged tokens; blank lines end sentences."""
    place, problem = "", None
    tokens: list[str] = []
    tags: list[str] = []
    for item in text_lines(lines, label):
        here, line = (item.place, "") if isinstance(item, Problem) else item
        if isinstance(item, Problem):
            problem = problem or item
        elif line.strip():
            token, _, tag = line.replace("\t", " ").rpartition(" ")
            place = place if tokens else here
            tokens.append(token or " ")
            tags.append(tag)
            problem = problem or _tag_problem(shape, here, tag)
        elif tokens:
            yield problem or _tagged(shape, place, tokens, tags)
            tokens, tags, problem = [], [], None
    if tokens:
        yield problem or _tagged(shape, place, tokens, tags)


def _tag_problem(shape: ShapeConfig, place: str, tag: str) -> Problem | None:
    mark, _, kind = tag.partition("-")
    if tag == OUTSIDE or (mark in ("B", "I", "E", "S", "M") and kind in shape.types):
        return None
    if not kind or len(mark) != 1:
        message = f"tag {tag!r} is not of the form O, B-type or I-type"
        return Problem(place, "broken tag", message)
    known = ", ".join(shape.types)
    return Problem(place, "unknown label", f"type {kind!r} is not known; accepted: {known}")


def _tagged(shape: ShapeConfig, place: str, tokens: list[str], tags: list[str]) -> Document:
    found = [(shape.types[kind], text) for kind, text in spans(tokens, tags)]
    answer = {}
    for words in shape.types.values():
        texts = dict.fromkeys(text for kind, text in found if kind == words)
        answer[escape(words)] = escape(shape.joiner.join(texts))
    record: dict[str, Any] = {"input": escape(joined(tokens))}
    if shape.question:
        record[escape(shape.question_key)] = escape(shape.question)
    record[ANSWER] = answer
    tagged = tuple(zip(tokens, tags))
    return Document(place, record, references=tuple(dict.fromkeys(found)), tagged=tagged)


def spans(tokens: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """(type, text) of what is tagged; an I- without a B- before it begins a span too."""
    found: list[tuple[str, list[str]]] = []
    before = OUTSIDE
    for token, tag in zip(tokens, tags):
        mark, _, kind = tag.partition("-")
        goes_on = mark in ("I", "E", "M") and before == kind
        if goes_on:
            found[-1][1].append(token)
        elif kind:
            found.append((kind, [token]))
        before = OUTSIDE if mark in ("E", "S") else kind or OUTSIDE
    return [(kind, joined(parts)) for kind, parts in found]


def joined(tokens: list[str]) -> str:
    """Tokens as a text: words of Latin letters are kept apart by spaces, characters are not."""
    text = ""
    for token in tokens:
        apart = text and len(token) > 1 and token.isascii() and text[-1].isascii()
        text += (" " if apart and text[-1] != " " else "") + token
    return text
