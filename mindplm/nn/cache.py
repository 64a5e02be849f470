"""Key and value caches of fixed length; passed in and out, never stored in a cell."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops


def take_rows(cache_bhsk, parents_b):
    """Reorders the rows of a cache, as a beam search needs."""
    return ops.gather(cache_bhsk, parents_b, 0)


def place_token(cache_bhsk, new_bh1k, slot_1):
    """Writes one position of every row; slot is an int32 tensor of one element."""
    places = ops.arange(cache_bhsk.shape[2]).astype(ms.int32)
    here = (places == slot_1).reshape((1, 1, -1, 1))
    return ops.where(here, new_bh1k, cache_bhsk)
