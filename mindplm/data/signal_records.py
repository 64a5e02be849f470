"""Lines of signals: JSON objects with exactly the fields of their signal."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mindplm.config_shape import ShapeConfig
from mindplm.data.cpm_bee import RecordError
from mindplm.data.documents import Document, Item, Lines, Problem, json_lines
from mindplm.data.rst import Signal, signal

SIGNAL, DATA = "signal", "data"
_LITERAL = "wikipedia_entities"
"""Its public lines are Python literals."""
_PASSAGE = {"qa_dream": ("text", "context")}
"""Where the public records of a signal have a field under another name."""
_WORDS = {"text": "a text", "number": "a number", "texts": "a list of texts"}


def signal_documents(shape: ShapeConfig, lines: Lines, label: str) -> Iterator[Item]:
    """Documents {"signal": name, "data": fields}, and problems.

    Args:
        shape: Names the signal, or nothing: then every line is such an object itself. Its `inputs`
            say which column a field of the signal is.
        lines: Of the file.
        label: What it is called in messages.

    Raises:
        ConfigError: There is no such signal.
    """
    kind = signal(shape.signal) if shape.signal else None
    for line in lines:
        item: Item | None = _literal(line, label) if kind and kind.name == _LITERAL else None
        if item is None:
            item = next(iter(json_lines(iter([line]), label)))
        yield item if isinstance(item, Problem) else _document(shape, kind, item)


def _literal(line: tuple[Any, bytes], label: str) -> Document | None:
    """A line that is a Python literal, which is read without running anything."""
    number, raw = line
    if not raw.lstrip().startswith(b"{'"):
        return None
    try:
        value = ast.literal_eval(raw.decode("utf-8").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None  # the reader of JSON says what is wrong with it
    return Document(f"{label}:{number}", value) if isinstance(value, dict) else None


def _document(shape: ShapeConfig, kind: Signal | None, item: Document) -> Item:
    fields: Any = item.fields
    try:
        if kind is None:
            kind, fields = _named(fields)
        elif shape.inputs:
            missing = [name for name in shape.inputs.values() if name not in fields]
            if missing:
                raise RecordError(f"there is no {missing[0]!r}", reason="no column")
            fields = {field: fields[column] for field, column in shape.inputs.items()}
        fields = checked(kind, fields)
    except RecordError as error:
        return Problem(item.place, error.reason, str(error))
    return replace(item, fields={SIGNAL: kind.name, DATA: fields})


def _named(fields: Mapping[str, Any]) -> tuple[Signal, Any]:
    """The signal and the fields of a line that names its own."""
    if set(fields) != {SIGNAL, DATA}:
        keys = ", ".join(map(str, fields)) or "none"
        raise RecordError(
            f'expected {{"{SIGNAL}": name, "{DATA}": fields}}, the keys are {keys}; or say with '
            "shape.signal which signal the lines are of",
            reason="no signal",
        )
    try:
        return signal(str(fields[SIGNAL])), fields[DATA]
    except ValueError as error:
        raise RecordError(str(error), reason="unknown signal") from None


def checked(kind: Signal, data: Any) -> dict[str, Any]:
    """The fields of a record, each of the type that the signal says.

    Raises:
        RecordError: A field is missing, unknown or of another type.
    """
    if not isinstance(data, Mapping):
        raise RecordError(f"{DATA} is no object with fields", reason="wrong type")
    fields = dict(data)
    old, new = _PASSAGE.get(kind.name, ("", ""))
    if old in fields and new not in fields:
        fields[new] = fields.pop(old)
    known = ", ".join(kind.fields)
    for name in fields:
        if name not in kind.fields:
            raise RecordError(
                f"{kind.name} has no field {name!r}; accepted: {known}", reason="unknown field"
            )
    for name, wanted in kind.fields.items():
        if name not in fields:
            raise RecordError(
                f"{kind.name} needs the field {name!r} (its fields: {known})",
                reason="missing field",
            )
        fields[name] = _typed(name, fields[name], wanted)
    return fields


def _typed(name: str, value: Any, wanted: str) -> Any:
    if wanted == "texts" and isinstance(value, str):
        value = _as_list(value)
    right = {
        "text": isinstance(value, str),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "texts": isinstance(value, list) and all(isinstance(item, str) for item in value),
    }[wanted]
    if not right:
        raise RecordError(
            f"{name} is {value!r:.60}; expected {_WORDS[wanted]}", reason="wrong type"
        )
    if wanted == "text" and not value.strip():
        raise RecordError(f"{name} is empty", reason="empty text")
    return value


def _as_list(text: str) -> Any:
    """A list that stands in a text, as JSON or as a Python literal; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text
