"""Instances: one record, or one record with in-context samples after it.

The columns that have an entry per token are the rows of one int32 matrix, so that packing,
storing and sending an instance is one copy each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mindplm.data.cpm_bee import Sample

TOKEN_COLUMNS = (
    *("ids", "subs", "context", "sample_ids", "segment_ids", "spans", "num_segments"),
    "rel_offset",
)
"""Rows of a token matrix."""
IDS, SUBS, CONTEXT, SAMPLES, SEGMENTS, SPANS, NUM_SEGMENTS, REL_OFFSET = range(8)


@dataclass
class Instance:
    """What is packed as a whole.

    Attributes:
        tokens: TOKEN_COLUMNS by tokens, int32; `spans` is 0.
        segment_rel: The relation matrices of all samples, flat, one after the other.
        task: Number of its task, for reports.
        num_chars: Characters of the predicted texts.
        raw: Whatever the caller wants to find again in the row.
    """

    tokens: np.ndarray
    segment_rel: np.ndarray
    task: int = 0
    num_chars: int = 0
    raw: Any = None

    def __len__(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def num_targets(self) -> int:
        """Each predicted token and begin mark has one target."""
        return len(self) - int(np.count_nonzero(self.tokens[CONTEXT]))

    @cached_property
    def largest_subs(self) -> dict[int, int]:
        """Largest sub index of each base id that has one above 0."""
        largest: dict[int, int] = {}
        for i in np.flatnonzero(self.tokens[SUBS]):
            base, sub = int(self.tokens[IDS, i]), int(self.tokens[SUBS, i])
            largest[base] = max(sub, largest.get(base, 0))
        return largest

    @property
    def num_ext(self) -> int:
        """Extra output classes; the subs of a base start at 1 without gaps."""
        return sum(self.largest_subs.values())


def make_instance(sample: Sample, *, task: int = 0, raw: Any = None) -> Instance:
    """An instance of one record."""
    tokens = np.zeros((len(TOKEN_COLUMNS), len(sample)), np.int32)
    tokens[IDS] = sample.ids
    tokens[SUBS] = sample.subs
    tokens[CONTEXT] = sample.context
    tokens[SEGMENTS] = sample.segs
    tokens[NUM_SEGMENTS] = sample.num_segments
    return Instance(tokens, sample.rel, task, sample.num_chars, raw)


def append_incontext(instance: Instance, sample: Sample) -> Instance:
    """Puts an example behind the record; its answer is context.

    Args:
        instance: The record and the examples so far.
        sample: The example, converted with the state of the sample before it.
    """
    added = make_instance(sample).tokens
    added[CONTEXT] = 1
    added[SAMPLES] = instance.tokens[SAMPLES, -1] + 1
    added[REL_OFFSET] = len(instance.segment_rel)
    return replace(
        instance,
        tokens=np.concatenate([instance.tokens, added], axis=1),
        segment_rel=np.concatenate([instance.segment_rel, sample.rel]),
    )
