"""How likely plain texts are, to families without tags; see `mindplm.generate.scoring`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindplm.data.causal_text import Framed, answer_ids, answer_of, prompt_ids
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.pair_rows import collate, pair_row
from mindplm.data.pair_text import source_of
from mindplm.data.token_rows import TokenRow
from mindplm.errors import ConfigError, DataError
from mindplm.generate.engine import rows_at_once
from mindplm.generate.scoring import Asked, Score
from mindplm.generate.text_layout import TextLayout
from mindplm.models.t5.cell import T5, T5Loss
from mindplm.nn.causal import CausalLoss, CausalModel

_LEAST_TARGETS = 16


class TextRow(NamedTuple):
    """Ids of a text, and how many of them are read only."""

    ids: tuple[int, ...]
    num_read: int


class _TokenLosses(nn.Cell):
    """Losses [B * T] in nats of the places of the last column."""

    def __init__(self, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, *columns):
        return self.loss.token_losses(*columns)


class _TextScorer:
    """The compiled pass; one graph for each bucket of lengths.

    Args:
        loss: Its `token_losses` takes columns, the last of which are the targets.
    """

    def __init__(self, loss: nn.Cell):
        self._losses = _TokenLosses(loss)

    def _length(self, row: Any) -> int:
        """What a bucket must hold."""
        raise NotImplementedError

    def _columns(self, rows: Sequence[Any], size: int, bucket: int) -> list[np.ndarray]:
        """The columns of rows."""
        raise NotImplementedError

    def run(
        self, rows: Sequence[Any], tokenizer: Any, batch_size: int, buckets: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        """Scores of rows by batches of like length, with their places, long rows first."""
        order = sorted(range(len(rows)), key=lambda i: -self._length(rows[i]))
        first = 0
        while first < len(order):
            bucket = min(b for b in buckets if b >= self._length(rows[order[first]]))
            size = rows_at_once(batch_size, bucket)
            numbers = order[first : first + size]
            first += size
            columns = self._columns([rows[i] for i in numbers], size, bucket)
            losses = self._losses(*map(Tensor, columns)).astype(ms.float32).asnumpy()
            losses = losses.reshape(columns[-1].shape)
            for place, number in enumerate(numbers):
                real = columns[-1][place] != IGNORE
                nats = float(losses[place][real].astype(np.float64).sum())
                if math.isnan(nats):
                    raise FloatingPointError("the network returned NaN; its weights are not usable")
                yield number, Score(nats, int(real.sum()))


class CausalScorer(_TextScorer):
    """Of families that read from left to right.

    Args:
        cell: The network.
    """

    def __init__(self, cell: CausalModel):
        super().__init__(CausalLoss(cell))

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

    def _length(self, row: TextRow) -> int:
        return len(row.ids) - 1

    def _columns(self, rows: Sequence[TextRow], size: int, bucket: int) -> list[np.ndarray]:
        return _columns(rows, size, bucket)


class PairScorer(_TextScorer):
    """Of an encoder-decoder that reads one text and writes another.

    Args:
        cell: The network.
    """

    def __init__(self, cell: T5):
        super().__init__(T5Loss(cell))

    def row(self, record: Any, tokenizer: Any, config: Any, asked: Asked) -> TokenRow:
        """A record and its answer.

        Raises:
            DataError: It cannot be used, or is too long.
        """
        if isinstance(record, Framed):
            raise ConfigError("template is for families that read from left to right")
        if asked.examples:
            raise DataError("this family reads one text, so it can be shown no examples")
        most = max(asked.buckets)
        row, cut = pair_row(
            source_of(record), answer_of(record), tokenizer, RowShape(most, 0, 0, most)
        )
        if cut:
            raise DataError(f"has more than the {most} tokens that the largest bucket holds")
        return row

    def _length(self, row: TokenRow) -> int:
        return int(row.lengths[0])

    def _columns(self, rows: Sequence[TokenRow], size: int, bucket: int) -> list[np.ndarray]:
        width = _LEAST_TARGETS
        while width < max(row.num_targets for row in rows):
            width *= 2
        shape = RowShape(bucket, 0, 0, width)
        columns = collate(rows, num_rows=size, shape=shape, marks=None, draws=None)
        return list(columns.values())


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
