"""A causal language model: tokens and learned positions, blocks, the token table as output.

Suffixes of tensor names: b rows, t positions of this call, s key positions, d hidden, n flattened,
v classes, p predicted positions.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindplm.nn.block import Merge
from mindplm.nn.cache import read_rows, read_token
from mindplm.nn.dropout import Dropout
from mindplm.nn.layers import Embedding, Flatten
from mindplm.nn.loss import IGNORE, Pick, ProjectedNll, TokenNll, masked_sums
from mindplm.nn.mask import SpanFrame, memory_bias


class CausalModel(nn.Cell):
    """embed[id] + positions[position], blocks that look back, and the token table as output.

    Args:
        counts: Rows of the tables of tokens and positions.
        hidden_size: Width.
        blocks: The blocks.
        final_norm: Norm after the last block; None: there is none.
        std: Standard deviation of the initial tables.
        position_classes: The position rows are output classes too, behind the tokens.
        dtype: Type of weights and activations.
    """

    def __init__(
        self,
        counts: tuple[int, int],
        hidden_size: int,
        blocks: list[Any],
        final_norm: nn.Cell | None,
        *,
        std: float,
        position_classes: bool = False,
        dtype,
    ):
        super().__init__()
        words, positions = counts
        self.embed = Embedding(words, hidden_size, std=std, dtype=dtype)
        self.positions = Embedding(positions, hidden_size, std=std, dtype=dtype)
        self.blocks = nn.CellList(blocks)
        self.final_norm: Any = final_norm
        self.has_norm, self.position_classes = final_norm is not None, position_classes
        self.dtype, self.drop = dtype, Dropout()
        self.add_positions, self.flatten, self.pick = Merge(), Flatten(), Pick()
        self.frame = SpanFrame(causal=True, dtype=dtype)
        self.num_more = Tensor([positions], ms.int32)
        self.matmul = ops.MatMul(transpose_b=True)

    def start(self, ids, positions):
        """The sum of both embeddings; indices of any shape."""
        return self.drop(self.add_positions(self.embed(ids), self.positions(positions)))

    def end(self, x):
        """The hidden states that the output is made of."""
        return self.final_norm(x) if self.has_norm else x

    def states(self, ids_bt, positions_bt, spans_bt):
        """The embedding's output and that of each block, num_layers + 1 tensors [B, T, D]."""
        bias_b1ts, row = self.frame(spans_bt)
        x_btd = self.flatten(self.start(ids_bt, positions_bt))
        states: tuple[Tensor, ...] = (x_btd,)
        for block in self.blocks:
            x_btd = block(x_btd, bias_b1ts, row)
            states = states + (x_btd,)
        return states

    def construct(self, ids_bt, positions_bt, spans_bt):
        """Hidden states [B, T, D].

        Args:
            ids_bt, positions_bt: int32 rows of the tables.
            spans_bt: int32, number of the document from 1 on, 0 for padding; documents do not see
                each other.
        """
        return self.end(self.states(ids_bt, positions_bt, spans_bt)[-1])

    def wanted(self, ids_bt, positions_bt, spans_bt, target_pos_bp, targets_bp):
        """The states that have a target, [B * P, D], and the labels, [B * P]."""
        return self.pick(self.construct(ids_bt, positions_bt, spans_bt), target_pos_bp, targets_bp)

    def classes(self):
        """What `mindplm.nn.table_loss` takes of the classes."""
        if self.position_classes:
            return self.embed.weight, self.positions.weight, self.num_more
        return (self.embed.weight,)

    def project(self, hidden_nd):
        """Scores of all classes, fp32 [N, V]."""
        logits = self.matmul(hidden_nd, self.embed.weight)
        if self.position_classes:
            logits = ops.concat((logits, self.matmul(hidden_nd, self.positions.weight)), -1)
        return logits.astype(ms.float32)


class CausalLoss(nn.Cell):
    """Sum and count of the token losses of rows; the training cell.

    construct takes ids, positions, spans int32 [B, T]; target_pos, targets int32 [B, P].
    """

    def __init__(self, model: CausalModel):
        super().__init__(auto_prefix=False)
        self.model = model
        self.nll: Any = ProjectedNll(1.0) if model.position_classes else TokenNll()
        self.none = Tensor([0.0], ms.float32)

    def losses(self, hidden_nd, labels_n):
        """Losses [N] in nats; those of rows whose label is IGNORE mean nothing."""
        model, table = self.model, self.model.embed.weight
        if not model.position_classes:
            return self.nll(hidden_nd, table, labels_n)
        more = model.positions.weight
        real = ops.ones((more.shape[0],), ms.bool_)
        labels_n = ops.clamp(labels_n, min=0)
        return self.nll(hidden_nd, table, more, real, labels_n, self.none)[0]

    def token_losses(self, *columns):
        """Losses [B * P] in nats; those of unlabelled places mean nothing."""
        return self.losses(*self.model.wanted(*columns))

    def tokens(self, *columns):
        """Losses [B * P] in nats, and 1 or 0 for places with and without a target, both fp32."""
        real = columns[4].reshape((-1,)) != IGNORE
        return self.token_losses(*columns), real.astype(ms.float32)

    def construct(self, *columns):
        return masked_sums(self.token_losses(*columns), columns[4].reshape((-1,)))


class CausalPrefill(nn.Cell):
    """Left-padded prompts in, scores after the last column and keys and values out.

    construct takes ids, positions, spans int32 [B, T]; spans are 0 for padding, else 1.
    """

    shares_prompts = True

    def __init__(self, model: CausalModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_bt, positions_bt, spans_bt):
        model = self.model
        bias, row = model.frame(spans_bt)
        x_btd, caches = read_rows(model.blocks, model.start(ids_bt, positions_bt), bias, row)
        return (model.project(model.end(x_btd[:, -1])), *caches)


class CausalStep(nn.Cell):
    """One token of every row in, its scores and the grown caches out.

    construct takes ids, positions int32 [B]; slot [1], the place of the new tokens in the caches;
    filled [B, S], 1 where the cache holds something, the new token among it; parents [B], the row
    that each row goes on from; then the caches that `mindplm.nn.cache.read_token` takes.
    """

    def __init__(self, model: CausalModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_b, positions_b, slot_1, filled_bs, parents_b, *old):
        model = self.model
        x_b1d = model.start(ids_b, positions_b).expand_dims(1)
        bias = memory_bias(filled_bs)
        x_b1d, caches = read_token(model.blocks, x_b1d, bias, parents_b, slot_1, old)
        return (model.project(model.end(x_b1d[:, 0])), *caches)


def writing_cells(model: CausalModel) -> tuple[CausalPrefill, CausalStep]:
    """The two passes of writing over one network."""
    return CausalPrefill(model), CausalStep(model)
