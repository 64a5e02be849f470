"""Cleans plain text and cuts what is long at line ends, as the original's `build` does."""

from __future__ import annotations

import re

_BREAK = re.compile(r"<n>|\\r\\n|\\r|\\n")
_GAP = re.compile(r"\n\s*\n")


def clean(text: str) -> str:
    r"""Turns `<n>` and written-out `\n`, `\r` into line breaks; one empty line between parts."""
    return _GAP.sub("\n\n", _BREAK.sub("\n", text.strip()).strip())


def split(text: str, min_length: int, max_length: int) -> list[str]:
    """Cuts a text near its middle, at a line end, until the pieces are short enough.

    Args:
        text: A text.
        min_length: Shorter pieces are left out, as characters.
        max_length: Longer pieces are cut if they have a line end within.
    """
    if len(text) < min_length:
        return []
    if len(text) <= max_length or "\n" not in text.strip():
        return [text]
    middle = len(text) // 2
    cut = text.rfind("\n", 0, middle) + 1 or text.find("\n", middle) + 1
    return [
        part for half in (text[:cut], text[cut:]) for part in split(half, min_length, max_length)
    ]
