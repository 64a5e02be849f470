"""The settings of slots: a template around texts, and a mask where the words of a label are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mindplm.strict import require

TEXT_A, TEXT_B, SLOT, SEP = "[texta]", "[textb]", "[mask]", "[sep]"
_MARK = re.compile("(" + "|".join(map(re.escape, (TEXT_A, TEXT_B, SLOT, SEP))) + ")")


@dataclass(frozen=True)
class SlotsConfig:
    """Classification by filling slots: what is asked is a mask that the label's words fill."""

    templates: tuple[str, ...] = ()
    """Of cpt: texts with [texta], [textb] for the inputs and one [mask] for the words, such as
    "评价：[texta]，总体感觉很[mask]。"; [sep] separates. Several ones vote. None: no slots."""
    written: str = ""
    """A template with the [mask] that the writing decoder is asked with; those of `templates` then
    have none. Empty: it is asked with what is read."""
    states: Literal["understanding", "writing"] = "understanding"
    """The decoder that fills the slots."""
    strip_first: bool = True
    """Whether punctuation of ASCII at the end of the first text goes."""
    strip_second: bool = True
    """The same of the second text."""

    def __post_init__(self) -> None:
        if not self.templates:
            require(not self.written, "shape.slots: written needs templates")
            return
        require(
            not self.written or self.states == "writing",
            "shape.slots: written is for the writing decoder, so for states=writing",
        )
        for text in self.templates:
            require(
                text.count(TEXT_A) == 1 and text.count(TEXT_B) < 2,
                f"shape.slots: template {text!r}, expected one {TEXT_A} and at most one {TEXT_B}",
            )
            require(
                (text if not self.written else self.written).count(SLOT) == 1
                and (not self.written or SLOT not in text),
                f"shape.slots: expected one {SLOT} in {self.written or text!r} and no other",
            )


def pieces_of(template: str) -> list[str]:
    """A template cut at its marks, which are pieces themselves."""
    return [piece for piece in _MARK.split(template) if piece]
