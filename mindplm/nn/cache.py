"""Key and value caches of fixed length; passed in and out, never stored in a cell."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops


def take_rows(cache_bhsk, parents_b):
    """Reorders the rows of a cache, as a beam search needs."""
    return ops.gather(cache_bhsk, parents_b, 0)


def follow_rows(cache_bhsk, parents_b, prompts: int):
    """`take_rows` where rows move among those of their prompt only: a lone row stays in place."""
    return cache_bhsk if cache_bhsk.shape[0] == prompts else take_rows(cache_bhsk, parents_b)


def place_token(cache_bhsk, new_bh1k, slot_1):
    """Writes one position of every row; slot is an int32 tensor of one element.

    The cache keeps its shape throughout: one that is reshaped on its way out is copied once more.
    """
    batch, num_heads, _, width = cache_bhsk.shape
    count = batch * num_heads
    order = ops.arange(count).astype(ms.int32).expand_dims(1)
    places = (order // num_heads, order % num_heads, ops.zeros_like(order) + slot_1)
    new = new_bh1k.reshape((count, width))
    return ops.tensor_scatter_update(cache_bhsk, ops.concat(places, 1), new)


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

    The rows of a prompt stand side by side, as many for each, and share its keys and values. Only
    what the rows have written moves when they are reordered, and only that is copied.

    Args:
        blocks: The blocks.
        x_b1d: The tokens, one row each.
        bias_bh1s: Bias over the prompt and, behind it, what is written.
        parents_b: The row that each row goes on from, one of the same prompt.
        slot_1: The place of the new token behind the prompt's first entry.
        old: Of each attention k, v of the prompts [P, H, S', K]; then of each k, v of what the
            rows wrote [B, H, S - S', K].

    Returns:
        (x [B, 1, D], the second half of `old`, rows reordered and the new entry written).
    """
    row = ops.ones((1, 1, 1), x_b1d.dtype)
    caches: tuple[Tensor, ...] = ()
    half, number = len(old) // 2, 0
    for block in blocks:
        if block.has_attn:
            attn, h = block.attn, block.seen(x_b1d)
            read = (old[number], old[number + 1])
            place = slot_1 - read[0].shape[2]
            k_old = follow_rows(old[half + number], parents_b, read[0].shape[0])
            v_old = follow_rows(old[half + number + 1], parents_b, read[0].shape[0])
            k = place_token(k_old, attn.split(attn.k(h)), place)
            v = place_token(v_old, attn.split(attn.v(h)), place)
            out = attn.output(attn.attend_after(attn.query(h), *read, k, v, bias_bh1s), row)
            x_b1d = block.joined(x_b1d, out)
            caches = caches + (k, v)
            number += 2
        x_b1d = block.feed(x_b1d)
    return x_b1d, caches
