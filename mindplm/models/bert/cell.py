"""The BERT network with its masked-LM head, and the training cell.

Suffixes of tensor names: b rows, t positions, d hidden, p predicted positions, n flattened b*p,
v vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
from mindspore import nn, ops

from mindplm.models.bert.config import BertConfig
from mindplm.models.heads import only_understanding
from mindplm.models.parts import post_norm_blocks
from mindplm.nn.encoder import Encoder
from mindplm.nn.feed_forward import Activate
from mindplm.nn.kernels import gelu
from mindplm.nn.layers import LayerNorm, Linear, parameter
from mindplm.nn.loss import Pick, TokenNll, masked_sums
from mindplm.nn.table_loss import ShardedLoss


class MaskedHead(nn.Cell):
    """norm(gelu(dense(x))); the projection onto the word table and its bias follow."""

    def __init__(self, config: BertConfig, dtype):
        super().__init__()
        hidden = config.hidden_size
        self.dense = Linear(hidden, hidden, bias=True, std=config.init_std, dtype=dtype)
        self.activate = Activate(gelu)
        self.norm = LayerNorm(hidden, config.eps, dtype=dtype)
        self.bias = parameter((config.vocab_size,), dtype, 0.0)

    def construct(self, x):
        return self.norm(self.activate(self.dense(x)))


class Bert(nn.Cell):
    """Encoder and masked-LM head; the output matrix is the word table.

    Source: Devlin et al. 2018, "BERT"; the head is that of its published code.
    """

    def __init__(self, config: BertConfig, dtype=ms.float32):
        super().__init__()
        self.config = config
        self.encoder = encoder(config, dtype)
        self.head = MaskedHead(config, dtype)
        self.pick = Pick()
        self.matmul = ops.MatMul(transpose_b=True)
        self.dtype = dtype

    @property
    def blocks(self):
        """The blocks, for whoever recomputes or cuts them."""
        return self.encoder.blocks

    def construct(self, ids_bt, types_bt, positions_bt, spans_bt):
        """Hidden states [B, T, D] after the last block; columns as `Encoder` takes them."""
        return self.encoder(ids_bt, types_bt, positions_bt, spans_bt)[-1]

    def wanted(self, ids_bt, types_bt, positions_bt, spans_bt, target_pos_bp, targets_bp):
        """The states that have a target, ready to be projected [B * P, D], and labels [B * P]."""
        x_btd = self.construct(ids_bt, types_bt, positions_bt, spans_bt)
        x_nd, labels_n = self.pick(x_btd, target_pos_bp, targets_bp)
        return self.head(x_nd), labels_n

    def classes(self):
        """The table of the classes and their biases."""
        return self.encoder.embed.weight, self.head.bias

    def project(self, hidden_nd):
        """Scores of all words, fp32 [N, V]."""
        logits = self.matmul(self.head(hidden_nd), self.encoder.embed.weight)
        return (logits + self.head.bias).astype(ms.float32)


def encoder(config: BertConfig, dtype) -> Encoder:
    """The encoder of these sizes."""
    blocks = post_norm_blocks(config, gelu, dtype)
    return Encoder(
        (config.vocab_size, config.max_len, config.num_types),
        config.hidden_size,
        blocks,
        eps=config.eps,
        std=config.init_std,
        dtype=dtype,
    )


class BertLoss(nn.Cell):
    """Sum and count of the losses of the masked tokens; the training cell.

    construct takes ids, types, positions, spans int32 [B, T]; target_pos, targets int32 [B, P].
    """

    def __init__(self, model: Bert):
        super().__init__(auto_prefix=False)
        self.model = model
        self.nll = TokenNll(biased=True)

    def construct(self, *columns):
        ready, labels = self.model.wanted(*columns)
        table, bias = self.model.classes()
        return masked_sums(self.nll(ready, table, labels, bias), labels)


def sharded(config: BertConfig, dtype, vocab_rows: int, stages: tuple[int, ...]) -> ShardedLoss:
    """The training cell that a shard plan is laid over."""
    model = Bert(replace(config, vocab_size=vocab_rows), dtype)
    return ShardedLoss(model, config.vocab_size, biased=True)


class BertStates(nn.Cell):
    """States for a head: that of [CLS] for the text, those of the last block for the tokens."""

    def __init__(self, model: Bert, name: str):
        super().__init__(auto_prefix=False)
        only_understanding(name, "bert")
        self.model, self.width = model, model.config.hidden_size

    def unused(self):
        """Parameters that no head looks through."""
        return list(self.model.head.get_parameters())

    def construct(self, ids_bt, spans_bt):
        order = ops.arange(ids_bt.shape[1]).astype(ms.int32).expand_dims(0)
        order = ops.zeros_like(ids_bt) + order
        hidden = self.model(ids_bt, ops.zeros_like(ids_bt), order, spans_bt)
        return hidden[:, 0], hidden
