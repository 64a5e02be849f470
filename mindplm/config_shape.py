"""The settings of shapes: how the lines of common kinds of data files become records."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from mindplm.config_slots import SlotsConfig
from mindplm.strict import at_least, require

_INPUTS = {
    "classification": {"input": "text"},
    "pairs": {"sentence1": "sentence1", "sentence2": "sentence2"},
    "choices": {"input": "text"},
}


@dataclass(frozen=True)
class ShapeConfig:
    """A common kind of data file, and the record that each of its lines becomes."""

    kind: Literal[
        "classification",
        "pairs",
        "choices",
        "extraction",
        "reading",
        "translation",
        "dialogue",
        "records",
        "signal",
    ]
    """classification: a text and a label; pairs: two texts and a label; choices: a text and
    answers to choose from; extraction: a token and its BIO tag on each line, a blank line between
    sentences; reading: JSON in SQuAD's form; translation: two texts; dialogue: a list of messages;
    records: lines are records; signal: lines are signals, which t5 is pretrained on, such as
    {"text": ..., "entities": [...]}."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a .tsv or .csv file without header; none: its first line names
    them. JSON lines name their own."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Key of the record -> column, of classification, pairs and choices; none: input -> text, of
    pairs sentence1 and sentence2. Of signal, its fields -> columns; none: they have the same
    names."""
    signal: str = ""
    """Which signal the lines are of, such as wikipedia_entities; empty: every line says it itself,
    as {"signal": name, "data": {...}}."""
    max_chars: int = 0
    """Characters of an input that are kept, its beginning; 0: all, and a record that does not fit
    into a row is counted as too long."""
    question: str = ""
    """What is asked; empty: nothing."""
    question_key: str = "question"
    """Its key in the record."""
    label: str = "label"
    """Column of the label; of choices the answer's number from 0, or its text."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label -> words for it, in the order of the options; of classification and pairs."""
    options: tuple[str, ...] = ()
    """Columns of the answers to choose from, or one column that holds a list of them."""
    show_options: bool = True
    """Whether the record shows the options to choose from."""
    answer: Literal["option", "text", "input"] = "option"
    """What is predicted: the option's tag such as <option_1>, or its words; or with input, the
    first of the inputs from the words, so that the words are chosen that explain it best (a noisy
    channel; how frequent they are does not count then)."""
    answer_key: str = "answer"
    """Key of the words in the record, where the input is predicted from them."""
    gap: str = ""
    """A mark in the inputs, such as #idiom#, that is a blank to be filled with the answer."""
    patterns: dict[str, str] = field(default_factory=dict)
    """Column -> regular expression whose named groups become further columns."""
    types: dict[str, str] = field(default_factory=dict)
    """Type in the tags -> words for it, the keys of the answer; of extraction."""
    joiner: str = "；"
    """Between several texts of one type, or the texts of a list."""
    source: str = "source"
    """Column of the text to translate."""
    target: str = "target"
    """Column of its translation."""
    forward: str = "翻译"
    """Instruction to translate source into target; empty: not this direction."""
    backward: str = ""
    """Instruction to translate target into source; empty: not this direction."""
    turns: Literal["each", "together"] = "each"
    """Of dialogue, each: a record for each answer with all turns before it, as a model is asked in
    a chat; together: one record for the dialogue, whose answers are its blanks (an answer then
    sees what the user said after it)."""
    markers: bool = False
    """Whether the vocabulary has the tags <用户> and <AI>; otherwise turns begin as the published
    checkpoints saw them."""
    slots: SlotsConfig = field(default_factory=SlotsConfig)
    """Of classification and pairs: the label's words are filled into a template (cpt)."""
    balance: bool = False
    """Whether records of rare labels are used more often, so that all labels are as frequent."""

    def __post_init__(self) -> None:
        here = f"shape of kind {self.kind}"
        fixed = self.kind in ("classification", "pairs")
        require(not fixed or len(self.labels) > 1, f"{here}: labels needs at least two labels")
        at_least("shape", self, max_chars=0)
        words = list(self.labels.values())
        require(len(set(words)) == len(words), f"{here}: two labels have the same words")
        require(self.kind != "choices" or bool(self.options), f"{here}: options names no column")
        require(self.kind != "extraction" or bool(self.types), f"{here}: types names no type")
        names = list(self.types.values())
        require(len(set(names)) == len(names), f"{here}: two types have the same words")
        require(
            self.kind != "translation" or bool(self.forward or self.backward),
            f"{here}: forward and backward are both empty",
        )
        require(self.joiner != "", f"{here}: joiner is empty")
        require(
            self.show_options or self.answer != "option",
            f"{here}: answer=option needs show_options=true",
        )
        require(
            self.answer != "input" or not (self.gap or self.answer_key in self.shown),
            f"{here}: answer=input needs a key {self.answer_key!r} that no input has, and no gap",
        )
        require(
            not self.balance or fixed or self.kind == "choices",
            f"{here}: balance needs labels, so classification, pairs or choices",
        )
        count = len(self.shown)
        require(
            not self.slots.templates or (fixed and 1 <= count <= 2),
            f"{here}: slots need classification or pairs with one or two inputs, got {count}",
        )
        for column, pattern in self.patterns.items():
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{here}: pattern of {column}: {error}") from None
            require(bool(groups), f"{here}: pattern of {column} has no named group (?P<name>...)")

    @property
    def shown(self) -> dict[str, str]:
        """`inputs`, or what stands for none."""
        return self.inputs or _INPUTS.get(self.kind, {})
