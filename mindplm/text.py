"""Texts that people write, as the CPM-Bee tokenizer wants them: `<` doubled, dialogues laid out.

In a text `<name>` is a tag and `<<` a literal `<`. The tokenizer refuses a `<` that is neither, as
in "a < b"; `escape_lenient` doubles just those, `escape` doubles every one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mindplm.errors import DataError
from mindplm.tokenizers.cpm_bee import RENAMED, SPECIALS, escape, unescape

__all__ = ["TAGS", "dialogue", "escape", "escape_lenient", "leaves", "lenient_record", "unescape"]

TAGS = (*(name for name in SPECIALS if name not in RENAMED), "<eod>")
"""Tags of the published vocabulary; each but `<eod>` is in every vocabulary."""

SPEAKERS = {"<用户>": "用户：", "<AI>": "AI："}
"""Marker of a turn -> how the published checkpoints were shown its speaker."""

_OPENING = re.compile(r"<<|<[^<][^<>]*>|<")
_MARKER = re.compile("<<|" + "|".join(SPEAKERS))


def leaves(value: Any) -> Iterator[str]:
    """All texts of a value of a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list) and value and isinstance(value[0], int):
        yield " ".join(map(str, value))  # a sentence of ids
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def escape_lenient(text: str, tags: Collection[str] = TAGS) -> str:
    """Doubles the `<` that neither open a known tag nor are doubled already.

    A text that the tokenizer accepts comes back as it is, so to do it twice changes nothing; for
    the same reason the `<<` of "cout << x" is left alone and reads as one `<`. Use `escape` for a
    text that is to be taken literally.

    Args:
        text: Any text.
        tags: The tags that are known: `special_tokens` of the tokenizer. With `<mask>` its numbered
            forms (`<mask_0>`) are known too.
    """
    if "<" not in text:
        return text
    parts, position = [], 0
    while match := _OPENING.search(text, position):
        parts.append(text[position : match.start()])
        found = match.group()
        if found == "<<" or (found != "<" and _is_known(found, tags)):
            parts.append(found)
            position = match.end()
        else:
            parts.append("<<")
            position = match.start() + 1
    return "".join([*parts, text[position:]])


def dialogue(text: str) -> str:
    r"""Lays out a dialogue whose turns begin with `<用户>` (the user) or `<AI>`.

    "<用户>你好<AI>你好！<用户>再见<AI>" becomes
    "用户： 你好\n<sep>AI： 你好！\n<sep>用户： 再见\n<sep>AI：", the form in which the published
    checkpoints saw dialogues; their answer then begins with a space. What stands before the first
    marker becomes a part of its own. Spaces and line feeds around a turn are dropped. A text
    without markers comes back as it is.
    """
    turns: list[str] = []
    speaker, start = "", 0
    for match in _MARKER.finditer(text):
        if match.group() == "<<":
            continue
        turns.append(_turn(speaker, text[start : match.start()]))
        speaker, start = SPEAKERS[match.group()], match.end()
    if not turns:
        return text
    turns.append(_turn(speaker, text[start:]))
    return "\n<sep>".join(turn for turn in turns if turn)


def lenient_record(value: Any, tags: Collection[str] = TAGS) -> Any:
    """A copy of a record whose keys and texts are escaped and whose dialogues are laid out.

    A marker that the vocabulary has as a tag of its own is left as it is. Values that are neither
    text nor dict come back as they are.

    Args:
        value: A record, or a part of one.
        tags: See `escape_lenient`.

    Raises:
        DataError: Two keys become one.
    """
    if isinstance(value, str):
        own = any(marker in tags for marker in SPEAKERS)
        return escape_lenient(value if own else dialogue(value), tags)
    if not isinstance(value, Mapping):
        return value
    copy: dict[Any, Any] = {}
    for key, item in value.items():
        name = escape_lenient(key, tags) if isinstance(key, str) else key
        if name in copy:
            raise DataError(f"two keys of the record both read {name!r} when '<' is escaped")
        copy[name] = lenient_record(item, tags)
    return copy


def _is_known(tag: str, tags: Collection[str]) -> bool:
    return tag in tags or "<" + tag[1:-1].split("_", 1)[0] + ">" in tags


def _turn(speaker: str, text: str) -> str:
    text = text.strip(" \n")
    return f"{speaker} {text}" if speaker and text else speaker or text
