"""CPM-Bee's records for the engine; see `mindplm.data.prompts` for their arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mindplm.data import prompts as prompting
from mindplm.data.answers import piece
from mindplm.data.prompts import Prompt, PromptBatch
from mindplm.generate.rows import Feed, Pairs, Plan
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

# Entries that only the records' frame is made of; no answer that was trained on holds one.
_UNWRITTEN = ("<pad>", "<mask>", "<s>", "<root>", "<ans>", "<option>", "<eod>")
_REL_ROOM = 1024
_EXT_ROOM = 32


class _Room(NamedTuple):
    """Sizes that all batches of a call share."""

    max_rel: int
    max_ext: int


class BeeLayout:
    """See `mindplm.generate.layout.Layout`.

    Args:
        tokenizer: Of the model.
        config: Settings of the model; only its max_depth matters here.
    """

    def __init__(self, tokenizer: CpmBeeTokenizer, config: Any = None):
        self._tokenizer = tokenizer
        self._max_depth = 8 if config is None else config.max_depth

    def prepare(
        self, record: Mapping[str, Any], *, strict: bool, examples: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Turns a record into a prompt."""
        return prompting.prepare(
            record, self._tokenizer, self._max_depth, strict=strict, examples=examples
        )

    def check(self, prompt: Prompt, max_new_tokens: int) -> None:
        """Positions have no limit."""

    def room(self, prompts: Sequence[Prompt]) -> _Room:
        """Sizes that all batches of a call share."""
        return _Room(
            max_rel=_doubled(_REL_ROOM, max(len(prompt.rel) for prompt in prompts)),
            max_ext=_doubled(_EXT_ROOM, prompting.num_ext(prompts)),
        )

    def batch(self, prompts: Sequence[Prompt], bucket: int, room: _Room) -> _Batch:
        """Lays prompts side by side."""
        made = prompting.batch(
            prompts, self._tokenizer, bucket=bucket, max_rel=room.max_rel, max_ext=room.max_ext
        )
        return _Batch(made, self._tokenizer)

    def answers(
        self, pairs: Pairs, prompt: Prompt, table: Mapping[int, str], stop: Sequence[str] = ()
    ) -> list[str | None]:
        """A text for each blank."""
        return prompting.answers(pairs, prompt, table, self._tokenizer, stop)

    def answer(
        self,
        classes: Sequence[int],
        table: Mapping[int, str],
        stop: Sequence[str] = (),
        *,
        is_open: bool = False,
    ) -> str:
        """The text of one blank."""
        return prompting.answer(classes, table, self._tokenizer, stop, is_open=is_open)

    def is_end(self, token: int) -> bool:
        """Whether a class ends a blank."""
        return token == self._tokenizer.eos_id


class _Batch:
    """See `mindplm.generate.layout.Batch`."""

    first_slot = None

    def __init__(self, batch: PromptBatch, tokenizer: CpmBeeTokenizer):
        self._batch, self._tokenizer = batch, tokenizer
        self.columns = [batch.columns[name] for name in prompting.COLUMNS]
        self.tables = batch.tables

    def plan(self, num: int) -> Plan:
        """The plan of the first `num` prompts."""
        ids, batch = self._tokenizer, self._batch
        return Plan(
            blanks=[[(b.segment, b.number) for b in blanks] for blanks in batch.blanks[:num]],
            vocab_size=ids.vocab_size,
            bos_id=ids.bos_id,
            eos_id=ids.eos_id,
            unk_id=ids.unk_id,
            newline_id=ids.newline_id,
            ext_ids=batch.columns["ext_ids"][: batch.num_ext],
            ext_sub=batch.columns["ext_sub"][: batch.num_ext],
            allowed_ext=batch.allowed_ext[:num, : batch.num_ext],
            allowed_unk=np.array([ids.unk_id in table for table in batch.tables[:num]]),
            piece=lambda sentence, token: piece(token, batch.tables[sentence], ids),
            unwritten=[ids.token_to_id[token] for token in _UNWRITTEN if token in ids.token_to_id],
        )

    def steps(self, rows: np.ndarray, cache_len: int) -> _Steps:
        """The columns of the steps."""
        return _Steps(self._batch, rows, cache_len)


class _Steps:
    """What the network must know of every place of the cache; empty places have no segments."""

    def __init__(self, batch: PromptBatch, rows: np.ndarray, cache_len: int):
        names = ("positions", "sample_ids", "segment_ids", "num_segments")
        prompt = np.stack([batch.columns[name][rows] for name in names])
        self._keys = np.zeros((*prompt.shape[:2], cache_len), np.int32)
        self._keys[..., : prompt.shape[2]] = prompt
        self._num_segments = prompt[3, :, -1]
        columns = batch.columns
        self.fixed = [
            columns["num_segments"][rows, -1],
            columns["rel_offset"][rows, -1],
            columns["segment_rel"][rows],
            *(columns[name] for name in ("ext_ids", "ext_sub", "num_ext")),
        ]

    def columns(self, feed: Feed, parents: np.ndarray, slot: int) -> list[np.ndarray]:
        """Brings the rows into the new order and enters the tokens at a place."""
        keys = self._keys = self._keys[:, parents]
        keys[0, :, slot] = feed.positions
        keys[2, :, slot] = feed.segments
        keys[3, :, slot] = self._num_segments
        return [feed.ids, feed.subs, feed.segments, feed.positions, np.array([slot], np.int32),
                *keys]  # fmt: skip


def _doubled(least: int, needed: int) -> int:
    """`least`, doubled until it is enough, so that few sizes occur."""
    while least < needed:
        least *= 2
    return least
