"""Rows of GPT-1's fine-tuning: an example's marked sequences and its label, one example a row.

Of a row two columns are kept, ids and label, over its sequences end to end; the label stands at the
first token. See `mindplm.data.gpt1_tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.config_head import MarkedForm, marked_form
from mindplm.config_shape import ShapeConfig
from mindplm.config_task import read_task
from mindplm.data import token_rows
from mindplm.data.documents import Document, Problem
from mindplm.data.draw import Drawn, Work, task_number
from mindplm.data.gpt1_tasks import Ids, Marks, part_room, sequences
from mindplm.data.kinds import Draws, RowKind, RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.shapes import BLANK
from mindplm.data.sources import RECORD
from mindplm.data.token_rows import Piece, TokenRow
from mindplm.errors import ConfigError, DataError
from mindplm.text import escape, unescape
from mindplm.tokenizers.bpe import SPECIALS

COLUMNS = ("ids", "length", "extract", "label")
_PARTS = {"classification": 1, "pairs": 2, "choices": 2}
_CUT = "texts cut so that an example fits a row"


def marks_of(tokenizer: Any) -> Marks:
    """Ids of the marks.

    Raises:
        ConfigError: The vocabulary has none.
    """
    absent = [name for name in SPECIALS if name not in tokenizer.pieces]
    if absent:
        raise ConfigError(
            f"the vocabulary lacks {', '.join(absent)}, the marks of fine-tuning inputs; convert "
            "the checkpoint with --words rules+marks, which adds them"
        )
    return Marks(*(tokenizer.pieces[name] for name in SPECIALS))


def example_of(
    document: Document, shape: ShapeConfig, form: MarkedForm, tokenizer: Any, seq_len: int
) -> tuple[list[list[int]], int]:
    """The sequences of a record, and how many of its texts were cut.

    Raises:
        DataError: It has another number of inputs or answers.
    """
    fields = document.fields
    parts = [_inner(fields[escape(key)]) for key in shape.shown]
    wanted = _PARTS[shape.kind] - form.chooses
    if len(parts) != wanted:
        raise DataError(f"its shape shows {len(parts)} inputs, expected {wanted}")
    if form.chooses:
        words = _answers(document)
        if len(words) != form.num_sequences:
            raise DataError(f"it has {len(words)} answers, expected {form.num_sequences}")
        parts = [parts[0], *words]
    ids = [tokenizer.encode(text) for text in parts]
    room = part_room(seq_len, _PARTS[shape.kind])
    cut = sum(len(part) > room for part in ids)
    kept: list[Ids] = [part[:room] for part in ids]
    return sequences(form.task, kept, marks_of(tokenizer)), cut


def label_of(document: Document, shape: ShapeConfig) -> int:
    """Number of the right class or answer."""
    if shape.kind == "choices":
        return int(document.label)
    return list(shape.labels).index(document.label)


def _inner(text: str) -> str:
    return unescape(text).replace(BLANK, "_")


def _answers(document: Document) -> list[str]:
    """The words of the answers to choose from."""
    options = document.fields.get("options")
    if isinstance(options, Mapping):
        return [unescape(text) for text in options.values()]
    own = [c[BLANK] if isinstance(c, Mapping) else c for c in document.candidates]
    return [unescape(text) for text in own]


# --- rows -----------------------------------------------------------------------------------------


class MarkedDrawer:
    """Turns documents into examples, as they are each time.

    Args:
        sources: All sources of the run.
        names: Their names.
        tokenizer: Cuts the texts.
        settings: Shape of rows and so on; see `MarkedSettings`.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        names: Sequence[str],
        tokenizer: Any,
        settings: MarkedSettings,
    ):
        for source in sources:
            if source.shape is None:
                raise ConfigError(f"data source {source.path} has no shape; name its task: FILE")
        self._shapes = [source.shape for source in sources]
        self._tokenizer, self._settings = tokenizer, settings

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        drawn = Drawn(work.source, work.draw, work.document.place, True)
        shape, settings = self._shapes[work.source], self._settings
        assert shape is not None
        try:
            found, cut = example_of(
                work.document, shape, settings.form, self._tokenizer, settings.shape.seq_len
            )
        except DataError as error:
            drawn.problems.append(Problem(drawn.place, "unusable example", str(error)))
            return drawn
        if cut:
            drawn.counts[_CUT] += cut
        tokens = np.zeros((2, sum(map(len, found))), np.int32)
        tokens[0] = np.concatenate(found)
        tokens[1, 0] = label_of(work.document, shape)
        piece = Piece(tokens, num_targets=1, raw=[len(sequence) for sequence in found])
        piece.task = task_number(work.source, RECORD, (RECORD,))
        drawn.instances.append(piece)  # type: ignore[arg-type]
        return drawn


class OneByOne:
    """A row for each example.

    Args:
        num_rows: Rows of a batch.
        shape: Sizes of a row.
    """

    def __init__(self, num_rows: int, shape: RowShape):
        pass

    def add(self, piece: Any) -> list[Any]:
        """The row of an example."""
        lengths = np.array(piece.raw, np.int32)
        return [TokenRow(piece.tokens, lengths, np.array([piece.task], np.int32), 1)]

    def flush(self) -> list[Any]:
        """Nothing is held back."""
        return []


def collate(
    rows: Sequence[TokenRow], *, num_rows: int, shape: RowShape, marks: Any, draws: Draws | None
) -> dict[str, np.ndarray]:
    """Rows to COLUMNS: ids [B, A, T], length and extract [B, A], label [B], int32."""
    num = shape.max_targets
    ids = np.zeros((num_rows, num, shape.seq_len), np.int32)
    length = np.zeros((num_rows, num), np.int32)
    label = np.full(num_rows, IGNORE, np.int32)
    for place, row in enumerate(rows):
        for number, part in enumerate(row.texts()):
            ids[place, number, : part.stop - part.start] = row.tokens[0, part]
        length[place] = row.lengths
        label[place] = row.tokens[1, 0]
    return {"ids": ids, "length": length, "extract": np.maximum(length - 1, 0), "label": label}


@dataclass(frozen=True)
class MarkedSettings(RowSettings):
    """What the rows depend on besides texts and vocabulary.

    Attributes:
        form: How an example is laid out; the shape's max_targets are its sequences.
    """

    form: MarkedForm = MarkedForm("classification", 1, 2)


def form_of_run(config: RunConfig) -> MarkedForm:
    """The form of the examples of a run with a head."""
    head = config.head
    assert head is not None
    return marked_form(read_task(head.task).shape, head)


def _settings(config: RunConfig, split: str) -> MarkedSettings:
    form = form_of_run(config)
    shape = RowShape(config.data.seq_len, 0, 0, form.num_sequences)
    repeat = config.data.repeat if split == "train" else 1
    return MarkedSettings(shape, repeat, config.runtime.seed, form)


def _numbers(shape: RowShape) -> int:
    """Most int32 numbers of a stored row."""
    return (2 * shape.seq_len + 1) * shape.max_targets + 1


ROWS = RowKind(
    name="marked",
    tasks=(RECORD,),
    usual={RECORD: 1.0},
    columns=COLUMNS,
    stored=token_rows.STORED,
    marks=("vocab_size",),
    settings=_settings,
    drawer=MarkedDrawer,
    packer=OneByOne,
    row=token_rows.row,
    collate=collate,
    numbers=_numbers,
)
