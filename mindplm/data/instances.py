"""Instances: one record, or one record with in-context samples after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mindplm.data.cpm_bee import Sample


@dataclass
class Instance:
    """What is packed as a whole: int32 arrays with an entry per token, and `segment_rel`."""

    ids: np.ndarray
    subs: np.ndarray
    context: np.ndarray
    sample_ids: np.ndarray
    segment_ids: np.ndarray
    num_segments: np.ndarray
    rel_offset: np.ndarray
    segment_rel: np.ndarray
    task: int = 0
    num_chars: int = 0
    raw: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def num_targets(self) -> int:
        """Each predicted token and begin mark has one target."""
        return len(self) - int(np.count_nonzero(self.context))

    @cached_property
    def largest_subs(self) -> dict[int, int]:
        """Largest sub index of each base id that has one above 0."""
        largest: dict[int, int] = {}
        for i in np.flatnonzero(self.subs):
            base, sub = int(self.ids[i]), int(self.subs[i])
            largest[base] = max(sub, largest.get(base, 0))
        return largest


def make_instance(sample: Sample, *, task: int = 0, raw: Any = None) -> Instance:
    """An instance of one record."""
    zeros = np.zeros(len(sample), np.int32)
    return Instance(
        ids=sample.ids,
        subs=sample.subs,
        context=sample.context.astype(np.int32),
        sample_ids=zeros,
        segment_ids=sample.segs,
        num_segments=np.full(len(sample), sample.num_segments, np.int32),
        rel_offset=zeros,
        segment_rel=sample.rel,
        task=task,
        num_chars=sample.num_chars,
        raw=raw,
    )


def append_incontext(instance: Instance, sample: Sample) -> Instance:
    """Puts an example behind the record; its answer is context.

    Args:
        instance: The record and the examples so far.
        sample: The example, converted with the state of the sample before it.
    """
    number = int(instance.sample_ids[-1]) + 1
    size = len(sample)

    def extend(column: np.ndarray, values: np.ndarray | int) -> np.ndarray:
        added = np.full(size, values, np.int32) if isinstance(values, int) else values
        return np.concatenate([column, added])

    return replace(
        instance,
        ids=extend(instance.ids, sample.ids),
        subs=extend(instance.subs, sample.subs),
        context=extend(instance.context, 1),
        sample_ids=extend(instance.sample_ids, number),
        segment_ids=extend(instance.segment_ids, sample.segs),
        num_segments=extend(instance.num_segments, sample.num_segments),
        rel_offset=extend(instance.rel_offset, len(instance.segment_rel)),
        segment_rel=np.concatenate([instance.segment_rel, sample.rel]),
    )
