"""Counts of what was read and what became of it, as they are written to report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.data.documents import Problem

EXAMPLES = 5
_ORDER = ("documents", "characters", "draws", "duplicates", "pieces", "instances", "rows",
          "tokens", "targets", "target_characters")  # fmt: skip
_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_LENGTHS = (*(f"<= {bound}" for bound in _BOUNDS), f"> {_BOUNDS[-1]}")


class Report:
    """Counts that can be added up, stored and taken up again.

    Attributes:
        counts: By name.
        sources: By name of the source, then by name.
        tasks: Instances of each task.
        notes: What else was counted, by name.
        lengths: Instances by length; keys are upper bounds.
        invalid: By reason: how many, and the first examples.
        largest_subs: Largest sub index of each base id, over all instances.
        seconds: Time of the work.
    """

    def __init__(self, names: Sequence[str], seq_len: int):
        self.seq_len = seq_len
        self.counts: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.tasks: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.lengths: Counter[str] = Counter()
        self.invalid: dict[str, dict[str, Any]] = {}
        self.largest_subs: dict[int, int] = {}
        self.seconds = 0.0

    def problem(self, problem: Problem, count: int = 1) -> None:
        """Counts something that could not be used and keeps the first examples."""
        entry = self.invalid.setdefault(problem.reason, {"count": 0, "first": []})
        entry["count"] += count
        if len(entry["first"]) < EXAMPLES:
            entry["first"].append(str(problem))

    def first_problems(self) -> str:
        """The first thing of each kind that could not be used, in words."""
        return "; ".join(entry["first"][0] for entry in self.invalid.values()) or "no documents"

    def count(self, source: str, numbers: Mapping[str, int]) -> None:
        """Adds to the counts of a source and to the sums."""
        self.counts.update(numbers)
        self.sources[source].update(numbers)

    def add_lengths(self, tokens: np.ndarray) -> None:
        """Counts instances by their lengths."""
        counts = np.bincount(np.searchsorted(_BOUNDS, tokens), minlength=len(_LENGTHS))
        self.lengths.update(dict(zip(_LENGTHS, counts.tolist())))

    def merge(self, other: Report) -> None:
        """Adds the counts of another report; not its problems and subs."""
        for name in ("counts", "tasks", "notes", "lengths"):
            getattr(self, name).update(getattr(other, name))
        for name, counter in other.sources.items():
            self.sources[name].update(counter)

    def room(self, subs: Mapping[int, int]) -> dict[int, int]:
        """The largest subs with those of one more instance."""
        merged = dict(self.largest_subs)
        for base, sub in subs.items():
            merged[base] = max(sub, merged.get(base, 0))
        return merged

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        counts = self.counts
        room = counts["rows"] * self.seq_len
        invalid = {r: self.invalid[r] for r in sorted(self.invalid)}
        return {
            **{name: counts[name] for name in _ORDER},
            "fill": round(counts["tokens"] / room, 4) if room else 0.0,
            "too_long": invalid.get("too long", {"count": 0})["count"],
            "num_invalid": sum(entry["count"] for entry in invalid.values()),
            "invalid": invalid,
            "notes": {name: self.notes[name] for name in sorted(self.notes) if self.notes[name]},
            "lengths": {name: self.lengths[name] for name in _LENGTHS if self.lengths[name]},
            "tasks": {name: self.tasks[name] for name in sorted(self.tasks)},
            "sources": {name: dict(counter) for name, counter in self.sources.items()},
            "seconds": round(self.seconds, 2),
        }

    def state(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        state = {name: value for name, value in vars(self).items() if name != "seq_len"}
        return {**state, "largest_subs": list(self.largest_subs.items())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        for name in ("counts", "tasks", "notes", "lengths"):
            setattr(self, name, Counter(state[name]))
        self.sources = {name: Counter(of) for name, of in state["sources"].items()}
        self.invalid = {reason: dict(entry) for reason, entry in state["invalid"].items()}
        self.largest_subs = {int(base): int(sub) for base, sub in state["largest_subs"]}
        self.seconds = state["seconds"]
