"""How likely texts are to families that read from left to right; see `mindplm.generate.scoring`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindplm.data.causal_text import Framed, answer_ids, prompt_ids
from mindplm.data.packing import IGNORE
from mindplm.errors import DataError
from mindplm.generate.engine import rows_at_once
from mindplm.generate.scoring import Asked, Score
from mindplm.generate.text_layout import TextLayout
from mindplm.nn.causal import CausalLoss, CausalModel


class TextRow(NamedTuple):
    """Ids of a text, and how many of them are read only."""

    ids: tuple[int, ...]
    num_read: int


class _TokenLosses(nn.Cell):
    """Losses [B * T] in nats of each input's next token."""

    def __init__(self, model: CausalModel):
        super().__init__(auto_prefix=False)
        self.loss = CausalLoss(model)

    def construct(self, *columns):
        return self.loss.token_losses(*columns)


class CausalScorer:
    """The compiled pass; one graph for each bucket of lengths.

    Args:
        cell: The network.
    """

    def __init__(self, cell: CausalModel):
        self._losses = _TokenLosses(cell)

    def row(self, record: Any, tokenizer: Any, config: Any, asked: Asked) -> TextRow:
        """Ids of a record and its answer with the end mark, or of a text behind another one.

        Raises:
            DataError: It cannot be used, or is too long.
        """
        if isinstance(record, Framed):
            read, answer = tokenizer.encode(record.before), tokenizer.encode(record.text)
        else:
            layout = TextLayout(tokenizer, config, prompt_ids)
            read = layout.prepare(record, strict=asked.strict, examples=asked.examples).ids
            answer = answer_ids(record, tokenizer)
        row = TextRow((*read, *answer), max(len(read), 1))
        if len(row.ids) <= row.num_read:
            raise DataError("the text to be scored has no tokens")
        most = min(max(asked.buckets), config.max_len)
        if len(row.ids) - 1 > most:
            raise DataError(f"has {len(row.ids)} tokens, at most {most + 1} are read")
        return row

    def run(
        self, rows: Sequence[TextRow], tokenizer: Any, batch_size: int, buckets: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        """Scores of rows by batches of like length, with their places, long rows first."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
        first = 0
        while first < len(order):
            bucket = min(b for b in buckets if b >= len(rows[order[first]].ids) - 1)
            size = rows_at_once(batch_size, bucket)
            numbers = order[first : first + size]
            first += size
            columns = _columns([rows[i] for i in numbers], size, bucket)
            losses = self._losses(*map(Tensor, columns)).astype(ms.float32).asnumpy()
            losses = losses.reshape(size, bucket)
            for place, number in enumerate(numbers):
                real = columns[4][place] != IGNORE
                nats = float(losses[place][real].astype(np.float64).sum())
                if math.isnan(nats):
                    raise FloatingPointError("the network returned NaN; its weights are not usable")
                yield number, Score(nats, int(real.sum()))


def _columns(rows: Sequence[TextRow], size: int, bucket: int) -> list[np.ndarray]:
    """The columns of `CausalLoss`, int32 [size, bucket] each."""
    ids, spans = np.zeros((size, bucket), np.int32), np.zeros((size, bucket), np.int32)
    targets = np.full((size, bucket), IGNORE, np.int32)
    for place, row in enumerate(rows):
        length = len(row.ids) - 1
        ids[place, :length] = row.ids[:-1]
        spans[place, :length] = 1
        targets[place, row.num_read - 1 : length] = row.ids[row.num_read :]
    order = np.tile(np.arange(bucket, dtype=np.int32), (size, 1))
    positions = np.where(spans > 0, order, 0).astype(np.int32)
    return [ids, positions, spans, order, targets]
