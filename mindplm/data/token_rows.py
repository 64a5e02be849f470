"""Rows of plain token columns: texts side by side, each with positions of its own.

What is stored of a row: `tokens`, the columns that a family keeps, one after the other; `lengths`
of the texts in it; `task_ids` of the texts. `spans` (number of the text from 1 on, 0 for padding)
and `positions` (from 0 on in each text) of a batch follow from the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data.cpm_bee import RecordError
from mindplm.data.draw import Cutter, Drawn, Work, halve, split_text, task_number
from mindplm.data.kinds import RowSettings
from mindplm.data.packing import IGNORE, OpenRow, Packer, RowShape, check_fits
from mindplm.data.sources import Problem
from mindplm.data.tasks import choose_task, generator

NOTHING = np.zeros(0, np.int32)
STORED = ("tokens", "lengths", "task_ids")


@dataclass
class Piece:
    """One text, or one part of a text, as token columns.

    Attributes:
        tokens: Columns by tokens, int32.
        task: Number of its task.
        num_targets: Predicted tokens, or the most there can be.
        num_chars: Characters of what is predicted; 0 where nats a character mean nothing.
        raw: Whatever the caller wants to find again.
        lengths: Tokens of the parts that it has, if there are several; else ().
    """

    tokens: np.ndarray
    task: int = 0
    num_targets: int = 0
    num_chars: int = 0
    raw: Any = None
    lengths: tuple[int, ...] = ()

    segment_rel: ClassVar[np.ndarray] = NOTHING
    largest_subs: ClassVar[dict[int, int]] = {}
    num_ext: ClassVar[int] = 0

    def __len__(self) -> int:
        return self.tokens.shape[1]


@dataclass
class TokenRow:
    """Texts that share a row.

    Attributes:
        tokens: Columns by tokens, int32.
        lengths: Tokens of each text, int32.
        task_ids: Number of the task of each text, int32.
        num_targets: Predicted tokens, or the most there can be.
        num_chars: Characters of what is predicted.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    task_ids: np.ndarray
    num_targets: int = 0
    num_chars: int = 0

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored of it."""
        return {"tokens": self.tokens.ravel(), "lengths": self.lengths, "task_ids": self.task_ids}

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """What it brings to the extension table: nothing."""
        return NOTHING, NOTHING

    def texts(self) -> Iterator[slice]:
        """The place of each text."""
        start = 0
        for length in self.lengths.tolist():
            yield slice(start, start + length)
            start += length


class _OpenTokenRow(OpenRow):
    def close(self) -> Any:
        parts = self.instances
        return TokenRow(
            np.concatenate([part.tokens for part in parts], axis=1),
            np.array([len(part) for part in parts], np.int32),
            np.array([part.task for part in parts], np.int32),
            sum(part.num_targets for part in parts),
            sum(part.num_chars for part in parts),
        )


def packer(num_rows: int, shape: RowShape) -> Packer:
    """Puts pieces into rows, each where the least room is left."""
    return Packer(num_rows, shape, _OpenTokenRow)


class OneEach:
    """A packer that gives every piece a row of its own.

    Args:
        num_rows: Rows of a batch.
        shape: Sizes of a row.
    """

    def __init__(self, num_rows: int, shape: RowShape):
        self.num_rows, self.shape = num_rows, shape

    def add(self, piece: Piece) -> list[TokenRow]:
        """The row of a piece."""
        lengths = np.array(piece.lengths or (len(piece),), np.int32)
        task = np.array([piece.task], np.int32)
        return [TokenRow(piece.tokens, lengths, task, piece.num_targets, piece.num_chars)]

    def flush(self) -> list[TokenRow]:
        """Nothing is left."""
        return []


def row(arrays: Mapping[str, np.ndarray]) -> TokenRow:
    """A row from what is stored of it."""
    lengths = arrays["lengths"]
    tokens = arrays["tokens"].reshape((-1, int(lengths.sum())))
    return TokenRow(tokens, lengths, arrays["task_ids"])


def numbers(shape: RowShape) -> int:
    """Most int32 numbers of a stored row."""
    return 4 * shape.seq_len


def empty(num_rows: int, shape: RowShape, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of empty rows: the named ones [B, S], then target_pos and targets [B, T]."""
    columns = {name: np.zeros((num_rows, shape.seq_len), np.int32) for name in names}
    columns["target_pos"] = np.zeros((num_rows, shape.max_targets), np.int32)
    columns["targets"] = np.full((num_rows, shape.max_targets), IGNORE, np.int32)
    return columns


def put_layout(columns: dict[str, np.ndarray], place: int, row: TokenRow) -> None:
    """Enters `positions` and `spans` of a row."""
    for number, part in enumerate(row.texts(), start=1):
        columns["positions"][place, part] = np.arange(part.stop - part.start)
        columns["spans"][place, part] = number


def put_targets(
    columns: dict[str, np.ndarray], place: int, at: np.ndarray, labels: np.ndarray
) -> None:
    """Enters the predicted positions of a row and what they predict."""
    assert len(at) <= columns["targets"].shape[1], "more targets than a row may have"
    columns["target_pos"][place, : len(at)] = at
    columns["targets"][place, : len(at)] = labels


MakePiece = Callable[[str, str, np.random.Generator], Piece]
"""(text, task, random stream) -> the text as a piece; RecordError if it does not fit."""


class TextDrawer:
    """Turns draws from documents into pieces of at most a row.

    Args:
        sources: All sources of the run.
        names: Their names, different from each other.
        tokenizer: Measures texts.
        settings: Shape of rows, seed and so on.
        tasks: Names of the family's tasks.
        room: Most tokens of a text without the marks around it.
        make: Makes a piece of a text.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: Cutter,
        settings: RowSettings,
        *,
        tasks: tuple[str, ...],
        room: int,
        make: MakePiece,
    ):
        self._weights = [dict(source.tasks) for source in sources]
        self._names, self._tasks = list(names), tasks
        self._tokenizer, self._settings = tokenizer, settings
        self._room, self._make = room, make

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        rng = generator(self._settings.seed, self._names[work.source], work.number, work.draw)
        text = work.document.fields["text"]
        drawn = Drawn(work.source, work.draw, work.document.place, False, num_chars=len(text))
        waiting = split_text(text, self._tokenizer, self._room, rng if work.draw else None)[::-1]
        while waiting:
            part = waiting.pop()
            if not part.strip():
                continue
            task = choose_task(self._weights[work.source], rng)
            try:
                piece: Any = self._make(part, task, rng)
                check_fits(piece, self._settings.shape)
            except RecordError as error:
                if error.too_big and len(part) > 1:
                    waiting += reversed(halve(part, self._tokenizer))
                else:
                    drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
                continue
            piece.task = task_number(work.source, task, self._tasks)
            drawn.instances.append(piece)
        return drawn
