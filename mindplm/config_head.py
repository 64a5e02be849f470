"""The settings of a head: what a network learns on top of its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindplm.config_shape import ShapeConfig
from mindplm.strict import require

FORMS = {"classification": "text", "pairs": "text", "extraction": "tokens", "reading": "span"}
"""Kind of a task's data -> what its head scores."""


@dataclass(frozen=True)
class HeadConfig:
    """A head that is trained on a task, with the network below it."""

    task: str
    """Task file. Of classification and pairs the head learns the class of a text, of extraction
    the tag of each token, of reading the beginning and end of the answer."""
    states: Literal["understanding", "writing", "both"] = "understanding"
    """What the head looks at in a network with two decoders; others have understanding only."""

    def __post_init__(self) -> None:
        require(self.task != "", "head.task is empty, expected a task file")


def form_of(shape: ShapeConfig) -> str:
    """What a head scores for data of a shape; ConfigError if there is no head for it."""
    known = ", ".join(FORMS)
    require(shape.kind in FORMS, f"head.task: its shape is {shape.kind}, a head learns {known}")
    return FORMS[shape.kind]


def classes_of(shape: ShapeConfig) -> tuple[str, ...]:
    """What the scores of a head stand for, in order."""
    form = form_of(shape)
    if form == "text":
        return tuple(shape.labels)
    if form == "span":
        return ("begin", "end")
    return ("O", *(f"{mark}-{kind}" for kind in shape.types for mark in "BI"))
