"""The T5 network, its training cell, and its two passes of writing.

Suffixes of tensor names: b rows, t positions of this call, s key positions, d hidden, h heads,
n flattened, v classes.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindplm.models.t5.config import T5Config
from mindplm.nn.attention import Attention
from mindplm.nn.block import Block, Merge
from mindplm.nn.decoder import first_token, next_token
from mindplm.nn.dropout import Dropout
from mindplm.nn.feed_forward import FeedForward, GatedFeedForward
from mindplm.nn.kernels import gelu_tanh, mask_bias
from mindplm.nn.layers import Embedding, Flatten, Linear, RMSNorm, parameter
from mindplm.nn.loss import IGNORE, Labels, TokenNll, masked_sums
from mindplm.nn.mask import MemoryFrame, earlier_mask, memory_bias
from mindplm.nn.position import distance_buckets
from mindplm.nn.table_loss import ShardedLoss


class Lookup(nn.Cell):
    """Bias of attention by the bucket of the distance from query to key, one number a head."""

    def __init__(self, config: T5Config, *, bidirectional: bool):
        super().__init__()
        table = distance_buckets(
            config.num_buckets, config.max_distance, bidirectional=bidirectional
        )
        self.buckets, self.furthest = Tensor(table), config.max_distance

    def construct(self, table_ch, query_t, key_s):
        """fp32 [1, H, T, S] for int32 positions of queries and keys."""
        apart_ts = key_s.expand_dims(0) - query_t.expand_dims(1)
        apart_ts = ops.clamp(apart_ts, -self.furthest, self.furthest) + self.furthest
        bias_tsh = ops.gather(table_ch, ops.gather(self.buckets, apart_ts, 0), 0)
        return bias_tsh.transpose((2, 0, 1)).expand_dims(0).astype(ms.float32)


class RelativeBias(nn.Cell):
    """The table of a stack's biases and what is looked up in it."""

    def __init__(self, config: T5Config, *, bidirectional: bool, dtype):
        super().__init__()
        shape = (config.num_buckets, config.num_heads)
        self.weight = parameter(shape, dtype, config.hidden_size**-0.5)
        self.lookup = Lookup(config, bidirectional=bidirectional)

    def construct(self, query_t, key_s):
        """fp32 [1, H, T, S] for int32 positions of queries and keys."""
        return self.lookup(self.weight, query_t, key_s)


class Frame(nn.Cell):
    """What attention of whole rows to themselves needs to know, beside their tokens."""

    def __init__(self, config: T5Config, *, bidirectional: bool, dtype):
        super().__init__()
        self.lookup = Lookup(config, bidirectional=bidirectional)
        self.bidirectional, self.dtype = bidirectional, dtype

    def construct(self, table_ch, real_bt):
        """(fp32 bias [B or 1, H, T, T], ones [1, 1, 1]: no row is left out).

        Args:
            table_ch: Biases of the buckets.
            real_bt: int32, 0 for padding; only looked at if bidirectional.
        """
        order_t = ops.arange(real_bt.shape[1]).astype(ms.int32)
        if self.bidirectional:
            hidden = memory_bias(real_bt)
        else:
            hidden = mask_bias(earlier_mask(real_bt.shape[1]).expand_dims(0))
        bias = self.lookup(table_ch, order_t, order_t) + hidden
        return bias, ops.ones((1, 1, 1), self.dtype)


def attention(config: T5Config, dtype) -> Attention:
    """Attention without the usual factor on the queries."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    made = Attention(
        hidden,
        config.num_heads,
        config.head_dim,
        std=hidden**-0.5,
        out_std=inner**-0.5,
        query_scale=1.0,
        dtype=dtype,
    )
    made.q.weight.init_std = (hidden * config.head_dim) ** -0.5
    return made


def block(config: T5Config, dtype) -> Block:
    """Self-attention and feed-forward, each behind a norm."""
    hidden, ffn = config.hidden_size, config.ffn_size
    std, out_std = hidden**-0.5, ffn**-0.5
    if config.gated:
        inner: nn.Cell = GatedFeedForward(
            hidden, ffn, std=std, out_std=out_std, activation=gelu_tanh, dtype=dtype
        )
    else:
        inner = FeedForward(hidden, ffn, std=std, out_std=out_std, activation=ops.relu, dtype=dtype)
    norms = [RMSNorm(hidden, config.eps, dtype=dtype) for _ in range(2)]
    return Block(norms[0], attention(config, dtype), norms[1], inner)


class DecoderBlock(Block):
    """`Block` with attention to the encoder's states between its halves."""

    def __init__(self, config: T5Config, dtype):
        plain = block(config, dtype)
        super().__init__(plain.attn_norm, plain.attn, plain.ffn_norm, plain.ffn)
        self.cross_norm = RMSNorm(config.hidden_size, config.eps, dtype=dtype)
        self.cross, self.drop_cross = attention(config, dtype), Dropout()
        self.merge_cross = Merge()

    def memory(self, memory_bsd):
        """Keys and values of the encoder's states, [B, H, S, K] each."""
        cross = self.cross
        return cross.split(cross.k(memory_bsd)), cross.split(cross.v(memory_bsd))

    def across(self, x_btd, k_bhsk, v_bhsk, bias_b1ts):
        """The half that looks at the encoder."""
        cross = self.cross
        q_bhtk = cross.query(self.cross_norm(x_btd))
        row = ops.ones((1, 1, 1), x_btd.dtype)
        return self.crossed(
            x_btd, cross.output(cross.attend(q_bhtk, k_bhsk, v_bhsk, bias_b1ts), row)
        )

    def crossed(self, x_btd, out_btd):
        """The stream after the attention to the encoder has given its output."""
        return self.merge_cross(x_btd, self.drop_cross(out_btd))

    def construct(  # type: ignore[override]
        self, x_btd, bias_bhtt, row, memory_bsd, memory_bias_b1ts
    ):
        """Whole rows that look at whole rows; see `Attention`."""
        x_btd = self.attend(x_btd, bias_bhtt, row)
        out_btd = self.cross(self.cross_norm(x_btd), memory_bias_b1ts, row, memory_bsd)
        return self.feed(self.crossed(x_btd, out_btd))


class Stack(nn.Cell):
    """Blocks that share a position bias, and a norm behind them."""

    def __init__(self, blocks: list[Block], config: T5Config, *, bidirectional: bool, dtype):
        super().__init__()
        self.position_bias = RelativeBias(config, bidirectional=bidirectional, dtype=dtype)
        self.frame = Frame(config, bidirectional=bidirectional, dtype=dtype)
        self.blocks = nn.CellList(blocks)
        self.final_norm = RMSNorm(config.hidden_size, config.eps, dtype=dtype)
        self.flatten = Flatten()
        self.drop_start, self.drop_end = Dropout(), Dropout()

    def end(self, x):
        """What the stack gives."""
        return self.drop_end(self.final_norm(x))

    def states(self, x_btd, real_bt, *memory):
        """The output of the embedding and of each block, the last one after the norm.

        Args:
            x_btd: Embedded rows.
            real_bt: See `Frame`.
            memory: What a decoder looks at, [B, S, D], and the bias [B, 1, T, S] of that.
        """
        bias, row = self.frame(self.position_bias.weight, real_bt)
        x_btd = self.drop_start(self.flatten(x_btd))
        states: tuple[Tensor, ...] = (x_btd,)
        for block in self.blocks:
            x_btd = block(x_btd, bias, row, *memory)
            states = states + (x_btd,)
        return states[:-1] + (self.end(x_btd),)


class T5(nn.Cell):
    """Encoder and decoder.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer", section 2.1; v1.1 as in its published code.
    """

    def __init__(self, config: T5Config, dtype=ms.float32):
        super().__init__()
        self.dtype, self.tied = dtype, config.tied
        hidden = config.hidden_size
        self.embed = Embedding(config.vocab_size, hidden, std=1.0, dtype=dtype)
        blocks = [block(config, dtype) for _ in range(config.num_layers)]
        self.encoder = Stack(blocks, config, bidirectional=True, dtype=dtype)
        later: list[Block] = [DecoderBlock(config, dtype) for _ in range(config.num_decoder_layers)]
        self.decoder = Stack(later, config, bidirectional=False, dtype=dtype)
        self.scale = hidden**-0.5 if config.tied else 1.0
        if not config.tied:
            std = config.head_init_std
            self.head = Linear(hidden, config.vocab_size, std=std, dtype=dtype)
        self.across, self.labels = MemoryFrame(), Labels()
        self.matmul = ops.MatMul(transpose_b=True)

    @property
    def blocks(self) -> list[Block]:
        """Those of both stacks."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def table(self):
        """Rows of the output classes."""
        return self.embed.weight if self.tied else self.head.weight

    def encoder_states(self, ids_bs, real_bs):
        """The output of the embedding and of each block, the last one after the norm."""
        return self.encoder.states(self.embed(ids_bs), real_bs)

    def decoder_states(self, ids_bt, memory_bsd, real_bs):
        """The same for the decoder, which sees the encoder's last states."""
        across = self.across(ids_bt, real_bs)
        return self.decoder.states(self.embed(ids_bt), ids_bt, memory_bsd, across)

    def wanted(self, ids_bs, real_bs, decoder_ids_bt, targets_bt):
        """Hidden states of the decoder [B * T, D], and the labels [B * T]."""
        x_btd = self.construct(ids_bs, real_bs, decoder_ids_bt)
        return x_btd.reshape((-1, x_btd.shape[-1])), self.labels(targets_bt)

    def classes(self):
        """The table of the classes."""
        return (self.table(),)

    def construct(self, ids_bs, real_bs, decoder_ids_bt):
        """Hidden states of the decoder [B, T, D].

        Args:
            ids_bs: int32 tokens that are read.
            real_bs: int32, 0 for padding.
            decoder_ids_bt: int32, the written tokens behind the start token 0.
        """
        memory_bsd = self.encoder_states(ids_bs, real_bs)[-1]
        return self.decoder_states(decoder_ids_bt, memory_bsd, real_bs)[-1]

    def project(self, hidden_nd):
        """Scores of all classes, fp32 [N, V]."""
        return self.matmul(hidden_nd * self.scale, self.table()).astype(ms.float32)


class T5Loss(nn.Cell):
    """Sum and count of the token losses of rows; the training cell.

    construct takes ids, real int32 [B, S]; decoder_ids, targets int32 [B, T].
    """

    def __init__(self, model: T5):
        super().__init__(auto_prefix=False)
        self.model, self.nll = model, TokenNll(model.scale)

    def token_losses(self, *columns):
        """Losses [B * T] in nats; those of unlabelled places mean nothing."""
        wanted_nd, labels_n = self.model.wanted(*columns)
        return self.nll(wanted_nd, self.model.table(), labels_n)

    def tokens(self, *columns):
        """Losses [B * T] in nats, and 1 or 0 for places with and without a target, both fp32."""
        real = columns[3].reshape((-1,)) != IGNORE
        return self.token_losses(*columns), real.astype(ms.float32)

    def construct(self, *columns):
        return masked_sums(self.token_losses(*columns), columns[3].reshape((-1,)))


def sharded(config: T5Config, dtype, vocab_rows: int, stages: tuple[int, ...]) -> ShardedLoss:
    """The training cell that a shard plan is laid over."""
    model = T5(replace(config, vocab_size=vocab_rows), dtype)
    return ShardedLoss(model, config.vocab_size, scale=model.scale)


class T5Prefill(nn.Cell):
    """Reads texts and the start token; scores of the first token, and what the steps need.

    construct takes ids, real int32 [B, S], padded on the right. The caches are k and v of the
    decoder's self-attentions, one position long, then those of its attentions to the encoder.
    """

    def __init__(self, model: T5):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_bs, real_bs):
        model = self.model
        memory_bsd = model.encoder_states(ids_bs, real_bs)[-1]
        across, zero_1 = memory_bias(real_bs), ops.zeros((1,), ms.int32)
        bias = model.decoder.position_bias(zero_1, zero_1)
        x_b1d = model.embed(ops.zeros((ids_bs.shape[0], 1), ms.int32))
        blocks = model.decoder.blocks
        x_b1d, own, fixed = first_token(blocks, x_b1d, bias, memory_bsd, across)
        logits = model.project(model.decoder.final_norm(x_b1d[:, 0]))
        return (logits, *own, *fixed)


class T5Step(nn.Cell):
    """One token of every row in, its scores and the grown caches out.

    construct takes ids int32 [B]; slot [1], its place behind the start token; real [B, S] of the
    encoder, as long as the caches; parents [B]; then the caches.
    """

    def __init__(self, model: T5):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_b, slot_1, real_bs, parents_b, *old):
        model = self.model
        order_s = ops.arange(old[0].shape[2]).astype(ms.int32)
        seen = (order_s <= slot_1).reshape((1, 1, -1))
        bias = model.decoder.position_bias(slot_1, order_s) + mask_bias(seen)
        x_b1d = model.embed(ids_b).expand_dims(1)
        across, blocks = memory_bias(real_bs), model.decoder.blocks
        x_b1d, caches = next_token(blocks, x_b1d, bias, across, parents_b, slot_1, old)
        logits = model.project(model.decoder.final_norm(x_b1d[:, 0]))
        return (logits, *caches)


def writing_cells(model: T5) -> tuple[T5Prefill, T5Step]:
    """The two passes of writing over one network."""
    return T5Prefill(model), T5Step(model)
