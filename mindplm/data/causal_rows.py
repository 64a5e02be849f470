"""Rows of causal language models: inputs, and the next token of each as its label.

lm       texts are laid end to end, each with its end mark, and cut after every seq_len tokens;
         a row is one text to the model, as in the original pretraining of GPT-1 and CPM-1
apart    the same, but the texts of a row do not see each other and have positions of their own
record   a record is read, its answer is predicted; records share rows, but do not see each other
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.data import token_rows
from mindplm.data.causal_text import answer_ids, prompt_ids
from mindplm.data.cpm_bee import ANSWER, RecordError
from mindplm.data.draw import Drawn, Work, task_number
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, Packer, RowShape, check_fits
from mindplm.data.plans import RecordPlan
from mindplm.data.shapes import plain
from mindplm.data.sources import Problem
from mindplm.data.tasks import choose_task, generator
from mindplm.data.token_rows import Piece, TokenRow
from mindplm.errors import ConfigError

LM, APART, RECORD = TASKS = ("lm", "apart", "record")
COLUMNS = ("ids", "positions", "spans", "target_pos", "targets")


def text_piece(text: str, tokenizer: Any) -> Piece:
    """A text with its end mark, to be laid end to end with others."""
    ids = tokenizer.encode(text)
    if tokenizer.eos_id >= 0:
        ids.append(tokenizer.eos_id)
    return Piece(np.array([ids], np.int32), num_targets=len(ids), num_chars=len(text))


def record_piece(record: dict[str, Any], tokenizer: Any) -> Piece:
    """Inputs and labels of a record; only its answer has labels.

    Raises:
        RecordError: It cannot be used.
    """
    prompt, answer = prompt_ids(record, tokenizer), answer_ids(record, tokenizer)
    if not prompt:
        raise RecordError("the text to be read has no tokens", reason="no text")
    ids = np.array(prompt + answer, np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORE
    return Piece(
        np.stack([ids[:-1], labels[1:]]), num_targets=len(answer), num_chars=len(record[ANSWER])
    )


class CausalDrawer:
    """Turns draws from documents into pieces.

    Args:
        sources: All sources of the run.
        names: Their names, different from each other.
        tokenizer: Cuts the texts.
        settings: Shape of rows, seed and so on.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: Any,
        settings: RowSettings,
    ):
        self._weights = [dict(source.tasks) for source in sources]
        shapes = [source.shape for source in sources]
        self._plans = [
            RecordPlan(source) if source.transforms is not None else None for source in sources
        ]
        if any(plan is not None and plan.shows_examples for plan in self._plans):
            raise ConfigError("data: incontext_weight: records of this family show no others")
        self._escaped = [shape is not None and shape.kind != "records" for shape in shapes]
        self._names, self._tokenizer, self._settings = list(names), tokenizer, settings

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        fields, weights = work.document.fields, self._weights[work.source]
        plan = self._plans[work.source]
        is_record = plan is not None or (ANSWER in fields and weights.get(RECORD, 0) > 0)
        drawn = Drawn(work.source, work.draw, work.document.place, is_record)
        try:
            if is_record:
                task = RECORD
                fields = plain(fields) if self._escaped[work.source] else fields
                made = (
                    plan.draw(self._stream(work, work.draw))(fields) if plan is not None else fields
                )
                if made is None:
                    drawn.counts["left out by the transform"] += 1
                    return drawn
                piece = record_piece(dict(made), self._tokenizer)
                check_fits(piece, self._settings.shape)  # type: ignore[arg-type]
            else:
                rng = self._stream(work)
                texts = {name: weight for name, weight in weights.items() if name != RECORD}
                task = choose_task(texts, rng)
                piece = text_piece(fields["text"], self._tokenizer)
                drawn.num_chars = len(fields["text"])
                if len(piece) < 2:
                    raise RecordError("the text has no tokens", reason="no text")
        except RecordError as error:
            drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
            return drawn
        piece.task = task_number(work.source, task, TASKS)
        drawn.instances.append(piece)  # type: ignore[arg-type]
        return drawn

    def _stream(self, work: Work, draw: int = 0) -> np.random.Generator:
        """The random stream of a draw from a document."""
        return generator(self._settings.seed, self._names[work.source], work.number, draw)


class _Stream:
    """Texts end to end, cut into windows that share one token: a label, then an input."""

    def __init__(self, seq_len: int, apart: bool):
        self._seq_len, self._apart = seq_len, apart
        self._waiting: deque[Piece] = deque()
        self._used = 0
        self._left = 0

    def add(self, piece: Piece) -> list[TokenRow]:
        """Takes a text; the windows that are full now."""
        self._waiting.append(piece)
        self._left += len(piece)
        rows = []
        while self._left > self._seq_len:
            rows.append(self._cut(self._seq_len + 1))
        return rows

    def flush(self) -> list[TokenRow]:
        """What is left, if anything of it is predicted."""
        rows = [self._cut(self._left)] if self._left > 1 else []
        self._waiting.clear()
        self._used = self._left = 0
        return [row for row in rows if row.num_targets]

    def _cut(self, num: int) -> TokenRow:
        """The next tokens; the last of them stays."""
        ids: list[np.ndarray] = []
        lengths: list[int] = []
        tasks: list[int] = []
        chars = 0
        used, missing = self._used, num
        for piece in self._waiting:
            part = piece.tokens[0, used : used + missing]
            # The characters of a text are spread over its tokens. The first token here is no
            # label: it was that of the window before, or nothing predicts it.
            first, last = used + (self._apart or not ids), used + len(part)
            chars += _share(piece, last) - _share(piece, first)
            ids.append(part)
            lengths.append(len(part))
            tasks.append(piece.task)
            missing -= len(part)
            used = 0
            if not missing:
                break
        self._forget(num - 1)
        return _window(np.concatenate(ids), lengths, tasks, chars, self._apart)

    def _forget(self, num: int) -> None:
        self._left -= num
        num += self._used
        while self._waiting and num >= len(self._waiting[0]):
            num -= len(self._waiting.popleft())
        self._used = num


def _share(piece: Piece, count: int) -> int:
    """Characters of the first tokens of a text, if all tokens had equally many."""
    return round(piece.num_chars * count / len(piece))


def _window(
    ids: np.ndarray, lengths: list[int], tasks: list[int], chars: int, apart: bool
) -> TokenRow:
    """A row of tokens that follow each other; the last is a label only."""
    tokens = np.stack([ids[:-1], ids[1:]])
    if apart:
        # The first token of a text is no business of the text before it.
        tokens[1, np.cumsum(lengths)[:-1] - 1] = IGNORE
        lengths = [*lengths[:-1], lengths[-1] - 1] if lengths[-1] > 1 else lengths[:-1]
    else:
        lengths = [len(ids) - 1]
    num_targets = int((tokens[1] != IGNORE).sum())
    task_ids = np.array(tasks[: len(lengths)], np.int32)
    return TokenRow(tokens, np.array(lengths, np.int32), task_ids, num_targets, chars)


class CausalPacker:
    """Lays texts end to end, and puts records into rows where the least room is left.

    Args:
        num_rows: Rows of a batch.
        shape: Sizes of a row.
    """

    def __init__(self, num_rows: int, shape: RowShape):
        self._records: Packer = token_rows.packer(num_rows, shape)
        self._streams = [_Stream(shape.seq_len, apart) for apart in (False, True)]

    def add(self, piece: Any) -> list[Any]:
        """Takes a text or a record; returns the rows that are full now."""
        name = TASKS[piece.task % len(TASKS)]
        return (
            self._records.add(piece) if name == RECORD else self._streams[name == APART].add(piece)
        )

    def flush(self) -> list[Any]:
        """Closes the rows that are open."""
        texts = [row for stream in self._streams for row in stream.flush()]
        return texts + self._records.flush()


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws | None
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS."""
    columns = token_rows.empty(num_rows, shape, COLUMNS[:3])
    for place, row in enumerate(rows):
        ids, labels = row.tokens
        columns["ids"][place, : len(row)] = ids
        token_rows.put_layout(columns, place, row)
        at = np.flatnonzero(labels != IGNORE)
        token_rows.put_targets(columns, place, at, labels[at])
    return columns


def _settings(config: RunConfig, split: str) -> RowSettings:
    data = config.data
    shape = RowShape(data.seq_len, 0, 0, data.max_targets or data.seq_len)
    return RowSettings(shape, data.repeat if split == "train" else 1, config.runtime.seed)


ROWS = RowKind(
    name="causal",
    tasks=TASKS,
    usual={LM: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size",),
    settings=_settings,
    drawer=CausalDrawer,
    packer=CausalPacker,
    row=token_rows.row,
    collate=collate,
    numbers=token_rows.numbers,
)
