"""Rows of an encoder-decoder: what is read and what is written, a pair in a row.

corrupt  of a text runs of tokens are cut out and become the target; drawn anew at each use
record   a record is read, its answer is written; see `mindplm.data.pair_text`
signal   a signal is asked about with a prompt; see `mindplm.data.rst`

What is stored: the ids of a text, or those of both sides of a pair one after the other; then
`lengths` has two numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.data import kinds, rst, spans, token_rows
from mindplm.data.causal_text import answer_of
from mindplm.data.cpm_bee import ANSWER, RecordError
from mindplm.data.draw import Drawn, Work, task_number
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.pair_text import Source, source_ids, source_of, target_ids
from mindplm.data.shapes import plain
from mindplm.data.sources import Problem
from mindplm.data.tasks import generator
from mindplm.data.token_rows import OneEach, Piece, TextDrawer, TokenRow
from mindplm.errors import ConfigError

CORRUPT, RECORD, SIGNAL = TASKS = ("corrupt", "record", kinds.SIGNAL)
COLUMNS = ("ids", "real", "decoder_ids", "targets")


def text_piece(text: str, tokenizer: Any, room: int) -> Piece:
    """A text whose runs will be cut out.

    Raises:
        RecordError: It is too short or too long.
    """
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise RecordError("a text of less than two tokens", reason="no text")
    if len(ids) > room:
        message = f"text of {len(ids)} tokens, {room} fit when its spans are cut out"
        raise RecordError(message, reason="too long", too_big=True)
    noise, runs = spans.counts(len(ids))
    return Piece(np.array([ids], np.int32), num_targets=noise + runs + 1)


def pair_piece(source: Source, target: str, tokenizer: Any, shape: RowShape) -> tuple[Piece, int]:
    """A pair, and how many of its sides were cut.

    Raises:
        RecordError: It cannot be used.
    """
    read = source_ids(source, tokenizer, shape.seq_len)
    written = target_ids(target, tokenizer, shape.max_targets)
    lengths = len(read.ids), len(written.ids)
    tokens = np.array([read.ids + written.ids], np.int32)
    return Piece(tokens, num_targets=lengths[1], lengths=lengths), read.cut + written.cut


def pair_row(source: Source, target: str, tokenizer: Any, shape: RowShape) -> tuple[TokenRow, int]:
    """A row of one pair, and how many of its sides were cut; see `pair_piece`."""
    piece, cut = pair_piece(source, target, tokenizer, shape)
    return OneEach(1, shape).add(piece)[0], cut


class PairDrawer:
    """Turns draws from documents into pieces.

    Attributes:
        uses_others: The other documents beside one are wanted: their answers are options.

    Args:
        sources: All sources of the run.
        names: Their names, different from each other.
        tokenizer: Cuts the texts.
        settings: Shape of rows, seed and so on.
    """

    uses_others = True

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: Any,
        settings: RowSettings,
    ):
        self._names, self._seed = list(names), settings.seed
        self._beside: Sequence[Any] = ()
        self._by_signal: dict[str, list[Any]] = {}
        self._weights = [dict(source.tasks) for source in sources]
        shapes = [source.shape for source in sources]
        self._escaped = [shape is not None and shape.kind != "records" for shape in shapes]
        self._tokenizer, self._shape = tokenizer, settings.shape
        self._room = spans.raw_length(settings.shape.seq_len)[0]
        self._texts = TextDrawer(
            sources,
            names,
            tokenizer,
            dataclasses.replace(settings, shape=settings.shape._replace(seq_len=self._room)),
            tasks=TASKS,
            room=self._room,
            make=self._corrupt,
        )

    def _corrupt(self, text: str, task: str, rng: np.random.Generator) -> Piece:
        return text_piece(text, self._tokenizer, self._room)

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        fields, weights = work.document.fields, self._weights[work.source]
        task = SIGNAL if weights.get(SIGNAL, 0) else RECORD
        if task == RECORD and (ANSWER not in fields or not weights.get(RECORD, 0)):
            return self._texts(work)
        drawn = Drawn(work.source, work.draw, work.document.place, True)
        try:
            if task == SIGNAL:
                pair = self._asked(work, drawn)
            else:
                fields = plain(fields) if self._escaped[work.source] else fields
                pair = source_of(fields), answer_of(fields)
            piece, cut = pair_piece(*pair, self._tokenizer, self._shape)
        except RecordError as error:
            drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
            return drawn
        piece.task = task_number(work.source, task, TASKS)
        drawn.counts["texts cut to fit"] += cut
        drawn.instances.append(piece)
        return drawn

    def _asked(self, work: Work, drawn: Drawn) -> tuple[Source, str]:
        """A question about a signal and its answer."""
        name, data = (work.document.fields[key] for key in ("signal", "data"))
        rng = generator(self._seed, self._names[work.source], work.number, work.draw)
        asked = rst.ask(rst.signal(name), data, self._others(work).get(name, ()), rng)
        drawn.counts["signals with options" if asked.options else "open signals"] += 1
        return asked.source, asked.target

    def _others(self, work: Work) -> Mapping[str, list[Any]]:
        """The records beside one, by signal; the same for all documents of a chunk."""
        if self._beside is not work.others:
            self._beside, self._by_signal = work.others, {}
            for other in work.others:
                records = self._by_signal.setdefault(other.fields["signal"], [])
                records.append(other.fields["data"])
        return self._by_signal


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws | None
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS; runs are cut out as the stream of each row says."""
    columns = {name: np.zeros((num_rows, shape.seq_len), np.int32) for name in COLUMNS[:2]}
    columns["decoder_ids"] = np.zeros((num_rows, shape.max_targets), np.int32)
    columns["targets"] = np.full((num_rows, shape.max_targets), IGNORE, np.int32)
    for place, row in enumerate(rows):
        read, written = _sides(row, marks, draws, place)
        columns["ids"][place, : len(read)] = read
        columns["real"][place, : len(read)] = 1
        columns["decoder_ids"][place, 1 : len(written)] = written[:-1]
        columns["targets"][place, : len(written)] = written
    return columns


def _sides(
    row: TokenRow, marks: Any, draws: Draws | None, place: int
) -> tuple[Sequence[int], Sequence[int]]:
    """What is read and what is written of a row."""
    ids = row.tokens[0].tolist()
    if len(row.lengths) > 1:
        return ids[: row.lengths[0]], ids[row.lengths[0] :]
    assert draws is not None, "only pairs can do without random streams"
    mask = spans.draw_mask(len(ids), draws.generator(place))
    return spans.corrupt(ids, mask, marks.first_sentinel, marks.eos_id)


def _settings(config: RunConfig, split: str) -> RowSettings:
    data = config.data
    room, written = spans.raw_length(data.seq_len)
    most = spans.counts(room).spans
    if most > spans.NUM_SENTINELS:
        raise ConfigError(
            f"data.seq_len={data.seq_len}: a text has up to {most} runs that are cut out, there "
            f"are {spans.NUM_SENTINELS} sentinels; shorten it"
        )
    targets = data.max_targets or max(written, data.seq_len // 4)
    if targets < written and any(_corrupts(source) for source in _all(config, split)):
        raise ConfigError(
            f"data.max_targets={targets}, but the runs of a text of seq_len={data.seq_len} take "
            f"{written}"
        )
    shape = RowShape(data.seq_len, 0, 0, targets)
    return RowSettings(shape, data.repeat if split == "train" else 1, config.runtime.seed)


def _all(config: RunConfig, split: str) -> Sequence[SourceConfig]:
    return config.data.train if split == "train" else config.data.valid


def _corrupts(source: SourceConfig) -> bool:
    tasks: Mapping[str, float] = ROWS.sources([source])[0].tasks
    return tasks.get(CORRUPT, 0) > 0


ROWS = RowKind(
    name="pairs",
    tasks=TASKS,
    usual={CORRUPT: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size", "eos_id", "first_sentinel"),
    settings=_settings,
    drawer=PairDrawer,
    packer=OneEach,
    row=token_rows.row,
    collate=collate,
    numbers=token_rows.numbers,
    draws=True,
)
