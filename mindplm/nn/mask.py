"""Boolean attention masks built from index vectors; True means "may look"."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindplm.nn.kernels import mask_bias


def packed_mask(context_bt, sample_ids_bt, spans_bt, length_b):
    """Mask of packed rows: spans apart, context both ways, predictions causal.

    A query sees a key of its own span if the query's sample is 0 or the key's sample, and the
    key is context or (both are predicted and the key is not later).

    Args:
        context_bt: Boolean, True for context.
        sample_ids_bt: int32, 0 for the main sample.
        spans_bt: int32, number of the instance in the row.
        length_b: int32, tokens in the row.

    Returns:
        Boolean [B, T, T].
    """
    num = context_bt.shape[1]
    order = ops.arange(num).astype(length_b.dtype)
    real = order.expand_dims(0) < length_b.expand_dims(1)
    query, key = context_bt.expand_dims(2), context_bt.expand_dims(1)
    earlier = earlier_mask(num).expand_dims(0)
    sees = ops.logical_or(key, ops.logical_and(ops.logical_not(query), earlier))
    sample_q, sample_k = sample_ids_bt.expand_dims(2), sample_ids_bt.expand_dims(1)
    sample = ops.logical_or(sample_q == 0, sample_q == sample_k)
    span = spans_bt.expand_dims(2) == spans_bt.expand_dims(1)
    both = ops.logical_and(real.expand_dims(2), real.expand_dims(1))
    return ops.logical_and(ops.logical_and(sees, sample), ops.logical_and(span, both))


def span_mask(spans_bt):
    """Mask of rows of spans side by side: every token sees the tokens of its own span.

    Padding sees all spans, so that no row of the mask is empty; nothing sees padding.

    Args:
        spans_bt: int32, number of the span from 1 on, 0 for padding.

    Returns:
        Boolean [B, T, T].
    """
    query, key = spans_bt.expand_dims(2), spans_bt.expand_dims(1)
    return ops.logical_and(key != 0, ops.logical_or(query == 0, query == key))


def causal_mask(spans_bt):
    """`span_mask` in which no token sees a later one.

    Args:
        spans_bt: int32, number of the span from 1 on, 0 for padding.

    Returns:
        Boolean [B, T, T].
    """
    return ops.logical_and(span_mask(spans_bt), earlier_mask(spans_bt.shape[1]).expand_dims(0))


def earlier_mask(num: int):
    """Boolean [T, T] for T positions, true for keys that are not behind the query."""
    order_t = ops.arange(num).astype(ms.int32)
    return order_t.expand_dims(0) <= order_t.expand_dims(1)


def memory_bias(real_bs):
    """fp32 bias [B, 1, 1, S] that hides padding, where real_bs is 0."""
    return mask_bias((real_bs != 0).expand_dims(1))


class SpanFrame(nn.Cell):
    """What attention needs to know about rows of spans, beside their tokens.

    Args:
        causal: No token sees a later one.
        dtype: Type of activations.
    """

    def __init__(self, *, causal: bool, dtype):
        super().__init__()
        self.causal, self.dtype = causal, dtype

    def construct(self, spans_bt):
        """(fp32 bias [B, 1, T, T], ones [1, 1, 1]: no row is left out)."""
        mask_btt = causal_mask(spans_bt) if self.causal else span_mask(spans_bt)
        return mask_bias(mask_btt), ops.ones((1, 1, 1), self.dtype)


class MemoryFrame(nn.Cell):
    """fp32 bias [B, 1, T, S] that hides padding of the rows that other rows look at."""

    def construct(self, ids_bt, real_bs):
        batch, num = ids_bt.shape
        return memory_bias(real_bs).broadcast_to((batch, 1, num, real_bs.shape[1]))
