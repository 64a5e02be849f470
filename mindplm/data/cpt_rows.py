"""CPT's rows: sentences of one document, masked and permuted anew at each use; or a record.

A document is a text, or sentences of ids from an index (`mindplm.data.indexed`).

Of sentences two columns are kept, ids and a flag for the first token of each sentence; of a record
the ids of both sides, flagged READ and WRITTEN; of a record in a template see SLOT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.data import token_rows
from mindplm.data.causal_text import answer_of, plain_text
from mindplm.data.cpm_bee import ANSWER, RecordError
from mindplm.data.cpt_text import END_MARKS, Marks, RandomDraw, cut_sentences, make_sample, row_of
from mindplm.data.draw import Drawn, Work, task_number
from mindplm.data.indexed import SENTENCES
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.slots import Slots, Slotted, slots_of, texts_of
from mindplm.data.sources import RECORD, Problem
from mindplm.data.tasks import generator
from mindplm.data.token_rows import Piece, TextDrawer, TokenRow
from mindplm.text import unescape
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

DENOISE = "denoise"
TASKS = (DENOISE, RECORD)
"""Sentences with masked words, for either decoder; a record whose answer is written."""
READ, WRITTEN = 2, 3
SLOT, WORD, ASKED, PLACE = 4, 5, 6, 10
"""Flags of a record in a template: what is read, the label's words, the writing decoder's input;
PLACE is added where a word is looked for."""
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
        need = row_len(sentences, self._marks)
        if need > self._seq_len:
            message = f"sentences of {need} tokens, seq_len is {self._seq_len}"
            raise RecordError(message, reason="too long", too_big=True)
        return _piece(sentences, need)


def _piece(sentences: Sequence[Sequence[int]], need: int) -> Piece:
    flags = [int(i == 0) for ids in sentences for i in range(len(ids))]
    tokens = np.array([[token for ids in sentences for token in ids], flags], np.int32)
    return Piece(tokens, num_targets=need)


def row_len(sentences: Sequence[Sequence[int]], marks: Marks) -> int:
    """Tokens of a row of sentences."""
    return len(row_of(sentences, marks, 3 * sum(map(len, sentences)) + 3))


def pieces_of(
    sentences: Sequence[Sequence[int]], marks: Marks, seq_len: int, first_len: int = 0
) -> list[Piece]:
    """Rows of as many sentences of ids as fit; a sentence longer than a row is cut.

    Args:
        sentences: Of one document.
        marks: Of the tokenizer.
        seq_len: Most tokens of a row.
        first_len: The same for the first row, so that a document is not always cut alike; 0: the
            usual.
    """
    most = max(1, (seq_len - 2) // 2)  # with an end mark at each token it still fits
    waiting = [ids[i : i + most] for ids in sentences for i in range(0, len(ids), most)]
    found: list[Piece] = []
    group: list[Sequence[int]] = []
    limit, need = first_len or seq_len, 0
    for ids in waiting:
        size = row_len([*group, ids], marks)
        if group and size > limit:
            found.append(_piece(group, need))
            group, limit = [], seq_len
            size = row_len([ids], marks)
        group, need = [*group, ids], size
    return [*found, _piece(group, need)] if group else found


def read_ids(record: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Ids of what is read of a record: [CLS] text [SEP], each further text with its own [SEP].

    Raises:
        RecordError: A value is no text, or there is none.
    """
    ids = [tokenizer.cls_id]
    for key, value in record.items():
        if key == ANSWER:
            continue
        pieces = tokenizer.tokenize(unescape(plain_text(value, key)))
        ids += [*tokenizer.ids_of(pieces), tokenizer.sep_id] if pieces else []
    if len(ids) < 2:
        keys = ", ".join(map(str, record)) or "none"
        raise RecordError(f"expected a record with a text; its keys are {keys}", reason="no text")
    return ids


def record_piece(record: Mapping[str, Any], tokenizer: Any, seq_len: int) -> Piece:
    """A record's sides: what is read, and [CLS] answer [SEP].

    Raises:
        RecordError: It cannot be used.
    """
    answer = unescape(answer_of(record))
    read, written = read_ids(record, tokenizer), tokenizer.encode(answer)[0]
    if max(len(read), len(written)) > seq_len:
        message = f"{len(read)} tokens are read and {len(written)} written, seq_len is {seq_len}"
        raise RecordError(message, reason="too long")
    flags = [READ] * len(read) + [WRITTEN] * len(written)
    return Piece(np.array([read + written, flags], np.int32), num_targets=len(written))


def slot_piece(made: Slotted, slots: Slots, label: int, seq_len: int, *, writes: bool) -> Piece:
    """A record in its template, with the words of its label.

    Raises:
        RecordError: The template is longer than a row.
    """
    words = slots.word_ids[label]
    asked = slots.decoder_ids(made, label) if writes else []
    if max(len(made.ids), len(asked)) > seq_len:
        message = f"template of {max(len(made.ids), len(asked))} tokens, seq_len is {seq_len}"
        raise RecordError(message, reason="too long")
    flags = np.repeat([SLOT, WORD, ASKED], [len(made.ids), len(words), len(asked)])
    before = len(made.ids) + len(words) if writes else 0
    flags[[before + place for place in made.places]] += PLACE
    return Piece(np.array([[*made.ids, *words, *asked], flags], np.int32), num_targets=len(words))


class CptDrawer:
    """Turns draws from documents into pieces; see `token_rows.TextDrawer`."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: WordPieceTokenizer,
        settings: RowSettings,
    ):
        self._seq_len = size = settings.shape.seq_len
        self._tokenizer, self._names, self._seed = tokenizer, list(names), settings.seed
        self._marks = _marks(tokenizer)
        self._shapes = [source.shape for source in sources]
        self._slots = [slots_of(s, tokenizer, size) if s else [] for s in self._shapes]
        self._texts = TextDrawer(
            sources,
            names,
            tokenizer,
            settings,
            tasks=TASKS,
            room=max(4, size * 7 // 8),
            make=_MakePiece(tokenizer, size),
        )

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        if SENTENCES in work.document.fields and "text" not in work.document.fields:
            return self._sentences(work)
        if self._slots[work.source]:
            return self._in_slots(work)
        if ANSWER not in work.document.fields:
            return self._texts(work)
        drawn = Drawn(work.source, work.draw, work.document.place, True)
        try:
            piece: Any = record_piece(work.document.fields, self._tokenizer, self._seq_len)
        except RecordError as error:
            drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
            return drawn
        piece.task = task_number(work.source, RECORD, TASKS)
        drawn.instances.append(piece)
        return drawn

    def _in_slots(self, work: Work) -> Drawn:
        """A row for each template."""
        drawn = Drawn(work.source, work.draw, work.document.place, True)
        shape = self._shapes[work.source]
        assert shape is not None
        label = list(shape.labels).index(work.document.label)
        writes = shape.slots.states == "writing"
        try:
            for slots in self._slots[work.source]:
                made = slots(*texts_of(work.document, shape))
                piece: Any = slot_piece(made, slots, label, self._seq_len, writes=writes)
                piece.task = task_number(work.source, RECORD, TASKS)
                if made.cut:
                    drawn.counts["records cut to fit their template"] += 1
                drawn.instances.append(piece)
        except RecordError as error:
            drawn.problems.append(Problem(drawn.place, error.reason, str(error)))
        return drawn

    def _sentences(self, work: Work) -> Drawn:
        """The rows of a document of ids."""
        sentences = work.document.fields[SENTENCES]
        drawn = Drawn(work.source, work.draw, work.document.place, False)
        largest = max(map(max, sentences))
        if largest >= self._tokenizer.vocab_size:
            message = f"token {largest}, the vocabulary has {self._tokenizer.vocab_size}"
            drawn.problems.append(Problem(drawn.place, "unknown token", message))
            return drawn
        seed, first = self._seed, 0
        if work.draw:
            rng = generator(seed, self._names[work.source], work.number, work.draw)
            first = int(rng.integers(self._seq_len // 2, self._seq_len + 1))
        for piece in pieces_of(sentences, self._marks, self._seq_len, first):
            piece.task = task_number(work.source, DENOISE, TASKS)
            drawn.instances.append(piece)
        return drawn


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
        if flags[0] == READ:
            _put_record(columns, place, ids[flags == READ], ids[flags == WRITTEN])
            continue
        if flags[0] % PLACE == SLOT:
            _put_slots(columns, place, ids, flags)
            continue
        sentences = np.split(ids, np.flatnonzero(flags)[1:])
        draw = RandomDraw(draws.generator(place), marks.vocab_size)
        sample = make_sample([part.tolist() for part in sentences], known, shape.seq_len, draw)
        columns["ids"][place, : len(sample.source)] = sample.source
        columns["decoder_ids"][place, : len(sample.target)] = sample.previous
        columns["writes"][place] = sample.writes
        at = np.flatnonzero(sample.predicted)
        token_rows.put_targets(columns, place, at, sample.target[at])
    return columns


def _put_record(
    columns: dict[str, np.ndarray], place: int, read: np.ndarray, written: np.ndarray
) -> None:
    """The decoder reads [SEP] and what it wrote so far."""
    columns["ids"][place, : len(read)] = read
    columns["decoder_ids"][place, 0] = read[-1]
    columns["decoder_ids"][place, 1 : len(written)] = written[:-1]
    columns["writes"][place] = 1
    token_rows.put_targets(columns, place, np.arange(len(written)), written)


def _put_slots(
    columns: dict[str, np.ndarray], place: int, ids: np.ndarray, flags: np.ndarray
) -> None:
    kinds = flags % PLACE
    read, words, asked = (ids[kinds == kind] for kind in (SLOT, WORD, ASKED))
    columns["ids"][place, : len(read)] = read
    columns["decoder_ids"][place, : len(asked)] = asked
    columns["writes"][place] = writes = len(asked) > 0
    at = np.flatnonzero(flags[kinds == (ASKED if writes else SLOT)] >= PLACE)
    token_rows.put_targets(columns, place, at, words)


def _numbers(shape: RowShape) -> int:
    """Most int32 numbers of a stored row."""
    return 6 * shape.seq_len + 4


ROWS = RowKind(
    name="cpt",
    tasks=TASKS,
    usual={DENOISE: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size", "cls_id", "sep_id", "mask_id", "lines"),
    settings=_settings,
    drawer=CptDrawer,
    packer=token_rows.OneEach,
    row=token_rows.row,
    collate=collate,
    numbers=_numbers,
    draws=True,
    takes_sentences=True,
    takes_slots=True,
)
