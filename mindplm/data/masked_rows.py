"""BERT's rows: texts side by side; what is masked is drawn anew each time that a row is used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.data import masking, token_rows
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import RowShape
from mindplm.data.token_rows import Piece, TextDrawer, TokenRow
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

WHOLE_WORD, TOKEN = TASKS = ("whole_word", "token")
"""Whole words are masked; or single tokens."""
COLUMNS = ("ids", "types", "positions", "spans", "target_pos", "targets")


class _MakePiece:
    """Ids and group marks of a text."""

    def __init__(self, tokenizer: WordPieceTokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text: str, task: str, rng: np.random.Generator) -> Piece:
        ids, pieces = self._tokenizer.encode_pieces(text)
        if task == WHOLE_WORD:
            marks = masking.group_marks(masking.mark_words(pieces, masking.chinese_words(text)))
        else:
            marks = masking.group_marks(["" if t[:2] == "##" else t for t in pieces])
        return Piece(np.array([ids, marks], np.int32), num_targets=masking.budget(len(ids)))


def _drawer(
    sources: Sequence[SourceConfig],
    names: Sequence[str],
    tokenizer: WordPieceTokenizer,
    settings: RowSettings,
) -> TextDrawer:
    return TextDrawer(
        sources,
        names,
        tokenizer,
        settings,
        tasks=TASKS,
        room=settings.shape.seq_len - 2,
        make=_MakePiece(tokenizer),
    )


def _settings(config: RunConfig, split: str) -> RowSettings:
    data = config.data
    # A little more than the part that is guessed, since every text rounds its own part.
    shape = RowShape(data.seq_len, 0, 0, data.max_targets or -(-data.seq_len // 5))
    return RowSettings(shape, data.repeat if split == "train" else 1, config.runtime.seed)


@lru_cache(maxsize=4)
def _usual(vocab_size: int, special_ids: tuple[int, ...]) -> np.ndarray:
    """Ids that a masked one may be replaced by; the same for every batch."""
    return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special_ids)


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS, with masks from the stream of each row."""
    columns = token_rows.empty(num_rows, shape, COLUMNS[:4])
    usual = _usual(marks.vocab_size, tuple(marks.special_ids))
    for place, row in enumerate(rows):
        rng = draws.generator(place)
        ids, groups = row.tokens
        chosen: list[int] = []
        for part in row.texts():
            found = masking.groups_of(groups[part])
            order = rng.permutation(len(found)).tolist()
            room = masking.budget(part.stop - part.start)
            chosen += [part.start + i for i in masking.select(found, order, room)]
        columns["ids"][place, : len(row)] = masking.replace(ids, chosen, rng, marks.mask_id, usual)
        token_rows.put_layout(columns, place, row)
        token_rows.put_targets(columns, place, np.array(chosen, np.int64), ids[chosen])
    return columns


ROWS = RowKind(
    name="masked",
    tasks=TASKS,
    usual={WHOLE_WORD: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size", "mask_id", "special_ids"),
    settings=_settings,
    drawer=_drawer,
    packer=token_rows.packer,
    row=token_rows.row,
    collate=collate,
    numbers=token_rows.numbers,
    draws=True,
)
