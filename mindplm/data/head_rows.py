"""Rows of tasks with a head: one text, or a pair, with its class, the tags of its tokens or a span.

Of a row two columns are kept: ids, and labels by token (IGNORE where nothing is learned). The class
of a text stands at its first token; BEGIN and END stand at the ends of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.config_head import classes_of, form_of
from mindplm.config_shape import ShapeConfig
from mindplm.data import reading, token_rows
from mindplm.data.cpm_bee import RecordError
from mindplm.data.documents import Document, Problem
from mindplm.data.draw import Drawn, Work, task_number
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, RowShape, check_fits
from mindplm.data.sources import RECORD
from mindplm.data.token_rows import Piece, TokenRow
from mindplm.errors import ConfigError
from mindplm.text import unescape

COLUMNS = ("ids", "spans", "target_pos", "targets")
BEGIN, END = 1, 2
"""Labels of the ends of a span; their sum stands at the only token of a span."""


# --- records as tokens ----------------------------------------------------------------------------


def text_ids(document: Document, shape: ShapeConfig, tokenizer: Any) -> list[int]:
    """Ids of [CLS] text [SEP], or [CLS] text [SEP] text [SEP], of a record of one or two inputs."""
    texts = [unescape(document.fields[key]) for key in shape.shown]
    if not 1 <= len(texts) <= 2:
        raise ConfigError(f"head.task: its shape shows {len(texts)} inputs, a head reads 1 or 2")
    ids, _ = tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
    return ids


def tagged_ids(document: Document, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of [CLS] tokens [SEP] and the place of each token's first piece."""
    ids, places = [tokenizer.cls_id], []
    for token, _ in document.tagged:
        places.append(len(ids))
        ids += tokenizer.ids_of(tokenizer.tokenize(token)) or [tokenizer.unk_id]
    return [*ids, tokenizer.sep_id], places


def class_of(tag: str) -> str:
    """A tag with the marks B and I only: one token alone begins, the middle and end go on."""
    mark, dash, kind = tag.partition("-")
    return {"S": "B", "E": "I", "M": "I"}.get(mark, mark) + dash + kind


def pieces_of(
    document: Document, shape: ShapeConfig, tokenizer: Any, seq_len: int
) -> list[tuple[list[int], np.ndarray]]:
    """Ids and labels of what is learned from a record.

    Raises:
        RecordError: It is too long, or its answer does not stand in its text.
    """
    form = form_of(shape)
    if form == "span":
        windows = reading.windows_of(document, tokenizer, seq_len)
        return [(window.ids, _ends(window)) for window in windows]
    if form == "text":
        ids = text_ids(document, shape, tokenizer)
        labels = np.full(len(ids), IGNORE, np.int32)
        labels[0] = list(shape.labels).index(document.label)
    else:
        ids, places = tagged_ids(document, tokenizer)
        labels = np.full(len(ids), IGNORE, np.int32)
        known = {name: number for number, name in enumerate(classes_of(shape))}
        labels[places] = [known[class_of(tag)] for _, tag in document.tagged]
    if len(ids) > seq_len:
        message = f"{len(ids)} tokens, seq_len is {seq_len}; max_chars of the shape cuts texts"
        raise RecordError(message, reason="too long")
    return [(ids, labels)]


def _ends(window: reading.Window) -> np.ndarray:
    labels = np.full(len(window.ids), IGNORE, np.int32)
    if window.begin == window.end:
        labels[window.begin] = BEGIN + END
    else:
        labels[[window.begin, window.end]] = BEGIN, END
    return labels


# --- rows -----------------------------------------------------------------------------------------


class HeadDrawer:
    """Turns documents into pieces, as they are each time; see `token_rows.TextDrawer`."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: Any,
        settings: RowSettings,
    ):
        for source in sources:
            if source.shape is None:
                raise ConfigError(f"data source {source.path} has no shape; name its task: FILE")
            form_of(source.shape)
        self._shapes = [source.shape for source in sources]
        self._tokenizer, self._settings = tokenizer, settings

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        drawn = Drawn(work.source, work.draw, work.document.place, True)
        shape, rows = self._shapes[work.source], self._settings.shape
        assert shape is not None
        try:
            found = pieces_of(work.document, shape, self._tokenizer, rows.seq_len)
        except RecordError as error:
            drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
            return drawn
        for ids, labels in found:
            count = 2 if form_of(shape) == "span" else int((labels != IGNORE).sum())
            piece: Any = Piece(np.array([ids, labels], np.int32), num_targets=count)
            check_fits(piece, rows)
            piece.task = task_number(work.source, RECORD, (RECORD,))
            drawn.instances.append(piece)
        return drawn


def _most_targets(form: str, seq_len: int) -> int:
    return {"text": 1, "tokens": seq_len, "span": 2}[form]


def _settings(form: str, config: RunConfig, split: str) -> RowSettings:
    size = config.data.seq_len
    shape = RowShape(size, 0, 0, _most_targets(form, size))
    return RowSettings(shape, config.data.repeat if split == "train" else 1, config.runtime.seed)


def _text_settings(config: RunConfig, split: str) -> RowSettings:
    return _settings("text", config, split)


def _token_settings(config: RunConfig, split: str) -> RowSettings:
    return _settings("tokens", config, split)


def _span_settings(config: RunConfig, split: str) -> RowSettings:
    return _settings("span", config, split)


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws | None
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS."""
    columns = token_rows.empty(num_rows, shape, COLUMNS[:2])
    for place, row in enumerate(rows):
        _put_row(columns, place, row, ends=False)
    return columns


def _put_row(columns: dict[str, np.ndarray], place: int, row: TokenRow, *, ends: bool) -> None:
    """Enters a row; the targets are its labels, or the places of its first and last one."""
    ids, labels = row.tokens
    columns["ids"][place, : len(row)] = ids
    columns["spans"][place, : len(row)] = 1
    at = np.flatnonzero(labels != IGNORE)
    at = at[[0, -1]] if ends else at
    token_rows.put_targets(columns, place, at, at if ends else labels[at])


def _collate_spans(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws | None
) -> dict[str, np.ndarray]:
    columns = token_rows.empty(num_rows, shape, COLUMNS[:2])
    for place, row in enumerate(rows):
        _put_row(columns, place, row, ends=True)
    return columns


def _kind(form: str, settings: Any, collate: Any) -> RowKind:
    return RowKind(
        name=f"head of {form}",
        tasks=(RECORD,),
        usual={RECORD: 1.0},
        columns=COLUMNS,
        stored=token_rows.STORED,
        marks=("vocab_size",),
        settings=settings,
        drawer=HeadDrawer,
        packer=token_rows.OneEach,
        row=token_rows.row,
        collate=collate,
        numbers=token_rows.numbers,
    )


ROWS: dict[str, RowKind] = {
    "text": _kind("text", _text_settings, collate),
    "tokens": _kind("tokens", _token_settings, collate),
    "span": _kind("span", _span_settings, _collate_spans),
}
"""What a head scores -> its rows."""
