"""Runs a policy over a network of two compiled calls: the whole prompt, then one token at a time.

Lengths are fixed so that few graphs are compiled: prompts are padded to buckets, the cache of a
call is as long as its largest bucket and the new tokens need. Prompts of like length are batched;
a batch takes the bucket of its longest, and the last batch of a call is filled up with copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

from mindplm.data import prompts as prompting
from mindplm.data.answers import piece
from mindplm.data.prompts import Prompt, PromptBatch
from mindplm.errors import ConfigError, DataError
from mindplm.generate.rows import Feed, Pairs, Plan, Policy
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

DEFAULT_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048)
_NEW_TOKENS_STEP = 64
# Entries that only the records' frame is made of; no answer that was trained on holds one.
_UNWRITTEN = ("<pad>", "<mask>", "<s>", "<root>", "<ans>", "<option>", "<eod>")
_REL_ROOM = 1024
_EXT_ROOM = 32


class Network(Protocol):
    """The two calls. Arrays that `put` returns are its own business; logits come back as NumPy."""

    def put(self, array: np.ndarray) -> Any:
        """Brings an int32 array to the device."""

    def start(
        self, columns: Sequence[Any], rows: Any, room: Any
    ) -> tuple[np.ndarray, Sequence[Any]]:
        """Reads prompts.

        Args:
            columns: The arrays of `mindplm.data.prompts.COLUMNS`.
            rows: [R], the prompt that each row of the cache is for.
            room: [cache length], of any content.

        Returns:
            Logits of the last column [B, classes], caches [R, H, cache length, K].
        """

    def step(
        self, columns: Sequence[Any], caches: Sequence[Any]
    ) -> tuple[np.ndarray, Sequence[Any]]:
        """Reads one token per row.

        Args:
            columns: ids, subs, segment_ids, positions [R]; slot [1], its place in the cache;
                key_positions, key_sample_ids, key_segment_ids, key_num_segments [R, cache length],
                which hold the token already and are in the new order; num_segments, rel_offset
                [R], segment_rel [R, max_rel], ext_ids, ext_sub [E], num_ext [1]; parents [R], the
                row of the caches that each row continues.
            caches: What the call before returned.

        Returns:
            Logits [R, classes], caches.
        """


class Written(NamedTuple):
    """What was written for a prompt: (class, number of its blank), and the texts of classes.

    `ranked` holds all that the policy kept, `pairs` the first of them.
    """

    pairs: Pairs
    table: dict[int, str]
    ranked: Sequence[Pairs] = ()


PolicyMaker = Callable[[Plan, Sequence[int]], Policy]
"""From the plan of a batch and the numbers of its prompts in the call."""


@dataclass(frozen=True)
class _Shape:
    """The lengths that all batches of a call share."""

    batch: int
    rows_per_prompt: int
    cache_len: int
    max_rel: int
    max_ext: int


class Engine:
    """Writes answers for prompts.

    Args:
        network: The compiled calls.
        tokenizer: Its vocabulary size and special ids are used.
        buckets: Lengths that prompts, and one begin mark, are padded to.
        batch_size: Most prompts that are written at once.
        fill: Fill up the batch of a call with few prompts too, so that calls share their graphs.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: CpmBeeTokenizer,
        *,
        buckets: Sequence[int] = DEFAULT_BUCKETS,
        batch_size: int = 8,
        fill: bool = False,
    ):
        if not buckets or min(buckets) < 2:
            raise ConfigError(f"buckets={tuple(buckets)}, expected lengths of at least 2")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}, expected at least 1")
        self._network, self._tokenizer = network, tokenizer
        self._buckets = tuple(sorted(set(buckets)))
        self._batch_size, self._fill = batch_size, fill

    def run(
        self,
        prompts: Sequence[Prompt],
        make_policy: PolicyMaker,
        *,
        rows_per_prompt: int = 1,
        max_new_tokens: int = 100,
    ) -> Iterator[tuple[int, Written]]:
        """Writes for all prompts, batch by batch, long prompts first.

        Args:
            prompts: Of any lengths up to the largest bucket less one.
            make_policy: Called once for every batch.
            rows_per_prompt: Rows that the policies keep for a prompt (beams).
            max_new_tokens: The policies' limit.

        Yields:
            (number of the prompt, what was written), in the order of the batches.
        """
        if not prompts:
            return
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        shape = self._shape(prompts, order[0], rows_per_prompt, max_new_tokens)
        for first in range(0, len(prompts), shape.batch):
            bucket = self._bucket(prompts[order[first]], order[first])
            numbers = sorted(order[first : first + shape.batch])
            chosen = [prompts[i] for i in numbers]
            for last in self._steps(chosen, numbers, bucket, make_policy, shape):
                policy, tables = last
            for place, (number, pairs) in enumerate(zip(numbers, policy.results())):
                yield number, Written(pairs, tables[place], policy.ranked(place))

    def stream(
        self,
        prompt: Prompt,
        make_policy: PolicyMaker,
        *,
        rows_per_prompt: int = 1,
        max_new_tokens: int = 100,
    ) -> Iterator[tuple[Pairs, dict[int, str], bool]]:
        """Writes for one prompt, token by token.

        Yields:
            (what is certain so far, the texts of classes, whether that is all).
        """
        shape = self._shape([prompt], 0, rows_per_prompt, max_new_tokens)
        bucket = self._bucket(prompt, 0)
        for policy, tables in self._steps([prompt], [0], bucket, make_policy, shape):
            yield policy.certain(0), tables[0], False
        yield policy.results()[0], tables[0], True

    def check(self, prompt: Prompt) -> None:
        """Raises DataError for a prompt that no bucket holds."""
        self._bucket(prompt)

    def _shape(
        self, prompts: Sequence[Prompt], longest: int, rows_per_prompt: int, max_new_tokens: int
    ) -> _Shape:
        new_tokens = -(-max_new_tokens // _NEW_TOKENS_STEP) * _NEW_TOKENS_STEP
        return _Shape(
            batch=self._batch_size if self._fill else min(self._batch_size, len(prompts)),
            rows_per_prompt=rows_per_prompt,
            cache_len=self._bucket(prompts[longest], longest) + new_tokens,
            max_rel=_room(_REL_ROOM, max(len(prompt.rel) for prompt in prompts)),
            max_ext=_room(_EXT_ROOM, prompting.num_ext(prompts)),
        )

    def _bucket(self, prompt: Prompt, number: int | None = None) -> int:
        """The smallest bucket that holds a prompt and a begin mark."""
        for bucket in self._buckets:
            if bucket > len(prompt):
                return bucket
        name = "the prompt" if number is None else f"prompt {number + 1}"
        raise DataError(
            f"{name} has {len(prompt)} tokens, the largest of generate.buckets "
            f"({self._buckets[-1]}) holds {self._buckets[-1] - 1}; shorten it or add a larger "
            "bucket"
        )

    def _steps(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        bucket: int,
        make_policy: PolicyMaker,
        shape: _Shape,
    ) -> Iterator[tuple[Policy, list[dict[int, str]]]]:
        """Feeds the policy to its end; gives it, with the tables of texts, after every step."""
        put = self._network.put
        filled = [*prompts, *[prompts[0]] * (shape.batch - len(prompts))]
        batch = prompting.batch(
            filled, self._tokenizer, bucket=bucket, max_rel=shape.max_rel, max_ext=shape.max_ext
        )
        rows = np.repeat(np.arange(shape.batch, dtype=np.int32), shape.rows_per_prompt)
        policy = make_policy(self._plan(batch, len(prompts)), numbers)
        columns = [put(batch.columns[name]) for name in prompting.COLUMNS]
        room = put(np.zeros(shape.cache_len, np.int32))
        logits, caches = self._network.start(columns, put(rows), room)
        logits = logits[rows]
        keys = _Keys(batch, rows, shape.cache_len)
        fixed = [put(array) for array in _fixed(batch, rows)]
        slot = bucket
        while (parents := policy.advance(logits)) is not None:
            yield policy, batch.tables
            parents = _fill(parents, np.arange(len(rows)))
            feed = Feed(*(_fill(values, np.zeros(len(rows))) for values in policy.feed()))
            keys.add(feed, parents, slot)
            changing = [feed.ids, feed.subs, feed.segments, feed.positions]
            changing += [np.array([slot], np.int32), *keys.columns]
            step = [*map(put, changing), *fixed, put(parents)]
            logits, caches = self._network.step(step, caches)
            slot += 1
        yield policy, batch.tables

    def _plan(self, batch: PromptBatch, num: int) -> Plan:
        """The plan of a batch's first `num` prompts; the others are copies."""
        ids = self._tokenizer
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


class _Keys:
    """What the network must know of every place of the cache; empty places have no segments."""

    def __init__(self, batch: PromptBatch, rows: np.ndarray, cache_len: int):
        names = ("positions", "sample_ids", "segment_ids", "num_segments")
        prompt = np.stack([batch.columns[name][rows] for name in names])
        self.columns = np.zeros((*prompt.shape[:2], cache_len), np.int32)
        self.columns[..., : prompt.shape[2]] = prompt
        self._num_segments = prompt[3, :, -1]

    def add(self, feed: Feed, parents: np.ndarray, slot: int) -> None:
        """Brings the rows into the new order and enters the token at a place."""
        self.columns = self.columns[:, parents]
        self.columns[0, :, slot] = feed.positions
        self.columns[2, :, slot] = feed.segments
        self.columns[3, :, slot] = self._num_segments


def _fixed(batch: PromptBatch, rows: np.ndarray) -> list[np.ndarray]:
    """Columns of the step that do not change while a batch is written."""
    columns = batch.columns
    return [
        columns["num_segments"][rows, -1],
        columns["rel_offset"][rows, -1],
        columns["segment_rel"][rows],
        *(columns[name] for name in ("ext_ids", "ext_sub", "num_ext")),
    ]


def _fill(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The values, then the rest of `whole` for the rows of copies; int32."""
    return np.concatenate([values, whole[len(values) :]]).astype(np.int32)


def _room(least: int, needed: int) -> int:
    """`least`, doubled until it is enough, so that few sizes occur."""
    while least < needed:
        least *= 2
    return least
