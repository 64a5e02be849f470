"""From a document to instances: draw a task, cut what is long, make records, convert them.

This is what preprocessing does in several processes at once; nothing here depends on how the
documents are spread over them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple, Protocol

import numpy as np

from mindplm.config import DataConfig, SourceConfig
from mindplm.data.compact import Compact
from mindplm.data.cpm_bee import ANSWER, RecordError, Sample, to_arrays
from mindplm.data.kinds import RowSettings
from mindplm.data.packing import RowShape, check_fits
from mindplm.data.plans import RecordDraw, RecordPlan
from mindplm.data.sources import Document, Problem
from mindplm.data.tasks import TASKS, Streams, choose_task, make_record
from mindplm.errors import UserError
from mindplm.text import lenient_record
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

# Ends of lines and of sentences, with the closing marks and the white space after them.
_END = re.compile(r"\n\s*|[。！？；…][”’」』）。！？…]*\n*|[.!?;][\"'’”)\]]*\s+")
_REDRAWS = 3
_COUNTED = 2000  # characters; in longer texts tokens are estimated
_CAUTION = 1.04  # of the estimate: what is too long must be cut again

EMPTY = "records with empty answers"
"""Name of a count: records that nothing can be learned from but that they end at once."""


@dataclass(frozen=True)
class Settings(RowSettings):
    """What CPM-Bee's rows depend on besides texts and vocabulary.

    Attributes:
        max_depth: Limit of steps in a record's tree.
        lenient: Mend records as `mindplm.text.lenient_record` does.
    """

    max_depth: int = 8
    lenient: bool = True

    @classmethod
    def of(cls, config: DataConfig, *, seed: int, max_depth: int = 8) -> Settings:
        """Settings from the data section of a run; a size of 0 becomes what it stands for."""
        size = config.seq_len
        shape = RowShape(
            size, config.max_rel or 16 * size, config.max_ext, config.max_targets or size
        )
        return cls(shape, config.repeat, seed, max_depth, config.lenient)


class Work(NamedTuple):
    """One draw from one document: numbers of the source, of the document in it, of the draw.

    `others` are documents of the source that may be shown as examples.
    """

    source: int
    number: int
    draw: int
    document: Document
    others: Sequence[Document] = ()


@dataclass
class Drawn:
    """What came of one draw.

    Attributes:
        source: Number of the source.
        draw: Number of the draw.
        place: Where the document stands.
        is_record: Whether the document is a record.
        instances: The instance of the record, or one for each piece of the text.
        problems: What could not be used.
        num_chars: Characters of the document's text; 0 for a record.
        counts: What else is worth counting, by name.
    """

    source: int
    draw: int
    place: str
    is_record: bool
    instances: list[Any] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_chars: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Drawer:
    """Turns draws into instances.

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
        tokenizer: CpmBeeTokenizer,
        settings: Settings,
    ):
        self._plans = [RecordPlan(source) for source in sources]
        self._tasks = [dict(source.tasks) for source in sources]
        self._extras = [source.extra_fields for source in sources]
        self._names = list(names)
        self._stream = Streams()
        self._tokenizer = tokenizer
        self._settings = settings
        shape = settings.shape
        # Half of the extension table is for unknown characters, the other for blanks: then the
        # table of any set of rows has room, whichever texts they come from.
        half = shape.max_ext // 2
        self._text_shape = shape._replace(max_ext=half) if half else shape
        self._max_blanks = min(8, 1 + half)
        self._room = max(shape.seq_len * 3 // 4, shape.seq_len - 32)

    def __call__(self, work: Work) -> Drawn:
        """Draws from one document."""
        rng = self._stream(self._settings.seed, self._names[work.source], work.number, work.draw)
        tasks, document = self._tasks[work.source], work.document
        drawn = Drawn(work.source, work.draw, document.place, False)
        try:
            draw = self._plans[work.source].draw(rng)
            fields = draw(document.fields)
        except RecordError as error:
            drawn.is_record = True
            drawn.problems.append(Problem(document.place, error.reason, str(error)))
            return drawn
        records, texts = tasks.get("record", 0) > 0, set(tasks) != {"record"}
        if fields is None:
            drawn.counts["left out by the transform"] += 1
        elif texts and isinstance(fields.get("text"), str) and not (records and ANSWER in fields):
            self._draw_text(Document(document.place, dict(fields)), drawn, rng)
        else:
            drawn.is_record = True
            self._draw_record(work, fields, draw, drawn, rng)
        drawn.counts["unknown tokens"] += sum(
            int(np.count_nonzero(i.ids == self._tokenizer.unk_id)) for i in drawn.instances
        )
        return drawn

    def many(self, works: Sequence[Work]) -> list[Drawn]:
        """Draws from several documents."""
        return [self(work) for work in works]

    def _draw_record(
        self,
        work: Work,
        fields: Mapping[str, Any],
        draw: RecordDraw,
        drawn: Drawn,
        rng: np.random.Generator,
    ) -> None:
        try:
            sample = self._sample(self._mended(fields, drawn), rng)
            instance = Compact.of(sample)
            check_fits(instance, self._settings.shape)
        except UserError as error:
            reason = error.reason if isinstance(error, RecordError) else "invalid record"
            drawn.problems.append(Problem(work.document.place, reason, str(error)))
            return
        drawn.counts[EMPTY] += instance.num_targets == _num_answers(fields[ANSWER])
        for number in draw.examples(work, rng):
            try:
                fields = self._mended(draw(work.others[number].fields) or {}, drawn)
                sample = self._sample(fields, rng, sample)
                longer = instance.with_example(sample)
                check_fits(longer, self._settings.shape)
            except UserError:
                drawn.counts["examples not shown"] += 1
                break
            instance = longer
            drawn.counts["examples shown"] += 1
        instance.task = task_number(drawn.source, "record")
        drawn.instances.append(instance)

    def _mended(self, record: Any, drawn: Drawn) -> Any:
        if not self._settings.lenient:
            return record
        mended = lenient_record(record, self._tokenizer.special_tokens)
        drawn.counts["mended records"] += mended != record
        return mended

    def _draw_text(self, document: Document, drawn: Drawn, rng: np.random.Generator) -> None:
        text = document.fields["text"]
        drawn.num_chars = len(text)
        cuts = rng if drawn.draw else None
        waiting = split_text(text, self._tokenizer, self._room, cuts)[::-1]
        while waiting:
            piece = waiting.pop()
            try:
                drawn.instances.append(self._draw_piece(piece, document, drawn.source, rng))
            except RecordError as error:
                if error.too_big and len(piece) > 1:
                    waiting += reversed(halve(piece, self._tokenizer))
                else:
                    drawn.problems.append(Problem(document.place, error.reason, str(error)))

    def _draw_piece(
        self, piece: str, document: Document, source: int, rng: np.random.Generator
    ) -> Compact:
        """Draws a task and a record, anew if the record turns out too long."""
        extras = {k: v for k, v in document.fields.items() if k in self._extras[source]}
        for last in (False,) * (_REDRAWS - 1) + (True,):
            task = choose_task(self._tasks[source], rng)
            record = make_record(task, piece, extras, rng, max_blanks=self._max_blanks)
            try:
                instance = Compact.of(self._sample(record, rng))
                check_fits(instance, self._text_shape)
            except RecordError as error:
                if last or not error.too_big:
                    raise
            else:
                instance.task = task_number(source, task)
                return instance
        raise AssertionError

    def _sample(
        self, record: Mapping[str, Any], rng: np.random.Generator, before: Sample | None = None
    ) -> Sample:
        if not isinstance(record, Mapping) or ANSWER not in record:
            keys = ", ".join(map(str, record)) or "none"
            raise RecordError(f"record without {ANSWER} (keys: {keys})", reason="no <ans>")
        sample = to_arrays(
            record,
            self._tokenizer,
            max_depth=self._settings.max_depth,
            shuffle=rng,
            state=before.state if before else None,
        )
        if sample.known.all():
            raise RecordError(f"record.{ANSWER} holds no text", reason="nothing to predict")
        return sample


def _num_answers(value: Any) -> int:
    """Texts below `<ans>`; each has an end mark to predict, and no other token if it is empty."""
    return sum(map(_num_answers, value.values())) if isinstance(value, Mapping) else 1


def task_number(source: int, task: str, tasks: Sequence[str] = TASKS) -> int:
    """The number that spans of a task carry; `tasks` are those of the family."""
    return source * len(tasks) + tasks.index(task)


def task_names(source_names: Sequence[str], tasks: Sequence[str] = TASKS) -> list[str]:
    """Names by task number."""
    return [f"{source}/{task}" for source in source_names for task in tasks]


class Cutter(Protocol):
    """What cutting a text into pieces needs of a tokenizer."""

    def size(self, text: str) -> int:
        """Tokens of a plain text, without marks around it; at most its characters."""

    def parts(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        """Pieces of a text that holds no place to cut it, of at most `room` tokens each."""


def split_text(
    text: str, tokenizer: Cutter, room: int, rng: np.random.Generator | None = None
) -> list[str]:
    """Cuts a text into pieces of about equal length, at ends of lines and sentences.

    Args:
        text: The text, unescaped; the pieces joined give it back.
        tokenizer: Counts tokens.
        room: Most tokens of a piece.
        rng: Draws the length of the first piece, so that draws differ in their cuts.
    """
    if len(text) <= room:  # a token has at least one character
        return [text]
    atoms = _atoms(text, tokenizer, room)
    total = sum(size for _, size in atoms)
    if total <= room:
        return [text]
    goal = total / -(-total // room)
    aim = goal if rng is None else goal * (0.3 + 0.7 * rng.random())
    pieces: list[str] = []
    piece: list[str] = []
    used = 0
    for atom, size in atoms:
        ends_line = bool(piece) and piece[-1].endswith("\n") and used >= 0.8 * aim
        if piece and (used + size > room or used + size / 2 > aim or ends_line):
            pieces.append("".join(piece))
            piece, used, aim = [], 0, goal
        piece.append(atom)
        used += size
    return [*pieces, "".join(piece)]


def halve(text: str, tokenizer: Cutter) -> list[str]:
    """Cuts a text of at least two characters into at least two pieces."""
    pieces = split_text(text, tokenizer, max(1, (tokenizer.size(text) + 1) // 2))
    return pieces if len(pieces) > 1 else [text[: len(text) // 2], text[len(text) // 2 :]]


def _atoms(text: str, tokenizer: Cutter, room: int) -> list[tuple[str, int]]:
    """The smallest pieces that are kept together, and about how many tokens they have."""
    ends = [match.end() for match in _END.finditer(text)]
    ends.append(len(text))
    atoms: list[tuple[str, int]] = []
    begin = 0
    for end, size in zip(ends, _sizes(text, ends, tokenizer)):
        if size > room:
            atoms += tokenizer.parts(text[begin:end], room)
        elif end > begin:
            atoms.append((text[begin:end], size))
        begin = end
    return atoms


def _sizes(text: str, ends: Sequence[int], tokenizer: Cutter) -> list[int]:
    """Tokens of the parts of a text that end so; of a long text estimated from samples."""
    begins = [0, *ends[:-1]]
    if len(text) > _COUNTED:
        width = _COUNTED // 4
        samples = [text[at : at + width] for at in (0, len(text) // 2, len(text) - width)]
        ratio = _CAUTION * sum(map(tokenizer.size, samples)) / sum(map(len, samples))
        return [ceil((end - begin) * ratio) for begin, end in zip(begins, ends)]
    if hasattr(tokenizer, "starts"):  # then the text need not be cut to be counted
        starts = tokenizer.starts(text)
        places = [bisect_left(starts, end) for end in ends]
        return [last - first for first, last in zip([0, *places], places)]
    return [tokenizer.size(text[begin:end]) for begin, end in zip(begins, ends)]
