"""Runs a policy over a network of two compiled calls: the whole prompt, then one token at a time.

Lengths are fixed so that few graphs are compiled: prompts are padded to buckets, the cache of a
call is as long as its largest bucket and the new tokens need. Prompts of like length are batched;
a batch takes the bucket of its longest, and the last batch of a call is filled up with copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

from mindplm.errors import ConfigError, DataError
from mindplm.generate.layout import Layout, Prompt
from mindplm.generate.rows import Feed, Pairs, Plan, Policy

DEFAULT_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048)
_NEW_TOKENS_STEP = 64
MOST_PAIRS = 1 << 23
"""Pairs of positions that are related at once; with 32 heads a gigabyte for each fp32 tensor."""


class Network(Protocol):
    """The two calls. Arrays that `put` returns are its own business; logits come back as NumPy."""

    def put(self, array: np.ndarray) -> Any:
        """Brings an int32 array to the device."""

    def start(
        self, columns: Sequence[Any], rows: Any, first: Any, rest: Any
    ) -> tuple[np.ndarray, Sequence[Any]]:
        """Reads prompts.

        Args:
            columns: The columns of a batch.
            rows: [R], the prompt that each row is for, as many rows for each, side by side.
            first: [length of the cache's part for prompts], of any content.
            rest: [length of its part for what is written], of any content.

        Returns:
            Logits of the last column [B, classes], caches [R, ...].
        """

    def step(
        self, columns: Sequence[Any], caches: Sequence[Any]
    ) -> tuple[np.ndarray, Sequence[Any]]:
        """Reads one token per row.

        Args:
            columns: The columns of a step; the last is parents [R], the row of the caches that
                each row continues.
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
    longest: int
    new_tokens: int
    room: Any


class Engine:
    """Writes answers for prompts.

    Args:
        network: The compiled calls.
        layout: The family's prompts.
        buckets: Lengths that prompts, and one begin mark, are padded to.
        batch_size: Most prompts that are written at once.
        fill: Fill up the batch of a call with few prompts too, so that calls share their graphs.
    """

    def __init__(
        self,
        network: Network,
        layout: Layout,
        *,
        buckets: Sequence[int] = DEFAULT_BUCKETS,
        batch_size: int = 8,
        fill: bool = False,
    ):
        if not buckets or min(buckets) < 2:
            raise ConfigError(f"buckets={tuple(buckets)}, expected lengths of at least 2")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}, expected at least 1")
        self._network, self._layout = network, layout
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
        first = 0
        while first < len(prompts):
            bucket = self._bucket(prompts[order[first]], order[first])
            part = replace(shape, batch=rows_at_once(shape.batch, bucket))
            numbers = sorted(order[first : first + part.batch])
            first += part.batch
            chosen = [prompts[i] for i in numbers]
            for last in self._steps(chosen, numbers, bucket, make_policy, part):
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

    def check(self, prompt: Prompt, max_new_tokens: int = 0) -> None:
        """Raises DataError for a prompt that no bucket holds, or the model with so much more."""
        self._bucket(prompt)
        self._layout.check(prompt, max_new_tokens)

    def _shape(
        self, prompts: Sequence[Prompt], longest: int, rows_per_prompt: int, max_new_tokens: int
    ) -> _Shape:
        for prompt in prompts:
            self._layout.check(prompt, max_new_tokens)
        new_tokens = -(-max_new_tokens // _NEW_TOKENS_STEP) * _NEW_TOKENS_STEP
        return _Shape(
            batch=self._batch_size if self._fill else min(self._batch_size, len(prompts)),
            rows_per_prompt=rows_per_prompt,
            longest=self._bucket(prompts[longest], longest),
            new_tokens=new_tokens,
            room=self._layout.room(prompts),
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
    ) -> Iterator[tuple[Policy, Sequence[dict[int, str]]]]:
        """Feeds the policy to its end; gives it, with the tables of texts, after every step."""
        put = self._network.put
        filled = [*prompts, *[prompts[0]] * (shape.batch - len(prompts))]
        batch = self._layout.batch(filled, bucket, shape.room)
        rows = np.repeat(np.arange(shape.batch, dtype=np.int32), shape.rows_per_prompt)
        policy = make_policy(batch.plan(len(prompts)), numbers)
        lengths = [put(np.zeros(num, np.int32)) for num in (shape.longest, shape.new_tokens)]
        logits, caches = self._network.start([*map(put, batch.columns)], put(rows), *lengths)
        logits = logits[rows]
        steps = batch.steps(rows, shape.longest + shape.new_tokens)
        fixed = [*map(put, steps.fixed)]
        slot = shape.longest if batch.first_slot is None else batch.first_slot
        while (parents := policy.advance(logits)) is not None:
            yield policy, batch.tables
            parents = _fill(parents, np.arange(len(rows)))
            feed = Feed(*(_fill(values, np.zeros(len(rows))) for values in policy.feed()))
            changing = map(put, steps.columns(feed, parents, slot))
            logits, caches = self._network.step([*changing, *fixed, put(parents)], caches)
            slot += 1
        yield policy, batch.tables


def rows_at_once(wanted: int, length: int) -> int:
    """How many rows of a length are read together: scores and biases take its square each."""
    return max(1, min(wanted, MOST_PAIRS // length**2))


def _fill(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The values, then the rest of `whole` for the rows of copies; int32."""
    return np.concatenate([values, whole[len(values) :]]).astype(np.int32)
