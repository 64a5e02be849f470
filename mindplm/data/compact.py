"""CPM-Bee's rows as one array without what can be computed: how they are stored and sent.

Six of the eight numbers of a token follow from the segment that it is in. What is kept, all int32:
  tokens, segments, subs, spans   how many of each follow
  ids [tokens]
  length [segments]; flags [segments]: context + 2 * sample + 2**16 * span
  position [subs]; value [subs]   of the tokens whose sub index is not 0
  task [spans]
  the relation matrices
"""

from __future__ import annotations

import numpy as np

from mindplm.data.instances import (
    CONTEXT,
    IDS,
    NUM_SEGMENTS,
    REL_OFFSET,
    SAMPLES,
    SEGMENTS,
    SPANS,
    SUBS,
    TOKEN_COLUMNS,
)

_HEAD = 4
_MOST = 1 << 15


def flatten(tokens: np.ndarray, segment_rel: np.ndarray, task_ids: np.ndarray) -> np.ndarray:
    """One int32 array of a row.

    Args:
        tokens: TOKEN_COLUMNS by tokens.
        segment_rel: The relation matrices of all samples, flat, one after the other.
        task_ids: Number of the task of each span.
    """
    marks = tokens[[SEGMENTS, SAMPLES, SPANS]]
    begins = np.flatnonzero((marks[:, 1:] != marks[:, :-1]).any(axis=0)) + 1
    starts = np.concatenate([[0], begins])
    first = tokens[:, starts]
    assert first[[SAMPLES, SPANS]].max() < _MOST, "more samples or spans than a row can have"
    lengths = np.diff(starts, append=tokens.shape[1])
    flags = first[CONTEXT] + (first[SAMPLES] << 1) + (first[SPANS] << 16)
    at = np.flatnonzero(tokens[SUBS])
    head = (tokens.shape[1], len(starts), len(at), len(task_ids))
    parts = (head, tokens[IDS], lengths, flags, at, tokens[SUBS, at], task_ids, segment_rel)
    return np.concatenate(parts, dtype=np.int32, casting="unsafe")


def unflatten(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `flatten` from its result."""
    num, segments, subs, spans = flat[:_HEAD].tolist()
    sizes = (num, segments, segments, subs, subs, spans)
    ends = np.cumsum((_HEAD, *sizes))
    ids, lengths, flags, at, values, tasks = (
        flat[end - size : end] for end, size in zip(ends[1:].tolist(), sizes)
    )
    starts = _sample_starts(flags)
    counts = np.diff(starts, append=segments)
    columns = np.empty((len(TOKEN_COLUMNS), segments), np.int32)
    columns[CONTEXT] = flags & 1
    columns[SAMPLES] = flags >> 1 & (_MOST - 1)
    columns[SPANS] = flags >> 16
    columns[SEGMENTS] = np.arange(segments) - np.repeat(starts, counts)
    columns[NUM_SEGMENTS] = np.repeat(counts, counts)
    columns[REL_OFFSET] = np.repeat(np.cumsum(counts**2) - counts**2, counts)
    tokens = np.repeat(columns, lengths, axis=1)
    tokens[IDS] = ids
    tokens[SUBS] = 0
    tokens[SUBS, at] = values
    return tokens, flat[int(ends[-1]) :], tasks


def _sample_starts(flags: np.ndarray) -> np.ndarray:
    """Number of the first segment of each sample."""
    group = flags >> 1
    return np.concatenate([[0], np.flatnonzero(group[1:] != group[:-1]) + 1])
