"""Key and value caches of fixed length; passed in and out, never stored in a cell."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops


def take_rows(cache_bhsk, parents_b):
    """Reorders the rows of a cache, as a beam search needs."""
    return ops.gather(cache_bhsk, parents_b, 0)


def place_token(cache_bhsk, new_bh1k, slot_1):
    """Writes one position of every row; slot is an int32 tensor of one element."""
    batch, num_heads, num, width = cache_bhsk.shape
    places = ops.arange(batch * num_heads).astype(ms.int32) * num + slot_1
    flat = cache_bhsk.reshape((-1, width))
    new = new_bh1k.reshape((-1, width))
    return ops.tensor_scatter_update(flat, places.expand_dims(1), new).reshape(cache_bhsk.shape)


def read_rows(blocks, x_btd, bias_bhts, row_bt1):
    """Runs whole rows through blocks.

    Returns:
        (x [B, T, D], (k of the first attention [B, H, T, K], v of it, k of the second, ...)).
    """
    caches: tuple[Tensor, ...] = ()
    for block in blocks:
        if block.has_attn:
            attn, h = block.attn, block.seen(x_btd)
            k_bhsk, v_bhsk = attn.split(attn.k(h)), attn.split(attn.v(h))
            out = attn.output(attn.attend(attn.query(h), k_bhsk, v_bhsk, bias_bhts), row_bt1)
            x_btd = block.joined(x_btd, out)
            caches = caches + (k_bhsk, v_bhsk)
        x_btd = block.feed(x_btd)
    return x_btd, caches


def read_token(blocks, x_b1d, bias_bh1s, parents_b, slot_1, old):
    """Runs one token of every row through blocks, with the keys and values of those before it.

    Args:
        blocks: The blocks.
        x_b1d: The tokens.
        bias_bh1s: Bias over the cache, the new token's place among it.
        parents_b: The row of the caches that each row goes on from.
        slot_1: The place of the new token in the caches.
        old: k, v of the first attention, k of the second, ...; [B, H, S, K] each.

    Returns:
        (x [B, 1, D], the caches with the rows reordered and the new entry written).
    """
    row = ops.ones((1, 1, 1), x_b1d.dtype)
    caches: tuple[Tensor, ...] = ()
    number = 0
    for block in blocks:
        if block.has_attn:
            attn, h = block.attn, block.seen(x_b1d)
            k = place_token(take_rows(old[number], parents_b), attn.split(attn.k(h)), slot_1)
            v = place_token(take_rows(old[number + 1], parents_b), attn.split(attn.v(h)), slot_1)
            out = attn.output(attn.attend(attn.query(h), k, v, bias_bh1s), row)
            x_b1d = block.joined(x_b1d, out)
            caches = caches + (k, v)
            number += 2
        x_b1d = block.feed(x_b1d)
    return x_b1d, caches
