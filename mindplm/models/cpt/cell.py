"""The CPT network: shared encoder, understanding decoder, writing decoder; the training cell.

Suffixes of tensor names: b rows, t positions, s positions of the source, d hidden, n flattened,
p predicted positions, v vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindplm.models.bert.cell import encoder
from mindplm.models.bert.config import BertConfig
from mindplm.models.cpt.config import DECODER_EPS, ENCODER_EPS, OFFSET, CptConfig
from mindplm.nn.decoder import CrossBlock
from mindplm.nn.dropout import Dropout
from mindplm.nn.layers import Embedding, Flatten, LayerNorm
from mindplm.nn.loss import Pick, TokenNll, masked_sums, take_positions
from mindplm.nn.mask import MemoryFrame, SpanFrame
from mindplm.nn.table_loss import ShardedLoss


def order_of(ids_bt):
    """Positions 0, 1, 2 ... of every row, int32 [1, T]."""
    return ops.arange(ids_bt.shape[1]).astype(ms.int32).expand_dims(0)


def orders_of(ids_bt):
    """The same for every row, [B, T]."""
    return ops.zeros_like(ids_bt) + order_of(ids_bt)


class Order(nn.Cell):
    """Rows of the decoder's table of positions for whole rows, int32 [1, T]."""

    def construct(self, ids_bt):
        return order_of(ids_bt) + OFFSET


class AddPositions(nn.Cell):
    """Word vectors times a scale, and positions."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def construct(self, words_btd, positions_btd):
        return words_btd * self.scale + positions_btd


class WritingDecoder(nn.Cell):
    """The decoder that writes; its word table is the encoder's and comes in as word vectors."""

    def __init__(self, config: CptConfig, dtype):
        super().__init__()
        hidden, std = config.hidden_size, config.init_std
        self.positions = Embedding(config.max_len + OFFSET, hidden, std=std, dtype=dtype)
        self.embed_norm = LayerNorm(hidden, DECODER_EPS, dtype=dtype)
        sizes = {"eps": DECODER_EPS, "std": std, "dtype": dtype}
        blocks = [
            CrossBlock(hidden, config.num_heads, config.ffn_size, **sizes)
            for _ in range(config.num_decoder_layers)
        ]
        self.blocks = nn.CellList(blocks)
        self.drop = Dropout()
        self.add_positions = AddPositions(hidden**0.5 if config.scale_embedding else 1.0)
        self.order, self.across, self.flatten = Order(), MemoryFrame(), Flatten()
        self.frame = SpanFrame(causal=True, dtype=dtype)

    def start(self, words_btd, rows_bt):
        """The normed sum of word vectors and rows of the table of positions."""
        x_btd = self.add_positions(words_btd, self.positions(rows_bt))
        return self.drop(self.embed_norm(x_btd))

    def construct(self, words_btd, spans_bt, memory_bsd, memory_spans_bs):
        """The output of each block, after that of the embedding; tensors [B, T, D].

        Args:
            words_btd: Word vectors of the decoder's input.
            spans_bt: int32, 1 where its tokens may be seen, 0 where not.
            memory_bsd: The shared encoder's output.
            memory_spans_bs: int32, 1 for the source's tokens, 0 for padding.
        """
        bias_b1tt, row = self.frame(spans_bt)
        bias_b1ts = self.across(spans_bt, memory_spans_bs)
        x_btd = self.flatten(self.start(words_btd, self.order(spans_bt)))
        states: tuple[Tensor, ...] = (x_btd,)
        for block in self.blocks:
            x_btd = block(x_btd, bias_b1tt, row, memory_bsd, bias_b1ts)
            states = states + (x_btd,)
        return states


class Source(nn.Cell):
    """What goes with ids in training, int32 [B, T] each: ones, positions and spans.

    The ones are the types, and the spans of the writing decoder's input; padding of ids is 0.
    """

    def construct(self, ids_bt):
        return ops.ones_like(ids_bt), orders_of(ids_bt), (ids_bt != 0).astype(ms.int32)


class Branch(nn.Cell):
    """The states [B, T, D] or [B * T, D] of each row's own decoder."""

    def construct(self, understood_btd, written_btd, writes_b):
        size = (writes_b.shape[0], -1, understood_btd.shape[-1])
        both = understood_btd.reshape(size), written_btd.reshape(size)
        own_btd = ops.where((writes_b != 0).reshape((-1, 1, 1)), both[1], both[0])
        return own_btd.reshape(understood_btd.shape)


class Cpt(nn.Cell):
    """Both branches over one encoder; one table and one bias give the scores of both.

    Source: Shao et al. 2021, "CPT: A Pre-Trained Unbalanced Transformer for Both Chinese Language
    Understanding and Generation", section 3.
    """

    def __init__(self, config: CptConfig, dtype=ms.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        names = ("vocab_size", "hidden_size", "num_heads", "ffn_size", "num_layers", "max_len")
        sizes = {name: getattr(config, name) for name in (*names, "num_types", "init_std")}
        self.encoder = encoder(BertConfig(**sizes, eps=ENCODER_EPS), dtype)
        self.decoder = WritingDecoder(config, dtype)
        zeros = initializer("zeros", (1, config.vocab_size), dtype)
        self.logits_bias = Parameter(zeros, requires_grad=False)
        self.logits_bias.init_std = 0.0
        self.shared = config.num_layers - config.num_decoder_layers
        self.source, self.branch, self.pick = Source(), Branch(), Pick()
        self.matmul = ops.MatMul(transpose_b=True)

    @property
    def blocks(self):
        """The encoder's blocks, for whoever recomputes them."""
        return self.encoder.blocks

    def states(self, ids_bs, types_bs, spans_bs):
        """Output of the encoder's embedding and of each of its blocks."""
        return self.encoder(ids_bs, types_bs, orders_of(ids_bs), spans_bs)

    def write(self, decoder_ids_bt, decoder_spans_bt, memory_bsd, spans_bs):
        """Output of the writing decoder's embedding and of each of its blocks."""
        words = self.encoder.embed(decoder_ids_bt)
        return self.decoder(words, decoder_spans_bt, memory_bsd, spans_bs)

    def construct(self, ids_bs, types_bs, spans_bs, decoder_ids_bt):
        """Hidden states of the understanding and of the writing decoder.

        Args:
            ids_bs: int32 source, padded.
            types_bs: int32 types; the original has 1 everywhere but for generation.
            spans_bs: int32, 1 for tokens, 0 for padding.
            decoder_ids_bt: int32 input of the writing decoder.
        """
        order = orders_of(ids_bs)
        ones = ops.ones_like(decoder_ids_bt)
        return self.branches(ids_bs, types_bs, order, spans_bs, decoder_ids_bt, ones)

    def branches(self, ids_bs, types_bs, order_bs, spans_bs, decoder_ids_bt, decoder_spans_bt):
        """What `construct` gives, from positions and spans that are there already."""
        states = self.encoder(ids_bs, types_bs, order_bs, spans_bs)
        memory = states[self.shared]
        return states[-1], self.write(decoder_ids_bt, decoder_spans_bt, memory, spans_bs)[-1]

    def own_branch(self, ids_bt, decoder_ids_bt, writes_b):
        """States [B, T, D] of each row's own decoder; padding of ids is 0, types are 1."""
        ones_bt, order_bt, spans_bt = self.source(ids_bt)
        columns = (ids_bt, ones_bt, order_bt, spans_bt, decoder_ids_bt, ones_bt)
        return self.branch(*self.branches(*columns), writes_b)

    def wanted(self, ids_bt, decoder_ids_bt, writes_b, target_pos_bp, targets_bp):
        """The states that have a target, [B * P, D], and the labels, [B * P]."""
        x_btd = self.own_branch(ids_bt, decoder_ids_bt, writes_b)
        return self.pick(x_btd, target_pos_bp, targets_bp)

    def classes(self):
        """The table of the classes and their biases."""
        return self.encoder.embed.weight, self.logits_bias

    def project(self, hidden_nd):
        """Scores of all words, fp32 [N, V]."""
        logits = self.matmul(hidden_nd, self.encoder.embed.weight) + self.logits_bias
        return logits.astype(ms.float32)


class CptSlots(nn.Cell):
    """Scores of all words at places of rows, fp32 [B * P, V].

    construct takes ids, decoder_ids int32 [B, T]; writes int32 [B]; places int32 [B, P].
    """

    def __init__(self, model: Cpt):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_bt, decoder_ids_bt, writes_b, places_bp):
        hidden_btd = self.model.own_branch(ids_bt, decoder_ids_bt, writes_b)
        return self.model.project(take_positions(hidden_btd, places_bp))


class CptLoss(nn.Cell):
    """Sum and count of the token losses; a row counts for one of the decoders only.

    construct takes ids, decoder_ids int32 [B, T]; writes int32 [B], 1 for rows that the writing
    decoder learns from; target_pos, targets int32 [B, P]. Padding of ids is 0, types are 1.
    """

    def __init__(self, model: Cpt):
        super().__init__(auto_prefix=False)
        self.model = model
        self.nll = TokenNll(biased=True)

    def construct(self, *columns):
        wanted, labels = self.model.wanted(*columns)
        table, bias = self.model.classes()
        return masked_sums(self.nll(wanted, table, labels, bias.reshape((-1,))), labels)


def sharded(config: CptConfig, dtype, vocab_rows: int, stages: tuple[int, ...]) -> ShardedLoss:
    """The training cell that a shard plan is laid over."""
    model = Cpt(replace(config, vocab_size=vocab_rows), dtype)
    return ShardedLoss(model, config.vocab_size, biased=True)


class CptStates(nn.Cell):
    """States for a head, of the understanding decoder, the writing decoder, or both side by side.

    The state of a text is the understanding decoder's first one, and the writing decoder's last
    one, when it has read the whole text shifted right behind the text's own last token, [SEP].

    Args:
        model: The network.
        name: understanding, writing or both.
        types: Type of all tokens: 1 as in the original's whole network, 0 as in its bare encoder.

    Source: fastnlp/CPT, the classes of its fine-tuning programs.
    """

    def __init__(self, model: Cpt, name: str, types: int = 1):
        super().__init__(auto_prefix=False)
        self.model, self.name, self.types = model, name, types
        self.width = model.config.hidden_size * (2 if name == "both" else 1)

    def unused(self):
        """Parameters that no head looks through."""
        if self.name == "understanding":
            return list(self.model.decoder.get_parameters())
        if self.name == "writing":
            return list(self.model.blocks[self.model.shared :].get_parameters())
        return []

    def construct(self, ids_bs, spans_bs):
        model = self.model
        states = model.states(ids_bs, ops.ones_like(ids_bs) * self.types, spans_bs)
        understood = states[-1]
        if self.name == "understanding":
            return understood[:, 0], understood
        last_b1 = spans_bs.sum(1, keepdims=True).astype(ms.int32) - 1
        start_b1 = ops.gather_d(ids_bs, 1, last_b1)
        moved = ops.concat((start_b1, ids_bs[:, :-1]), 1)
        memory = states[model.shared]
        written = model.write(moved, ops.ones_like(moved), memory, spans_bs)[-1]
        end = take_positions(written, last_b1)
        if self.name == "writing":
            return end, written
        return ops.concat((understood[:, 0], end), -1), ops.concat((understood, written), -1)
