"""What can be asked about a record of a signal: the kinds of `ask` of assets/signals.yaml.

Each kind is a function of a record and the names in its `ask`; it gives every case that can be
asked about, so that one of them can be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from mindplm.data.cpm_bee import RecordError

Record = Mapping[str, Any]
POSITIVE, NEGATIVE = 0.6, 0.4
"""A rating from, and up to, which a review is positive and negative; between them it is neither."""


@dataclass(frozen=True)
class Case:
    """One thing to ask about.

    Attributes:
        answers: Texts each of which is right; several parts of one answer are a tuple.
        derived: Further fields for the texts of a prompt.
        options: What there is to choose from; None: the answer and those of other records.
        labelled: Whether answers and options are labels of the signal, which have translations.
        absent: Whether options besides the answer must not occur in the context.
    """

    answers: tuple[Any, ...]
    derived: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] | None = None
    labelled: bool = False
    absent: bool = False


def _value(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """The text of a field."""
    return [Case((record[name],))]


def _listed(record: Record, labels: Mapping[str, str], name: str, options: str) -> list[Case]:
    """The text of a field, one of those of a list."""
    return [Case((record[name],), options=tuple(record[options]))]


def _either(record: Record, labels: Mapping[str, str], name: str, other: str) -> list[Case]:
    """The text of a field, not that of another."""
    return [Case((record[name],), options=(record[name], record[other]))]


def _one(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """Any text of a list."""
    return [Case(tuple(record[name]))] if record[name] else []


def _named(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """Any text of a list, the others to choose from not being in the context."""
    return [Case(tuple(record[name]), absent=True)] if record[name] else []


def _joined(record: Record, labels: Mapping[str, str], *names: str) -> list[Case]:
    """All texts of lists."""
    texts = tuple(text for name in names for text in record[name])
    return [Case((texts,))] if texts else []


def _each(
    record: Record, labels: Mapping[str, str], name: str, items: str, item: str
) -> list[Case]:
    """The text of a field, asked of every text of a list."""
    return [Case((record[name],), {item: text}) for text in record[items]]


def _aligned(
    record: Record, labels: Mapping[str, str], names: str, items: str, item: str
) -> list[Case]:
    """The text at the place of each item of another list; all of them to choose from."""
    answers, asked = record[names], record[items]
    if len(answers) != len(asked):
        raise RecordError(
            f"{items} has {len(asked)} entries, {names} has {len(answers)}; expected as many",
            reason="lists of different length",
        )
    options = tuple(dict.fromkeys(answers))
    return [Case((text,), {item: about}, options) for text, about in zip(answers, asked)]


def _earlier(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """The earlier one of each two of a list in the order of time."""
    return [Case((early,), options=(early, late)) for early, late in _two(record[name])]


def _later(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """The later one."""
    return [Case((late,), options=(early, late)) for early, late in _two(record[name])]


def _two(items: Sequence[str]) -> list[tuple[str, str]]:
    return [(items[i], late) for i in range(len(items)) for late in items[i + 1 :]]


def _next(record: Record, labels: Mapping[str, str], name: str, item: str) -> list[Case]:
    """What follows each entry of a list but the last."""
    events = record[name]
    return [Case((later,), {item: event}) for event, later in zip(events, events[1:])]


def _label(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """A label of the signal, in either language."""
    value = record[name].strip()
    label = next((key for key, words in labels.items() if value in (key, words)), None)
    if label is None:
        raise RecordError(
            f"{name}={value!r} is not known; accepted: {', '.join(labels)}", reason="unknown label"
        )
    return [Case((label,), options=tuple(labels), labelled=True)]


def _polarity(record: Record, labels: Mapping[str, str], name: str) -> list[Case]:
    """The first label for a high rating, the second for a low one; the rating is from 0 to 1."""
    rating = record[name]
    if not 0 <= rating <= 1:
        raise RecordError(
            f"{name}={rating}, expected 0 to 1; bring the scale of the ratings there first",
            reason="rating out of range",
        )
    if NEGATIVE < rating < POSITIVE:
        raise RecordError(f"{name}={rating} is neither good nor bad", reason="undecided rating")
    label = list(labels)[rating <= NEGATIVE]
    return [Case((label,), options=tuple(labels), labelled=True)]


def _typed(record: Record, labels: Mapping[str, str], item: str, *names: str) -> list[Case]:
    """The label that goes with the list that an entry is in; what is in two lists is left out."""
    found: dict[str, set[str]] = {}
    for label, name in zip(labels, names):
        for text in record[name]:
            found.setdefault(text, set()).add(label)
    return [
        Case(tuple(own), {item: text}, tuple(labels), labelled=True)
        for text, own in found.items()
        if len(own) == 1
    ]


CASES: dict[str, Callable[..., list[Case]]] = {
    "value": _value,
    "listed": _listed,
    "either": _either,
    "one": _one,
    "named": _named,
    "joined": _joined,
    "each": _each,
    "aligned": _aligned,
    "earlier": _earlier,
    "later": _later,
    "next": _next,
    "label": _label,
    "polarity": _polarity,
    "typed": _typed,
}
"""By the first word of `ask`; the arguments are a record, the signal's labels, the other words."""
