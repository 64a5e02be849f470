"""What a data set holds, and everything in it that cannot be used, before a run is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data.documents import Document, Problem
from mindplm.data.draw import Work
from mindplm.data.fingerprint import source_names
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.overlap import Mark, Overlap, mark_of, overlap, repeats
from mindplm.data.sources import SourceReader

_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_BARS = 12


@dataclass
class Checked:
    """What was found in the sources of one part (training or validation).

    Attributes:
        name: Name of the part.
        documents: Documents that were read.
        problems: All that cannot be used.
        lengths: Tokens of each record or piece of text.
        answers: Predicted tokens of each.
        labels: How often each label occurs.
        notes: What else was counted, by name.
        repeated: Documents that occur again within the part.
        marks: What tells the documents of each source from others.
    """

    name: str
    documents: int = 0
    problems: list[Problem] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    repeated: Overlap = field(default_factory=Overlap)
    marks: list[list[Mark]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "documents": self.documents,
            "usable": len(self.lengths),
            "problems": dict(Counter(problem.reason for problem in self.problems)),
            "tokens": _quantiles(self.lengths),
            "answer_tokens": _quantiles(self.answers),
            "labels": dict(self.labels.most_common()),
            "notes": {name: count for name, count in sorted(self.notes.items()) if count},
            "repeated": self.repeated.count,
            "repeated_with_answer": self.repeated.with_answer,
        }


def check_sources(
    sources: Sequence[SourceConfig],
    tokenizer: Any,
    settings: RowSettings,
    kind: RowKind,
    name: str = "data",
) -> Checked:
    """Reads all of the sources as preparing rows would, and keeps every problem.

    Args:
        sources: The sources of one part.
        tokenizer: Cuts texts.
        settings: Sizes of rows; a record that does not fit is a problem.
        kind: What the rows are.
        name: Name of the part.
    """
    sources = kind.sources(sources)
    found = Checked(name)
    drawer = kind.drawer(sources, source_names(sources), tokenizer, settings)
    for number, source in enumerate(sources):
        own: list[Mark] = []
        for place, item in enumerate(SourceReader(source)):
            if isinstance(item, Problem):
                found.problems.append(item)
                continue
            found.documents += 1
            own.append(mark_of(item))
            _take(found, item, drawer.many([Work(number, place, 0, item)])[0])
        found.marks.append(own)
    found.repeated = repeats(found.marks)
    return found


def _take(found: Checked, document: Document, drawn: Any) -> None:
    found.problems += drawn.problems
    found.notes.update(getattr(drawn, "counts", {}))
    if document.label:
        found.labels[document.label] += 1
    for instance in drawn.instances:
        found.lengths.append(len(instance))
        found.answers.append(instance.num_targets)


def report_lines(parts: Sequence[Checked], seq_len: int) -> list[str]:
    """The findings for people."""
    lines = []
    for part in parts:
        usable = len(part.lengths)
        lines.append(
            f"{part.name}: {part.documents:,} documents, {usable:,} records or pieces usable, "
            f"{len(part.problems):,} problems"
        )
        if usable:
            lines.append(f"  tokens           {_words(part.lengths)}")
            lines.append(f"  of them answers  {_words(part.answers)}")
            rows = sum(part.lengths) / seq_len
            lines.append(f"  rows             about {rows:,.0f} of {seq_len} tokens, at best")
            lines += [f"  {line}" for line in _bars(part.lengths)]
        if part.labels:
            total = sum(part.labels.values())
            shown = ", ".join(
                f"{label} {count:,} ({100 * count / total:.1f} %)"
                for label, count in part.labels.most_common(20)
            )
            lines.append(f"  labels           {shown}")
        lines += [f"  {name}: {count:,}" for name, count in sorted(part.notes.items()) if count]
        lines += _told(part.repeated, f"occur again within {part.name}")
    if len(parts) > 1:
        lines += _told(leak(parts), f"of {parts[1].name} are in {parts[0].name} too")
    return lines


def leak(parts: Sequence[Checked]) -> Overlap:
    """What the second part has in common with the first."""
    return overlap(parts[0].marks, parts[1].marks)


def picture(parts: Sequence[Checked], title: str = "") -> Any:
    """A histogram of the lengths, as a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="tight")
    axes = figure.add_subplot()
    longest = max((max(part.lengths, default=1) for part in parts), default=1)
    edges = np.linspace(0, longest + 1, min(60, longest + 1) + 1)
    for part in parts:
        axes.hist(
            part.lengths,
            bins=edges.tolist(),
            alpha=0.6,
            label=f"{part.name} ({len(part.lengths):,})",
        )
    axes.set_xlabel("tokens of a record")
    axes.set_ylabel("records")
    axes.set_yscale("symlog")
    axes.grid(alpha=0.3)
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    names = ("least", "median", "p90", "p99", "most")
    found = dict(zip(names, np.quantile(values, _QUANTILES).tolist()))
    return {**found, "sum": float(sum(values))}


def _words(values: Sequence[int]) -> str:
    found = {name: f"{value:,.0f}" for name, value in _quantiles(values).items()}
    return (
        f"{found['least']} to {found['most']}, median {found['median']}, "
        f"90 % up to {found['p90']}, 99 % up to {found['p99']}; {found['sum']} in all"
    )


def _bars(values: Sequence[int]) -> list[str]:
    """A histogram in letters."""
    top = int(np.quantile(values, 0.99)) + 1
    step = max(1, -(-top // _BARS))
    counts = Counter(min(value // step, _BARS) for value in values)
    most = max(counts.values())
    lines = []
    for place in range(min(_BARS, max(counts)) + 1):
        count = counts[place]
        bound = f"{place * step:>5}" if place < _BARS else f"{_BARS * step:>4}+"
        lines.append(f"{bound} {'#' * -(-40 * count // most):<40} {count:,}")
    return lines


def _told(found: Overlap, what: str) -> list[str]:
    if not found.count:
        return []
    lines = [
        f"  {found.count:,} of {found.total:,} documents {what}, {found.with_answer:,} with the "
        "same answer, such as"
    ]
    return lines + [f"    {left} = {right}" for left, right in found.first[:3]]
