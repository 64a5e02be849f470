"""Pairs for the engine: an encoder reads the text once, a decoder writes from its start mark on.

The caches of a step are those of what was written and of what the encoder made of the text. Both
are as long as the longest bucket of a call and its new tokens, so that prompts of all buckets share
the graph of the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy as np

from mindplm.data.pair_text import source_ids, source_of
from mindplm.errors import DataError
from mindplm.generate.rows import Feed, Plan
from mindplm.generate.text_layout import Answers, TextPrompt, check_answer, text_plan

_ANY_LENGTH = 1 << 30


class PairLayout(Answers):
    """See `mindplm.generate.layout.Layout`.

    Args:
        tokenizer: Has what `text_plan` and `Answers` need.
        read: Ids of what is read of a record.
        start_id: What the decoder reads first.
        max_len: Most tokens of either side; 0: any number.
        forced_end: The last token that may be written is the end mark.
    """

    def __init__(
        self,
        tokenizer: Any,
        read: Callable[[Mapping[str, Any]], list[int]],
        *,
        start_id: int = 0,
        max_len: int = 0,
        forced_end: bool = False,
    ):
        super().__init__(tokenizer)
        self._read, self._start_id, self._max_len = read, start_id, max_len
        self._forced_end = forced_end

    def prepare(
        self, record: Mapping[str, Any], *, strict: bool, examples: Sequence[Mapping[str, Any]] = ()
    ) -> TextPrompt:
        """The ids of what is read."""
        check_answer(record)
        if examples:
            raise DataError("this family reads one text, so it can be shown no examples")
        return TextPrompt(tuple(self._read(record)))

    def check(self, prompt: TextPrompt, max_new_tokens: int) -> None:
        """Positions of both sides end with those of the model, if it has any."""
        for what, count in (("the prompt has", len(prompt)), ("written may be", max_new_tokens)):
            if count > self._max_len > 0:
                raise DataError(f"{what} {count} tokens, but model.max_len is {self._max_len}")

    def room(self, prompts: Sequence[TextPrompt]) -> None:
        """Nothing more."""

    def batch(self, prompts: Sequence[TextPrompt], bucket: int, room: None) -> PairBatch:
        """Lays prompts side by side, padded on the right."""
        begin = Begin(self._start_id, self._forced_end)
        return PairBatch(prompts, self._tokenizer, bucket, begin)


class Begin(NamedTuple):
    """What the decoder reads first, and whether the last token of all is the end mark."""

    start_id: int
    forced_end: bool = False


class PairBatch:
    """See `mindplm.generate.layout.Batch`; the columns are ids and real."""

    first_slot = 1

    def __init__(self, prompts: Sequence[TextPrompt], tokenizer: Any, bucket: int, begin: Begin):
        self._tokenizer, self._begin = tokenizer, begin
        ids, real = self.columns = [np.zeros((len(prompts), bucket), np.int32) for _ in range(2)]
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = prompt.ids
            real[i, : len(prompt)] = 1
        self.tables: list[dict[int, str]] = [{} for _ in prompts]

    def plan(self, num: int) -> Plan:
        """The plan of the first `num` prompts."""
        plan = text_plan(self._tokenizer, begins=[self._begin.start_id] * num)
        return dataclasses.replace(plan, forced_end=self._begin.forced_end)

    def steps(self, rows: np.ndarray, cache_len: int) -> PairSteps:
        """The columns of the steps."""
        return PairSteps(self.columns[1][rows], cache_len)


class PairSteps:
    """The token and its place change; what is padding of the text does not."""

    def __init__(self, real: np.ndarray, cache_len: int):
        filled = np.zeros((len(real), cache_len), np.int32)
        filled[:, : real.shape[1]] = real
        self.fixed = [filled]

    def columns(self, feed: Feed, parents: np.ndarray, slot: int) -> list[np.ndarray]:
        """ids, slot."""
        return [feed.ids, np.array([slot], np.int32)]


def read_ids(tokenizer: Any, record: Mapping[str, Any]) -> list[int]:
    """T5's ids of what is read of a record, with the end mark."""
    return source_ids(source_of(record), tokenizer, _ANY_LENGTH).ids


def t5_layout(tokenizer: Any, config: Any) -> PairLayout:
    """T5's layout; positions are relative, so they set no limit."""
    return PairLayout(tokenizer, partial(read_ids, tokenizer))
