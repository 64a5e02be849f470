"""Position information: distance buckets and rotations by a sub index."""

from __future__ import annotations

import numpy as np


def distance_buckets(
    num_buckets: int, max_distance: int, *, bidirectional: bool = True
) -> np.ndarray:
    """Buckets of every distance from -max_distance to max_distance.

    Distances beyond fall into the bucket of the end of the table. Half of the buckets are for
    keys after the query; in each half the first half is exact, the rest logarithmic. Where keys
    after the query are never seen, all buckets are for those before it.

    Returns:
        int32 [2 * max_distance + 1]; entry r + max_distance is the bucket of r = key - query.

    Source: T5 (Raffel et al. 2020), relative position buckets.
    """
    half = num_buckets // 2 if bidirectional else num_buckets
    exact = half // 2
    distance = np.arange(-max_distance, max_distance + 1)
    size = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    with np.errstate(divide="ignore"):
        log = np.log(size.astype(np.float32) / np.float32(exact)) / np.float32(
            np.log(max_distance / exact)
        )
    far = exact + np.trunc(np.maximum(log, 0) * (half - exact)).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(far, half - 1))
    later = half if bidirectional else 0
    return (bucket + np.where(distance > 0, later, 0)).astype(np.int32)


def rotary_frequencies(width: int, base: float = 10000.0) -> np.ndarray:
    """Angles per unit of position, fp32 [width / 2]: base^(-2m/width).

    Source: Su et al., "RoFormer", section 3.2.2.
    """
    return (base ** (-np.arange(0, width, 2, dtype=np.float64) / width)).astype(np.float32)
