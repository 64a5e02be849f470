"""The settings of a head: what a network learns on top of its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindplm.config_shape import ShapeConfig
from mindplm.strict import at_least, require

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
    lm_weight: float = 0.5
    """Of gpt1: weight of the language model's loss on the task's texts beside the task's loss."""
    symmetric: bool = False
    """Of gpt1: pairs are read in both orders, since they are alike or not whichever comes first."""
    choices: int = 0
    """Of gpt1: answers of each record of the kind choices; 0: the columns that the shape names."""
    crf: bool = False
    """Tags are scored together by a conditional random field, and only legal ones are given; of
    extraction only. Its passes over the tokens make compiling slower the longer a row is."""

    def __post_init__(self) -> None:
        require(self.task != "", "head.task is empty, expected a task file")
        at_least("head", self, lm_weight=0, choices=0)


@dataclass(frozen=True)
class MarkedForm:
    """How an example of marked sequences is laid out, as GPT-1 reads them.

    Attributes:
        task: classification, entailment, similarity or multiple_choice.
        num_sequences: Sequences of an example.
        num_outputs: Scores of the head, for each sequence or for all together.
    """

    task: str
    num_sequences: int
    num_outputs: int

    @property
    def chooses(self) -> bool:
        """Whether the sequences of an example compete."""
        return self.task == "multiple_choice"


def marked_form(shape: ShapeConfig, head: HeadConfig) -> MarkedForm:
    """The form of a task's examples; ConfigError if there is none for its data."""
    if shape.kind == "choices":
        count = head.choices or len(shape.options)
        require(count > 1, "head.choices: say how many answers each record has, at least 2")
        return MarkedForm("multiple_choice", count, 1)
    if shape.kind == "pairs":
        task = "similarity" if head.symmetric else "entailment"
        return MarkedForm(task, 1 + head.symmetric, len(shape.labels))
    require(
        shape.kind == "classification",
        f"head.task: its shape is {shape.kind}, gpt1 learns classification, pairs, choices",
    )
    return MarkedForm("classification", 1, len(shape.labels))


def form_of(shape: ShapeConfig) -> str:
    """What a head scores for data of a shape; ConfigError if there is no head for it."""
    known = ", ".join(FORMS)
    require(shape.kind in FORMS, f"head.task: its shape is {shape.kind}, a head learns {known}")
    return FORMS[shape.kind]


def check_crf(head: HeadConfig, form: str) -> None:
    """ConfigError if the head's settings and what it scores do not go together."""
    require(
        not head.crf or form == "tokens", "head.crf=true is for tags of tokens, so for extraction"
    )


def classes_of(shape: ShapeConfig) -> tuple[str, ...]:
    """What the scores of a head stand for, in order."""
    form = form_of(shape)
    if form == "text":
        return tuple(shape.labels)
    if form == "span":
        return ("begin", "end")
    return ("O", *(f"{mark}-{kind}" for kind in shape.types for mark in "BI"))
