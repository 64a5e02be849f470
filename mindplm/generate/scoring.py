"""How likely given answers are: the training pass over whole records, one record a row.

A record's score does not depend on the records beside it: of the classes that the batch appends to
the vocabulary, each row may use its own only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from mindplm import families
from mindplm.config import GenerateConfig
from mindplm.data.causal_text import Framed
from mindplm.data.cpm_bee import ANSWER
from mindplm.data.instances import Instance
from mindplm.data.packing import COLUMNS, IGNORE, Packer, Row, RowShape, collate, ext_table
from mindplm.data.prompts import full_instance
from mindplm.errors import ConfigError, DataError
from mindplm.generate.engine import rows_at_once
from mindplm.nn.kernels import masked

if TYPE_CHECKING:
    from mindplm.generate.model import Model

_REL_ROOM, _EXT_ROOM, _TARGET_ROOM = 1024, 32, 16


@dataclass(frozen=True)
class Score:
    """How likely the answers of a record are.

    Attributes:
        nats: Minus the natural logarithm of their probability.
        num_tokens: Predicted tokens, the end mark of each answer included.
    """

    nats: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """e to the nats per token."""
        return math.exp(min(self.per_token, 700.0))

    def __str__(self) -> str:
        return f"{self.nats:.4f} nats, {self.num_tokens} tokens, perplexity {self.perplexity:.3f}"


@dataclass(frozen=True)
class Choice:
    """The likeliest of several answers.

    Attributes:
        best: Its number, from 0.
        answer: What it is.
        scores: Of all answers.
        shares: Their probabilities if nothing else could be answered; they add up to 1.
    """

    best: int
    answer: Any
    scores: list[Score]
    shares: list[float]


@dataclass(frozen=True)
class Asked:
    """How records are read.

    Attributes:
        strict: Refuse a `<` that opens no known tag.
        buckets: Lengths that records are padded to.
        examples: Records with answers that each of them is shown.
    """

    strict: bool
    buckets: Sequence[int]
    examples: Sequence[Mapping[str, Any]]


class _TokenLosses(nn.Cell):
    """Losses [B, T] in nats of the targets of packed rows."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, allowed_be, *columns):
        model = self.model
        hidden_btd = model(*columns[:10])
        target_pos, targets, ext_ids, ext_sub, _ = columns[10:]
        batch, num = target_pos.shape
        width = hidden_btd.shape[2]
        place = target_pos.expand_dims(2).broadcast_to((batch, num, width))
        wanted = ops.gather_d(hidden_btd, 1, place)
        base = model.matmul(wanted.reshape((-1, width)) * model.root, model.embed.weight)
        ext = model.matmul(wanted.reshape((-1, width)), model.embed(ext_ids, ext_sub))
        allowed = (allowed_be != 0).expand_dims(1)
        ext = masked(ext.reshape((batch, num, -1)), allowed).reshape((batch * num, -1))
        logits = ops.concat((base.astype(ms.float32), ext), -1)
        top = logits.max(-1, keepdims=True)
        total = ops.log(ops.exp(logits - top).sum(-1)) + top.reshape((-1,))
        labels = ops.clamp(targets.reshape((-1, 1)), min=0)
        return (total - ops.gather_d(logits, 1, labels).reshape((-1,))).reshape((batch, num))


class Scorer:
    """The compiled pass; one graph for each bucket of lengths.

    Args:
        cell: The network.
    """

    def __init__(self, cell: nn.Cell):
        self._losses = _TokenLosses(cell)

    def __call__(self, columns: Mapping[str, np.ndarray], allowed: np.ndarray) -> np.ndarray:
        """Losses [B, T] of collated rows; `allowed` [B, E] tells which appended classes count."""
        tensors = [Tensor(columns[name], ms.int32) for name in COLUMNS]
        return self._losses(Tensor(allowed, ms.int32), *tensors).asnumpy()

    def row(self, record: Any, tokenizer: Any, config: Any, asked: Asked) -> Row:
        """A record with its answers as a row.

        Raises:
            DataError: It cannot be used.
        """
        if isinstance(record, Framed):
            raise ConfigError("template is for families that read from left to right")
        instance = full_instance(
            record, tokenizer, config.max_depth, strict=asked.strict, examples=asked.examples
        )
        return _row(instance, asked.buckets)

    def run(
        self, rows: Sequence[Row], tokenizer: Any, batch_size: int, buckets: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        """Scores of rows by batches of like length, with their places, long rows first."""
        return _run(self, rows, tokenizer, batch_size, buckets)


def score(
    model: Model,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 8,
    strict: bool = False,
    buckets: Sequence[int] = GenerateConfig.buckets,
    progress: bool = False,
) -> list[Score]:
    """Measures how likely the given answers are.

    Args:
        model: From `load`.
        tokenizer: From `load`.
        records: With their answers under `<ans>`.
        batch_size: Records at once; the scores do not depend on it.
        strict: Refuse a `<` that opens no known tag.
        buckets: Lengths that records are padded to.
        progress: Show a bar.

    Raises:
        DataError: A record cannot be used; it is named by its number from 1.
    """
    found = score_each(
        model,
        tokenizer,
        records,
        batch_size=batch_size,
        strict=strict,
        buckets=buckets,
        progress=progress,
    )
    for number, item in enumerate(found, start=1):
        if isinstance(item, DataError):
            raise DataError(f"record {number}: {item}")
    return [item for item in found if isinstance(item, Score)]


def score_each(
    model: Model,
    tokenizer: Any,
    records: Sequence[Any],
    *,
    batch_size: int = 8,
    strict: bool = False,
    buckets: Sequence[int] = GenerateConfig.buckets,
    examples: Sequence[Mapping[str, Any]] = (),
    progress: bool = False,
) -> list[Score | DataError]:
    """Like `score`, but a record that cannot be used has its error in its place.

    Every record is shown the `examples`, records with answers.
    """
    if isinstance(records, (str, Mapping)):
        raise DataError(f"expected a list of records, got one {type(records).__name__}")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}, expected at least 1")
    scores: list[Score | DataError] = [Score(0.0, 1)] * len(records)
    rows, places = [], []
    asked = Asked(strict, buckets, examples)
    scorer = scorer_of(model)
    for place, record in enumerate(records):
        try:
            rows.append(scorer.row(record, tokenizer, model.config, asked))
            places.append(place)
        except DataError as error:
            scores[place] = error
    done = scorer.run(rows, tokenizer, batch_size, buckets)
    for i, found in tqdm(done, total=len(rows), desc="score", disable=not progress):
        scores[places[i]] = found
    return scores


def scorer_of(model: Model) -> Any:
    """What measures answers with a model.

    Raises:
        ConfigError: The family has no such thing.
    """
    if model.scorer is None:
        able = ", ".join(name for name, entry in families.FAMILIES.items() if entry.scorer_ref)
        raise ConfigError(f"{model.family} cannot be asked how likely an answer is; {able} can")
    return model.scorer


def choose(
    model: Model,
    tokenizer: Any,
    record: Mapping[str, Any],
    options: Sequence[Any] | None = None,
    *,
    per_token: bool = False,
    strict: bool = False,
    batch_size: int = 8,
) -> Choice:
    """Picks the likeliest of several answers.

    Args:
        model: From `load`.
        tokenizer: From `load`.
        record: What stands under its `<ans>` does not matter.
        options: Answers, each a text or a dict of texts; None: the keys under "options" of the
            record, such as "<option_0>", or the texts of a list there.
        per_token: Compare nats per token, so that long answers are no worse than short ones.
        strict: Refuse a `<` that opens no known tag.
        batch_size: Answers at once.

    Raises:
        DataError: There are no answers to choose from, or the record cannot be used.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected a record (a dict), got {type(record).__name__}")
    if options is None:
        listed = record.get("options")
        options = list(listed) if isinstance(listed, (Mapping, list, tuple)) else []
    if isinstance(options, (str, Mapping)) or not options:
        raise DataError(
            'no answers to choose from; give a list of them, or have them under the key "options"'
        )
    filled = [{**record, ANSWER: option} for option in options]
    scores = score(model, tokenizer, filled, batch_size=batch_size, strict=strict)
    losses = np.array([s.per_token if per_token else s.nats for s in scores])
    shares = np.exp(losses.min() - losses)
    best = int(losses.argmin())
    return Choice(best, options[best], scores, (shares / shares.sum()).tolist())


def _row(instance: Instance, buckets: Sequence[int]) -> Row:
    if len(instance) > max(buckets):
        raise DataError(f"has {len(instance)} tokens, the largest bucket holds {max(buckets)}")
    packer = Packer(1, RowShape(max(buckets), 0, 0, 0))
    packer.add(instance)
    return packer.flush()[0]


def _run(
    scorer: Scorer, rows: Sequence[Row], tokenizer: Any, batch_size: int, buckets: Sequence[int]
) -> Iterator[tuple[int, Score]]:
    """Scores by batches of like length, long rows first."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    most = min(batch_size, _room(1, [len(rows)]))
    max_rel = _room(_REL_ROOM, [len(row.segment_rel) for row in rows])
    first = 0
    while first < len(rows):
        length = len(rows[order[first]])
        bucket = min(bucket for bucket in buckets if bucket >= length)
        size = rows_at_once(most, bucket)
        numbers = order[first : first + size]
        first += size
        chosen = [rows[i] for i in numbers]
        ext = _pairs(chosen)
        shape = RowShape(
            bucket,
            max_rel,
            _room(_EXT_ROOM, [len(ext[0])]),
            _room(_TARGET_ROOM, [row.num_targets for row in chosen]),
        )
        columns = collate(chosen, num_rows=size, shape=shape, marks=tokenizer, ext=ext)
        losses = scorer(columns, _allowed(chosen, ext, size, shape.max_ext))
        real = columns["targets"] != IGNORE
        for place, number in enumerate(numbers):
            nats = float(losses[place][real[place]].astype(np.float64).sum())
            if math.isnan(nats):
                raise FloatingPointError("the network returned NaN; its weights are not usable")
            yield number, Score(nats, int(real[place].sum()))


def _pairs(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The appended classes; without the placeholder of training, which no row may use."""
    ids, subs = ext_table(rows)
    used = any(row.subs.any() for row in rows)
    return (ids, subs) if used else (ids[:0], subs[:0])


def _allowed(
    rows: Sequence[Row], ext: tuple[np.ndarray, np.ndarray], num_rows: int, max_ext: int
) -> np.ndarray:
    allowed = np.zeros((num_rows, max_ext), np.int32)
    for i, row in enumerate(rows):
        own = set(zip(row.ids.tolist(), row.subs.tolist()))
        for place, pair in enumerate(zip(ext[0].tolist(), ext[1].tolist())):
            allowed[i, place] = pair in own
    return allowed


def _room(least: int, needed: Sequence[int]) -> int:
    """`least`, doubled until it is enough, so that few sizes occur."""
    while least < max(needed, default=0):
        least *= 2
    return least
