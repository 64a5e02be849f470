"""CPM-Bee for generation: the prompt in one pass, then one token a step over a fixed cache.

The prompt's last column is the first token to write (the BOS of the first blank). It is marked
as no context in the prompt pass, so that the prompt does not see it, and as context in the cache,
where every later token sees every entry.
"""

from __future__ import annotations

from mindspore import nn, ops

from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.nn.cache import read_rows, read_token
from mindplm.nn.kernels import masked


def visible(query_sample_bt, key_sample_bs, key_counts_bs):
    """Mask [B, T, S] of context queries over a cache; a count of 0 marks an empty entry."""
    query, key = query_sample_bt.expand_dims(2), key_sample_bs.expand_dims(1)
    same = ops.logical_or(query == 0, query == key)
    return ops.logical_and(same, (key_counts_bs != 0).expand_dims(1))


class CpmBeePrefill(nn.Cell):
    """Left-padded prompts in, scores after the last column and keys and values out."""

    shares_prompts = True

    def __init__(self, model: CpmBee):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *columns):
        """One pass over the prompts.

        Args:
            columns: ids, subs, positions, context, sample_ids, segment_ids, num_segments,
                rel_offset int32 [B, P], segment_rel [B, R], ext_ids, ext_sub [E], num_ext [1].

        Returns:
            (logits [B, V + E], k of the first attention [B, H, P, K], v of it, k of the second..)
        """
        ids, subs, positions, context, samples, segments, counts, offsets = columns[:8]
        segment_rel, ext_ids, ext_sub, num_ext = columns[8:]
        model = self.model
        one_span = ops.zeros_like(samples)
        query = (positions, segments, counts, offsets, samples, one_span)
        key = (positions, segments, samples, one_span)
        index = model.position_bias.index(query, key, segment_rel)
        earlier = positions.expand_dims(1) <= positions.expand_dims(2)
        is_context = context != 0
        sees = ops.logical_or(
            is_context.expand_dims(1),
            ops.logical_and(ops.logical_not(is_context).expand_dims(2), earlier),
        )
        mask = ops.logical_and(sees, visible(samples, samples, counts))
        bias = masked(model.position_bias(index), mask.expand_dims(1))
        row = ops.ones((1, 1, 1), model.dtype)
        x, caches = read_rows(model.blocks, model.embed(ids, subs), bias, row)
        last = model.final_norm(x[:, -1])
        return (model.project(last, ext_ids, ext_sub, num_ext), *caches)


class CpmBeeStep(nn.Cell):
    """One token of every row in, its scores and the grown cache out."""

    def __init__(self, model: CpmBee):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *columns):
        """One decoding step.

        Args:
            columns: ids, subs, segment_ids, positions int32 [B] of the new tokens; slot [1], where
                they go in the cache; key_positions, key_sample_ids, key_segment_ids,
                key_num_segments [B, C], with the new token in them; num_segments, rel_offset [B];
                segment_rel [B, R]; ext_ids, ext_sub [E], num_ext [1]; parents [B], the row each
                row goes on from; then the caches that `mindplm.nn.cache.read_token` takes.

        Returns:
            (logits [B, V + E], the caches of what is written, reordered, with the new entry).
        """
        ids, subs, segments, positions, slot = columns[:5]
        key_positions, key_samples, key_segments, key_counts = columns[5:9]
        counts, offsets, segment_rel, ext_ids, ext_sub, num_ext, parents = columns[9:16]
        old = columns[16:]
        model = self.model
        zero = ops.zeros_like(positions).expand_dims(1)
        query = (
            positions.expand_dims(1),
            segments.expand_dims(1),
            counts.expand_dims(1),
            offsets.expand_dims(1),
            zero,
            zero,
        )
        key = (key_positions, key_segments, key_samples, ops.zeros_like(key_samples))
        index = model.position_bias.index(query, key, segment_rel)
        mask = visible(zero, key_samples, key_counts)
        bias = masked(model.position_bias(index), mask.expand_dims(1))
        x = model.embed(ids, subs).expand_dims(1)
        x, caches = read_token(model.blocks, x, bias, parents, slot, old)
        last = model.final_norm(x[:, 0])
        return (model.project(last, ext_ids, ext_sub, num_ext), *caches)


def writing_cells(model: CpmBee) -> tuple[CpmBeePrefill, CpmBeeStep]:
    """The two passes of writing over one network."""
    return CpmBeePrefill(model), CpmBeeStep(model)
