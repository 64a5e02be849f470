"""The CPM-Bee network: embedding with sub indices, tree position bias, encoder, projection.

Suffixes of tensor names: b rows, t positions of this call, s key positions, d hidden, h heads,
e extension classes, n flattened targets, v classes.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.nn.attention import Attention
from mindplm.nn.block import Block
from mindplm.nn.feed_forward import GatedFeedForward
from mindplm.nn.kernels import MASKED, masked, on_cpu, one_below
from mindplm.nn.layers import RMSNorm, parameter
from mindplm.nn.loss import IGNORE, ProjectedNll, masked_sums, take_positions
from mindplm.nn.mask import packed_mask
from mindplm.nn.position import distance_buckets, rotary_frequencies

RESIDUAL_KEEP = 1 / 1.05
SUB_SCALE = 16.0
OTHER_SAMPLE = 1


class Rotate(nn.Cell):
    """Rows of the table divided by sqrt(D) and rotated by 16 * sub over the whole width."""

    def __init__(self, hidden_size: int, dtype):
        super().__init__()
        self.root = hidden_size**-0.5
        frequencies = rotary_frequencies(hidden_size)
        if dtype != ms.float32:
            # Half-precision checkpoints were trained with frequencies rounded to half.
            frequencies = frequencies.astype(np.float16).astype(np.float32)
        self.frequencies = Tensor(frequencies)
        self.half = hidden_size // 2

    def construct(self, rows, subs):
        e = rows * self.root
        angle = (subs.astype(ms.float32) * SUB_SCALE).expand_dims(-1) * self.frequencies
        cos, sin = ops.cos(angle).astype(e.dtype), ops.sin(angle).astype(e.dtype)
        low, high = e[..., : self.half], e[..., self.half :]
        return ops.concat((low * cos - high * sin, high * cos + low * sin), -1)


class SubRows(nn.Cell):
    """Embeddings of (id, sub) pairs from a table."""

    def __init__(self, hidden_size: int, dtype):
        super().__init__()
        self.gather = ops.Gather()
        self.rotate = Rotate(hidden_size, dtype)

    def construct(self, table_vd, ids, subs):
        return self.rotate(self.gather(table_vd, ids, 0), subs)


class SubEmbedding(nn.Cell):
    """The table of the vocabulary and the embeddings of (id, sub) pairs from it."""

    def __init__(self, num_rows: int, hidden_size: int, *, std: float, dtype):
        super().__init__()
        self.weight = parameter((num_rows, hidden_size), dtype, std)
        self.rows = SubRows(hidden_size, dtype)

    def construct(self, ids, subs):
        return self.rows(self.weight, ids, subs)


class TreeIndex(nn.Cell):
    """Rows of the bias table, by distance inside a segment and by the way between segments."""

    def __init__(self, config: CpmBeeConfig):
        super().__init__()
        self.buckets = Tensor(distance_buckets(config.num_distance_buckets, config.max_distance))
        self.max_distance = config.max_distance
        self.other = config.num_distance_buckets - 1 + OTHER_SAMPLE
        self.first = config.num_distance_buckets - 1

    def relation(self, segment_rel_br, query_bt, same_bts, key_segments_bs):
        """Relation value of each pair: a lookup in the row's flat matrices."""
        place = query_bt.expand_dims(2) + key_segments_bs.expand_dims(1)
        place = ops.where(same_bts, place, ops.zeros_like(place))
        batch, num, keys = place.shape
        flat = ops.gather_d(segment_rel_br, 1, place.reshape((batch, num * keys)))
        return flat.reshape((batch, num, keys))

    def construct(self, query, key, segment_rel_br):
        """Row of the bias table for each pair of positions, int32 [B, T, S].

        Args:
            query: positions, segment_ids, num_segments, rel_offset, sample_ids, spans [B, T].
            key: positions, segment_ids, sample_ids, spans [B, S].
            segment_rel_br: Flat relation matrices of the row's samples.
        """
        same_bts = ops.logical_and(
            query[4].expand_dims(2) == key[2].expand_dims(1),
            query[5].expand_dims(2) == key[3].expand_dims(1),
        )
        base_bt = query[1] * query[2] + query[3]
        relation = self.relation(segment_rel_br, base_bt, same_bts, key[1])
        distance = key[0].expand_dims(1) - query[0].expand_dims(2)
        distance = ops.clamp(distance, -self.max_distance, self.max_distance)
        bucket = ops.gather(self.buckets, distance + self.max_distance, 0)
        inside = ops.where(relation == 0, bucket, relation + self.first)
        return ops.where(same_bts, inside, ops.full_like(inside, self.other))


def bias_rows(table_rh, index_bts):
    """Bias [B, H, T, S] in the table's type."""
    return ops.gather(table_rh.swapaxes(0, 1), index_bts, 1).transpose((1, 0, 2, 3))


class TreeBias(nn.Cell):
    """The table of position biases and what is looked up in it."""

    def __init__(self, config: CpmBeeConfig, *, std: float, dtype):
        super().__init__()
        rows = config.num_distance_buckets + config.num_segment_buckets
        self.weight = parameter((rows, config.num_heads), dtype, std)
        self.index = TreeIndex(config)

    def construct(self, index_bts):
        """Bias [B, H, T, S] in the table's type."""
        return bias_rows(self.weight, index_bts)


class Geometry(nn.Cell):
    """What packed rows say about pairs of positions; integers only."""

    def __init__(self, config: CpmBeeConfig, dtype):
        super().__init__()
        self.index, self.dtype = TreeIndex(config), dtype

    def construct(self, context, samples, segments, spans, counts, offsets, length, segment_rel):
        """(rows of the bias table, mask) [B, T, T], and 1 or 0 for real and empty positions."""
        order = ops.arange(samples.shape[1]).astype(ms.int32)
        positions = order.expand_dims(0)
        query = (positions, segments, counts, offsets, samples, spans)
        index = self.index(query, (positions, segments, samples, spans), segment_rel)
        mask = packed_mask(context != 0, samples, spans, length)
        row = (order.expand_dims(0) < length.expand_dims(1)).astype(self.dtype)
        return index, mask, row.expand_dims(2)


class MaskedBias(nn.Cell):
    """Bias with the mask in it, fp32 [B, H, T, T].

    On CPU the mask is one more row of the table: to choose between two values for every head and
    pair would take longer than to look the value up.
    """

    def construct(self, table_rh, index_btt, mask_btt):
        if on_cpu():
            rows, heads = table_rh.shape
            low_1h = ops.full((1, heads), MASKED, dtype=ms.float32)
            table_rh = ops.concat((table_rh.astype(ms.float32), low_1h), 0)
            index_btt = ops.where(mask_btt, index_btt, ops.full_like(index_btt, rows))
            return bias_rows(table_rh, index_btt)
        return masked(bias_rows(table_rh, index_btt), mask_btt.expand_dims(1))


class Frame(nn.Cell):
    """Bias and empty positions of packed rows; each pipeline stage makes its own."""

    def __init__(self, config: CpmBeeConfig, dtype):
        super().__init__()
        self.geometry, self.bias = Geometry(config, dtype), MaskedBias()

    def construct(self, table_rh, *columns):
        index, mask, row = self.geometry(*columns)
        return self.bias(table_rh, index, mask), row


class CpmBee(nn.Cell):
    """The CPM-Bee encoder.

    Args:
        config: Sizes.
        dtype: Type of weights and activations.
        vocab_rows: Rows of the embedding, at least the vocabulary; 0: as many.
        stages: Pipeline stage of each block, ascending; (): all in one.

    Source: OpenBMB CPM-Bee, as described in its public release.
    """

    def __init__(
        self,
        config: CpmBeeConfig,
        dtype=ms.float32,
        *,
        vocab_rows: int = 0,
        stages: tuple[int, ...] = (),
    ):
        super().__init__()
        self.config = config
        hidden, std = config.hidden_size, 1.0
        rows = vocab_rows or config.vocab_size
        self.embed = SubEmbedding(rows, hidden, std=config.init_std, dtype=dtype)
        self.position_bias = TreeBias(config, std=std, dtype=dtype)
        self.stages = stages or (0,) * config.num_layers
        self.frames = nn.CellList([Frame(config, dtype) for _ in range(max(self.stages) + 1)])
        self.blocks = nn.CellList([self.block(config, i, dtype) for i in range(config.num_layers)])
        self.final_norm = RMSNorm(hidden, config.eps, dtype=dtype)
        self.root = hidden**-0.5
        self.dtype = dtype
        self.matmul = ops.MatMul(transpose_b=True)

    @staticmethod
    def block(config: CpmBeeConfig, layer: int, dtype) -> Block:
        """Builds one block; a half that the configuration removes has no parameters."""
        hidden, inner = config.hidden_size, config.num_heads * config.head_dim
        # Every product is divided by the root of its input width; that is done where it is
        # cheapest: in the norm before it, on the joined heads, inside the gate.
        sizes = {"std": 1.0, "out_std": config.residual_init_std, "dtype": dtype}
        parts: list = [None, None, None, None]
        if layer not in config.no_attention:
            parts[0] = RMSNorm(hidden, config.eps, scale=hidden**-0.5, dtype=dtype)
            parts[1] = Attention(
                hidden, config.num_heads, config.head_dim, out_scale=inner**-0.5, **sizes
            )
        if layer not in config.no_ffn:
            scale = config.ffn_size**-0.5
            parts[2] = RMSNorm(hidden, config.eps, scale=hidden**-0.5, dtype=dtype)
            parts[3] = GatedFeedForward(hidden, config.ffn_size, out_scale=scale, **sizes)
        return Block(*parts, keep=RESIDUAL_KEEP)

    def bias(self, columns):
        """Bias with the mask in it, fp32 [B, H, T, T], and 1 or 0 for real and empty positions."""
        return self.frames[0](self.position_bias.weight, *columns[2:])

    def encode(self, columns):
        """`construct` with rows and positions in one axis, [B * T, D]."""
        ids = columns[0]
        x = self.embed(ids, columns[1]).reshape((ids.shape[0] * ids.shape[1], -1))
        bias, row = self.frames[0](self.position_bias.weight, *columns[2:])
        stage = 0
        for i in range(len(self.blocks)):
            if self.stages[i] != stage:
                stage = self.stages[i]
                bias, row = self.frames[stage](self.position_bias.weight, *columns[2:])
            x = self.blocks[i](x, bias, row)
        return self.final_norm(x)

    def construct(self, *columns):
        """Hidden states [B, T, D] after the final norm, of packed rows.

        Args:
            columns: ids, subs, context, sample_ids, segment_ids, spans, num_segments, rel_offset
                int32 [B, T], length int32 [B], segment_rel int32 [B, R].
        """
        batch, num = columns[0].shape
        return self.encode(columns).reshape((batch, num, -1))

    def project(self, hidden_nd, ext_ids, ext_sub, num_ext):
        """Scores of all classes, [N, V + E]; classes beyond num_ext cannot win."""
        base = self.matmul(hidden_nd * self.root, self.embed.weight)
        ext = self.matmul(hidden_nd, self.embed(ext_ids, ext_sub))
        ext = masked(ext, one_below(ext_ids.shape[0], num_ext).expand_dims(0))
        return ops.concat((base.astype(ms.float32), ext), -1)


class CpmBeeLoss(nn.Cell):
    """Sum and count of the token losses of packed rows; the training cell.

    construct takes the columns of `mindplm.data.packing.COLUMNS` in their order.
    """

    def __init__(self, model: CpmBee):
        super().__init__(auto_prefix=False)
        self.model = model
        self.nll = ProjectedNll(model.root)
        self.no_bias = Tensor([0.0], ms.float32)

    def token_losses(self, *columns):
        """Losses [B * T] in nats; those of unlabelled places mean nothing."""
        hidden = self.model(*columns[:10])
        target_pos, targets, ext_ids, ext_sub, num_ext = columns[10:]
        wanted = take_positions(hidden, target_pos)
        labels = ops.clamp(targets.reshape((-1,)), min=0)
        embed = self.model.embed
        real = one_below(ext_ids.shape[0], num_ext)
        ext = embed(ext_ids, ext_sub)
        return self.nll(wanted, embed.weight, ext, real, labels, self.no_bias)[0]

    def tokens(self, *columns):
        """Losses [B * T] in nats, and 1 or 0 for places with and without a target, both fp32."""
        real = columns[11].reshape((-1,)) != IGNORE
        return self.token_losses(*columns), real.astype(ms.float32)

    def construct(self, *columns):
        return masked_sums(self.token_losses(*columns), columns[11].reshape((-1,)))
