"""T5's denoising: runs of tokens are cut out, marked by sentinels, and become the target.

Source: Raffel et al. 2020, section 3.1.4, and the program of T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np

DENSITY, SPAN = 0.15, 3.0
NUM_SENTINELS = 100
Flags = Union[Sequence[int], np.ndarray]


class Counts(NamedTuple):
    """Tokens that are cut out, and in how many runs."""

    noise: int
    spans: int


def counts(length: int, density: float = DENSITY, span: float = SPAN) -> Counts:
    """How much of a text is cut out; halves are rounded to even."""
    length = max(length, 2)
    noise = int(np.round(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(span))), 1)
    return Counts(noise, spans)


def segment_sizes(flags: Flags) -> np.ndarray:
    """Sizes of the parts of len(flags) + 1 items: a flag of 1 begins a new part behind it."""
    numbers = np.cumsum([0, *flags])
    return np.bincount(numbers)


def shuffled_flags(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Flags for `segment_sizes` that make so many parts of so many items."""
    flags = (np.arange(items - 1) < parts - 1).astype(np.int64)
    rng.shuffle(flags)
    return flags


def noise_mask(length: int, noise_flags: Flags, other_flags: Flags) -> np.ndarray:
    """True where a token is cut out: other and noise parts in turn, other first."""
    noise, other = segment_sizes(noise_flags), segment_sizes(other_flags)
    sizes = np.stack([other, noise], 1).reshape(-1)
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)[:length]


def draw_mask(
    length: int, rng: np.random.Generator, density: float = DENSITY, span: float = SPAN
) -> np.ndarray:
    """A random mask of a text of so many tokens."""
    whole = max(length, 2)
    noise, spans = counts(length, density, span)
    flags = shuffled_flags(noise, spans, rng)
    return noise_mask(length, flags, shuffled_flags(whole - noise, spans, rng))


def replace_runs(ids: Sequence[int], mask: np.ndarray, first_sentinel: int) -> list[int]:
    """Each run where the mask is True becomes one sentinel; their ids count down."""
    result: list[int] = []
    number, before = 0, False
    for token, masked in zip(ids, mask.tolist()):
        if not masked:
            result.append(int(token))
        elif not before:
            result.append(first_sentinel - number)
            number += 1
        before = masked
    return result


def corrupt(
    ids: Sequence[int], mask: np.ndarray, first_sentinel: int, eos_id: int
) -> tuple[list[int], list[int]]:
    """(what is read, what is written) of a text, both with the end mark."""
    mask = np.asarray(mask, bool)
    read = replace_runs(ids, mask, first_sentinel)
    return [*read, eos_id], [*replace_runs(ids, ~mask, first_sentinel), eos_id]


def raw_length(input_len: int, density: float = DENSITY, span: float = SPAN) -> tuple[int, int]:
    """(most tokens of a text whose corrupted form fits, length of its target)."""

    def lengths(length: int) -> tuple[int, int]:
        noise = int(round(length * density))
        spans = int(round(noise / span))
        return length - noise + spans + 1, noise + spans + 1

    length = input_len
    while lengths(length + 1)[0] <= input_len:
        length += 1
    while lengths(length)[0] > input_len:
        length -= 1
    read, written = lengths(length)
    if density == 0.5 and written > read:
        length, written = length - 1, written - 1
    return length, written
