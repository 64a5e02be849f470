"""Plain texts for the engine, for families that continue a text from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import numpy as np

from mindplm.data.causal_text import prompt_ids
from mindplm.data.cpm_bee import ANSWER
from mindplm.errors import DataError
from mindplm.generate.rows import Feed, Pairs, Plan

Encode = Callable[[Mapping[str, Any], Any], list[int]]
"""(record, tokenizer) -> the ids that are continued."""


class Blank(NamedTuple):
    """The one text that is written."""

    number: int = 1
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextPrompt:
    """Ids that are read.

    Attributes:
        ids: At least one.
        blanks: The text to be written.
    """

    ids: tuple[int, ...]
    blanks: tuple[Blank, ...] = (Blank(),)

    def __len__(self) -> int:
        return len(self.ids)


def check_answer(record: Mapping[str, Any]) -> None:
    """Raises DataError if the record does not ask for one text."""
    if not isinstance(record.get(ANSWER, ""), (str, type(None))):
        raise DataError(f'record.{ANSWER} is no text; this family writes one text, "{ANSWER}": ""')


class Answers:
    """The methods of `Layout` that turn written ids into texts.

    Args:
        tokenizer: Has `decode`, `eos_id` and `text_of`.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def answers(
        self, pairs: Pairs, prompt: Any, table: Mapping[int, str], stop: Sequence[str] = ()
    ) -> list[str | None]:
        """The one text; None if nothing was written."""
        return [self.answer([token for token, _ in pairs], table, stop) if pairs else None]

    def answer(
        self,
        classes: Sequence[int],
        table: Mapping[int, str],
        stop: Sequence[str] = (),
        *,
        is_open: bool = False,
    ) -> str:
        """Decodes what was written, up to the first of the stop texts."""
        if classes and self.is_end(classes[-1]):
            classes = classes[:-1]
        text = self._tokenizer.decode(classes)
        found = [place for place in map(text.find, stop) if place >= 0]
        if found:
            return text[: min(found)]
        held = max((len(word) - 1 for word in stop), default=0) if is_open else 0
        return text[: max(0, len(text) - held)] if held else text

    def is_end(self, token: int) -> bool:
        """Whether a class ends the text."""
        return token == self._tokenizer.eos_id


class TextLayout(Answers):
    """See `mindplm.generate.layout.Layout`.

    Args:
        tokenizer: Of the model.
        config: Settings of the model; max_len matters.
        encode: Ids of a record.
    """

    def __init__(self, tokenizer: Any, config: Any, encode: Encode):
        super().__init__(tokenizer)
        self._max_len, self._encode = config.max_len, encode

    def prepare(
        self, record: Mapping[str, Any], *, strict: bool, examples: Sequence[Mapping[str, Any]] = ()
    ) -> TextPrompt:
        """The ids of a record, those of finished examples and their answers before them."""
        check_answer(record)
        ids: list[int] = []
        for number, example in enumerate(examples, start=1):
            if not isinstance(example.get(ANSWER), str):
                raise DataError(f'example {number}: expected an answer under "{ANSWER}"')
            ids += self._encode(example, self._tokenizer)
            ids += self._tokenizer.encode(example[ANSWER] + "\n")
        ids += self._encode(record, self._tokenizer)
        if not ids and self._tokenizer.eos_id >= 0:
            ids = [self._tokenizer.eos_id]  # what a new text follows in training
        if not ids:
            raise DataError("the text to be continued is empty, expected at least one token")
        return TextPrompt(tuple(ids))

    def check(self, prompt: TextPrompt, max_new_tokens: int) -> None:
        """Positions end with those of the model."""
        if len(prompt) + max_new_tokens > self._max_len:
            raise DataError(
                f"the prompt has {len(prompt)} tokens and {max_new_tokens} more may be written, "
                f"but model.max_len is {self._max_len}; shorten it or lower "
                "generate.max_new_tokens"
            )

    def room(self, prompts: Sequence[TextPrompt]) -> None:
        """Nothing more."""

    def batch(self, prompts: Sequence[TextPrompt], bucket: int, room: None) -> TextBatch:
        """Lays prompts side by side, padded on the left."""
        return TextBatch(prompts, self._tokenizer, bucket)


class TextBatch:
    """See `mindplm.generate.layout.Batch`; the columns are ids, positions, spans."""

    first_slot = None

    def __init__(self, prompts: Sequence[TextPrompt], tokenizer: Any, bucket: int):
        self._prompts, self._tokenizer = prompts, tokenizer
        ids, positions, spans = self.columns = [
            np.zeros((len(prompts), bucket), np.int32) for _ in range(3)
        ]
        for i, prompt in enumerate(prompts):
            real = slice(bucket - len(prompt), bucket)
            ids[i, real] = prompt.ids
            positions[i, real] = np.arange(len(prompt))
            spans[i, real] = 1
        self.tables: list[dict[int, str]] = [{} for _ in prompts]

    def plan(self, num: int) -> Plan:
        """The plan of the first `num` prompts."""
        ids = [prompt.ids for prompt in self._prompts[:num]]
        return text_plan(
            self._tokenizer,
            begins=[own[-1] for own in ids],
            before=[own[:-1] for own in ids],
        )

    def steps(self, rows: np.ndarray, cache_len: int) -> _Steps:
        """The columns of the steps."""
        return _Steps(self.columns[1][rows, -1], self.columns[2][rows], cache_len)


def text_plan(
    tokenizer: Any, *, begins: Sequence[int], before: Sequence[Sequence[int]] = ()
) -> Plan:
    """The plan of prompts that each ask for one text, without appended classes."""
    num = len(begins)
    return Plan(
        blanks=[[(0, 1)]] * num,
        vocab_size=tokenizer.vocab_size,
        bos_id=-1,
        eos_id=tokenizer.eos_id,
        unk_id=tokenizer.unk_id,
        newline_id=-1,
        ext_ids=np.zeros(0, np.int32),
        ext_sub=np.zeros(0, np.int32),
        allowed_ext=np.zeros((num, 0), bool),
        allowed_unk=np.ones(num, bool),
        piece=lambda sentence, token: tokenizer.text_of(token),
        unwritten=tokenizer.silent_ids,
        begins=begins,
        before=before,
        hf_search=True,
    )


class _Steps:
    """Positions count on from the prompt's last; every row sees its prompt and what it wrote."""

    def __init__(self, last: np.ndarray, spans: np.ndarray, cache_len: int):
        self._last = last
        self._filled = np.zeros((len(spans), cache_len), np.int32)
        self._filled[:, : spans.shape[1]] = spans
        self.fixed: list[np.ndarray] = []

    def columns(self, feed: Feed, parents: np.ndarray, slot: int) -> list[np.ndarray]:
        """ids, positions, slot, filled."""
        self._filled[:, slot] = 1
        return [feed.ids, self._last + feed.positions, np.array([slot], np.int32), self._filled]


def causal_layout(tokenizer: Any, config: Any) -> TextLayout:
    """The layout of causal families; see `mindplm.data.causal_text` for their records."""
    return TextLayout(tokenizer, config, prompt_ids)
