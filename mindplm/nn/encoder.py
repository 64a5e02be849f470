"""The bidirectional encoder of BERT: three summed tables, a norm, post-norm blocks."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from mindplm.nn.block import Merge, PostNormBlock
from mindplm.nn.dropout import Dropout
from mindplm.nn.layers import Embedding, Flatten, LayerNorm
from mindplm.nn.mask import SpanFrame


class Encoder(nn.Cell):
    """norm(word + position + type), then blocks in which every token sees its whole span.

    Args:
        counts: Rows of the tables of words, positions and types.
        hidden_size: Width.
        blocks: The blocks.
        eps: Added to the variance in the first norm.
        std: Standard deviation of the initial tables.
        dtype: Type of weights and activations.

    Source: Devlin et al. 2018, "BERT", section 3.
    """

    def __init__(
        self,
        counts: tuple[int, int, int],
        hidden_size: int,
        blocks: list[PostNormBlock],
        *,
        eps: float,
        std: float,
        dtype,
    ):
        super().__init__()
        words, positions, types = counts
        self.embed = Embedding(words, hidden_size, std=std, dtype=dtype)
        self.positions = Embedding(positions, hidden_size, std=std, dtype=dtype)
        self.types = Embedding(types, hidden_size, std=std, dtype=dtype)
        self.add_positions, self.add_types = Merge(), Merge()
        self.embed_norm = LayerNorm(hidden_size, eps, dtype=dtype)
        self.frame = SpanFrame(causal=False, dtype=dtype)
        self.blocks = nn.CellList(blocks)
        self.flatten, self.drop = Flatten(), Dropout()

    def start(self, ids_bt, types_bt, positions_bt):
        """The normed sum of the three embeddings, [B, T, D]."""
        x_btd = self.add_positions(self.embed(ids_bt), self.positions(positions_bt))
        x_btd = self.flatten(self.add_types(x_btd, self.types(types_bt)))
        return self.drop(self.embed_norm(x_btd))

    def construct(self, ids_bt, types_bt, positions_bt, spans_bt):
        """The output of each block, after that of the embedding.

        Args:
            ids_bt, types_bt, positions_bt: int32 rows of the tables.
            spans_bt: int32, number of the span from 1 on, 0 for padding.

        Returns:
            num_layers + 1 tensors [B, T, D].
        """
        bias_b1ts, row = self.frame(spans_bt)
        x_btd = self.start(ids_bt, types_bt, positions_bt)
        states: tuple[ms.Tensor, ...] = (x_btd,)
        for block in self.blocks:
            x_btd = block(x_btd, bias_b1ts, row)
            states = states + (x_btd,)
        return states
