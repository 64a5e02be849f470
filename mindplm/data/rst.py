"""Signals with prompts: what is asked about a record, with which options, and the answer.

Source: Yuan and Liu 2022, "reStructured Pre-training"; the prompts are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from mindplm import assets
from mindplm.data.cpm_bee import RecordError
from mindplm.data.pair_text import Source, options_text
from mindplm.data.rst_cases import CASES, Case, Record
from mindplm.errors import ConfigError
from mindplm.strict import suggest
from mindplm.yaml_io import load_yaml

FILE = "signals.yaml"
CHOOSE, WRITE = "mc", "gen"
LANGUAGES = ("en", "zh")
_JOINERS = {"en": "; ", "zh": "\uff1b"}
_PLACE = re.compile(r"\{(\w+)\}")
_TRIES = 24


@dataclass(frozen=True)
class Prompt:
    """One way to ask about the records of a signal.

    Attributes:
        name: SIGNAL.mc.LANGUAGE.NUMBER or SIGNAL.gen.LANGUAGE.NUMBER.
        context: The text that is read, with {field} where fields go.
        query: The question, likewise; {options} are the options.
        ask: What the answer is, see `rst_cases`.
        language: en or zh.
        chooses: Whether there are options.
    """

    name: str
    context: str
    query: str
    ask: tuple[str, ...]
    language: str
    chooses: bool


@dataclass(frozen=True)
class Signal:
    """A kind of records.

    Attributes:
        name: Its name.
        source: Where the public records are from.
        samples: How many of them there are; 0: not known.
        abilities: What a model learns from them.
        fields: Name -> text, texts or number.
        labels: Fixed answers and their Chinese names.
        negatives: Most options besides the answer that other records give.
        prompts: The ways to ask.
    """

    name: str
    source: str
    samples: int
    abilities: tuple[str, ...]
    fields: Mapping[str, str]
    labels: Mapping[str, str]
    negatives: int
    prompts: tuple[Prompt, ...]

    def cases(self, prompt: Prompt, record: Record) -> list[Case]:
        """What a prompt can ask about a record.

        Raises:
            RecordError: A value of the record makes no sense.
        """
        kind, *names = prompt.ask
        return CASES[kind](record, self.labels, *names)

    def words(self, label: str, language: str) -> str:
        """A label in a language."""
        return self.labels[label] if language == "zh" else label


class Ability(NamedTuple):
    """A released model: the signals that it was trained on, and what it is for."""

    signals: tuple[str, ...]
    purpose: str


class Asked(NamedTuple):
    """A question about a record.

    Attributes:
        source: What is read.
        target: What is written.
        options: In the order in which they are listed; (): the question is open.
        prompt: The prompt.
    """

    source: Source
    target: str
    options: tuple[str, ...]
    prompt: Prompt


@cache
def signals() -> Mapping[str, Signal]:
    """All signals by name."""
    tree = load_yaml(assets.path(FILE))["signals"]
    return {name: _signal(name, entry) for name, entry in tree.items()}


@cache
def abilities() -> Mapping[str, Ability]:
    """The released models by name."""
    tree = load_yaml(assets.path(FILE))["abilities"]
    every = tuple(signals())
    return {
        name: Ability(every if entry["signals"] == ["all"] else tuple(entry["signals"] or ()),
                      entry["for"])
        for name, entry in tree.items()
    }  # fmt: skip


def signal(name: str) -> Signal:
    """A signal by name.

    Raises:
        ConfigError: There is none.
    """
    known = signals()
    if name not in known:
        raise ConfigError(f"signal {name!r} is not known{suggest(name, list(known))}")
    return known[name]


def _signal(name: str, entry: Mapping[str, Any]) -> Signal:
    prompts = tuple(
        Prompt(
            f"{name}.{form}.{language}.{number}",
            item.get("context", entry["context"]) or "",
            item[language],
            tuple(item["ask"]),
            language,
            form == CHOOSE,
        )
        for form, key in ((CHOOSE, "choose"), (WRITE, "write"))
        for number, item in enumerate(entry[key])
        for language in LANGUAGES
    )
    return Signal(
        name,
        entry["source"],
        int(entry["samples"]),
        tuple(entry["abilities"]),
        entry["fields"],
        entry.get("labels", {}),
        int(entry.get("negatives", 3)),
        prompts,
    )


# --- one question ---------------------------------------------------------------------------------


def filled(template: str, fields: Mapping[str, Any]) -> str:
    """A text with fields at their {places}; braces in the fields stay as they are."""
    return _PLACE.sub(lambda match: str(fields[match.group(1)]), template)


def render(
    context: str, query: str, fields: Mapping[str, Any], options: Sequence[str], language: str
) -> Source:
    """What is read: the texts of a prompt with the fields of a record and the options."""
    values = {**fields, "options": options_text(options, language) if options else ""}
    return Source(filled(context, values), filled(query, values))


def answer_text(answer: Any, language: str) -> str:
    """An answer as it is written; the parts of one are joined."""
    return answer if isinstance(answer, str) else _JOINERS[language].join(answer)


def ask(kind: Signal, record: Record, others: Sequence[Record], rng: np.random.Generator) -> Asked:
    """Draws a prompt, a case and options.

    Args:
        kind: The signal.
        record: A record of it.
        others: Records of the same signal, for options that the record does not have; the record
            may be among them.
        rng: Source of all draws.

    Raises:
        RecordError: Nothing can be asked about the record.
    """
    for number in rng.permutation(len(kind.prompts)):
        prompt = kind.prompts[number]
        cases = kind.cases(prompt, record)
        if not cases:
            continue
        asked = ask_case(kind, prompt, record, cases[rng.integers(len(cases))], others, rng)
        if asked is not None:
            return asked
    raise RecordError(
        f"nothing can be asked about this record of {kind.name}", reason="nothing to ask"
    )


def ask_case(
    kind: Signal,
    prompt: Prompt,
    record: Record,
    case: Case,
    others: Sequence[Record],
    rng: np.random.Generator,
) -> Asked | None:
    """Asks about one case; None if there is nothing to choose from besides the answer."""
    language = prompt.language
    answer = answer_text(case.answers[rng.integers(len(case.answers))], language)
    options: list[str] = []
    if prompt.chooses:
        options = list(case.options or ())
        if case.options is None:
            options = [answer, *_negatives(kind, prompt, record, case, others, rng)]
        elif answer not in options:
            raise RecordError(
                f"the answer {answer!r:.60} is none of the options", reason="unusable options"
            )
        if len(set(options)) < 2:
            return None
        options = [options[i] for i in rng.permutation(len(options))]
    if case.labelled:
        answer = kind.words(answer, language)
        options = [kind.words(option, language) for option in options]
    fields = {**record, **case.derived}
    source = render(prompt.context, prompt.query, fields, options, language)
    return Asked(source, answer, tuple(options), prompt)


def _negatives(
    kind: Signal,
    prompt: Prompt,
    record: Record,
    case: Case,
    others: Sequence[Record],
    rng: np.random.Generator,
) -> list[str]:
    """Answers of other records that are no right ones here, all different."""
    taken = {_plain(answer_text(right, prompt.language)) for right in case.answers}
    context = filled(prompt.context, {**record, **case.derived}).lower()
    found: list[str] = []
    for text in _answers(kind, prompt, others, rng):
        plain = _plain(text)
        if plain in taken or (case.absent and plain in context):
            continue
        taken.add(plain)
        found.append(text)
        if len(found) == kind.negatives:
            break
    return found


def _answers(
    kind: Signal, prompt: Prompt, others: Sequence[Record], rng: np.random.Generator
) -> Iterator[str]:
    """Answers to the same question of some other records, drawn without replacement."""
    count = min(_TRIES, len(others))
    for number in rng.choice(len(others), count, replace=False) if count else ():
        try:
            cases = kind.cases(prompt, others[number])
        except RecordError:
            continue  # it has a problem of its own, which is told where it is asked about
        if cases:
            answers = cases[rng.integers(len(cases))].answers
            yield answer_text(answers[rng.integers(len(answers))], prompt.language)


def _plain(text: str) -> str:
    return text.strip().lower()
