"""CPT's rows: sentences of one document; what is permuted and masked is drawn at each use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.data import token_rows
from mindplm.data.cpm_bee import RecordError
from mindplm.data.cpt_text import END_MARKS, Marks, RandomDraw, cut_sentences, make_sample, row_of
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.token_rows import Piece, TextDrawer, TokenRow
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

DENOISE = "denoise"
TASKS = (DENOISE,)
"""Sentences with masked words, for either decoder."""
COLUMNS = ("ids", "decoder_ids", "writes", "target_pos", "targets")


def _marks(tokenizer: Any) -> Marks:
    """What samples depend on, from a tokenizer or from what a folder of rows keeps of it."""
    lines = tokenizer.lines
    known = {piece: number for number, piece in enumerate(lines) if piece in END_MARKS}
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    return Marks(*ids, ends=frozenset(known.values()), pieces=lines)


class _MakePiece:
    """The sentences of a text: their ids, and a flag for the first token of each."""

    def __init__(self, tokenizer: WordPieceTokenizer, seq_len: int):
        self._tokenizer, self._seq_len = tokenizer, seq_len
        self._marks = _marks(tokenizer)

    def __call__(self, text: str, task: str, rng: np.random.Generator) -> Piece:
        tokenizer = self._tokenizer
        lines = text.split("\n")
        cut = (part for line in lines for part in cut_sentences(line))
        sentences = [ids for part in cut if (ids := tokenizer.ids_of(tokenizer.tokenize(part)))]
        if not sentences:
            raise RecordError("no text that the tokenizer sees", reason="empty text")
        size = sum(map(len, sentences))
        need = len(row_of(sentences, self._marks, 3 * size + 3))
        if need > self._seq_len:
            message = f"sentences of {need} tokens, seq_len is {self._seq_len}"
            raise RecordError(message, reason="too long", too_big=True)
        flags = [int(i == 0) for ids in sentences for i in range(len(ids))]
        tokens = np.array([[token for ids in sentences for token in ids], flags], np.int32)
        return Piece(tokens, num_targets=need)


def _drawer(
    sources: Sequence[SourceConfig],
    names: Sequence[str],
    tokenizer: WordPieceTokenizer,
    settings: RowSettings,
) -> TextDrawer:
    size = settings.shape.seq_len
    return TextDrawer(
        sources,
        names,
        tokenizer,
        settings,
        tasks=TASKS,
        room=max(4, size * 7 // 8),
        make=_MakePiece(tokenizer, size),
    )


def _settings(config: RunConfig, split: str) -> RowSettings:
    data = config.data
    shape = RowShape(data.seq_len, 0, 0, data.seq_len)
    return RowSettings(shape, data.repeat if split == "train" else 1, config.runtime.seed)


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS, each a sample from its own random stream."""
    columns = {name: np.zeros((num_rows, shape.seq_len), np.int32) for name in COLUMNS[:2]}
    columns["writes"] = np.zeros(num_rows, np.int32)
    columns["target_pos"] = np.zeros((num_rows, shape.max_targets), np.int32)
    columns["targets"] = np.full((num_rows, shape.max_targets), IGNORE, np.int32)
    known = _marks(marks)
    for place, row in enumerate(rows):
        ids, flags = row.tokens
        sentences = np.split(ids, np.flatnonzero(flags)[1:])
        draw = RandomDraw(draws.generator(place), marks.vocab_size)
        sample = make_sample([part.tolist() for part in sentences], known, shape.seq_len, draw)
        columns["ids"][place, : len(sample.source)] = sample.source
        columns["decoder_ids"][place, : len(sample.target)] = sample.previous
        columns["writes"][place] = sample.writes
        at = np.flatnonzero(sample.predicted)
        token_rows.put_targets(columns, place, at, sample.target[at])
    return columns


ROWS = RowKind(
    name="cpt",
    tasks=TASKS,
    usual={DENOISE: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size", "cls_id", "sep_id", "mask_id", "lines"),
    settings=_settings,
    drawer=_drawer,
    packer=token_rows.OneEach,
    row=token_rows.row,
    collate=collate,
    numbers=token_rows.numbers,
    draws=True,
)
