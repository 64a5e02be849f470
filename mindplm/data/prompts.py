"""CPM-Bee prompts: records with empty answers -> arrays of a batch.

A prompt is the record without its answers. Its batch is left-padded and ends with the begin mark
of the first blank, so that one pass over the prompt gives the scores of the first new token. That
last column has context 0: the prompt does not see it, it sees the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mindplm.data.answers import answer as answer
from mindplm.data.answers import answers as answers
from mindplm.data.answers import write_back as write_back
from mindplm.data.cpm_bee import ANSWER, RecordState, Sample, to_arrays
from mindplm.data.instances import (
    CONTEXT,
    IDS,
    NUM_SEGMENTS,
    REL_OFFSET,
    SAMPLES,
    SEGMENTS,
    SUBS,
    Instance,
    append_incontext,
    make_instance,
)
from mindplm.errors import DataError
from mindplm.text import lenient_record
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

MOST_SEGMENTS = 4096
"""Keys and texts of a record; their relations take the square of it."""
MOST_LEVELS = 100
"""Dicts inside dicts."""

COLUMNS = (
    *("ids", "subs", "positions", "context", "sample_ids", "segment_ids", "num_segments"),
    *("rel_offset", "segment_rel", "ext_ids", "ext_sub", "num_ext"),
)
"""Arrays of a batch, in the order in which the network takes them."""


_TOKEN_ROWS = {
    **{"ids": IDS, "subs": SUBS, "context": CONTEXT, "sample_ids": SAMPLES},
    **{"segment_ids": SEGMENTS, "num_segments": NUM_SEGMENTS, "rel_offset": REL_OFFSET},
}


class Blank(NamedTuple):
    """A leaf to be written: its segment, its number from 1, its keys below the answer key."""

    segment: int
    number: int
    path: tuple[str, ...]


class Indexed(NamedTuple):
    """An indexed token of a record: base id, sub index and the text it stands for."""

    base: int
    sub: int
    text: str


@dataclass(frozen=True)
class Prompt:
    """A record without its answers, and examples behind it.

    Attributes:
        tokens: Rows of `mindplm.data.instances.TOKEN_COLUMNS`, int32 [rows, tokens].
        rel: Relations of the record's segments [num_segments ** 2], then those of the examples.
        num_segments: Of the record.
        blanks: What is to be written.
        indexed: Indexed tokens of record and examples.
    """

    tokens: np.ndarray
    rel: np.ndarray
    num_segments: int
    blanks: tuple[Blank, ...]
    indexed: tuple[Indexed, ...]

    def __len__(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one length, ready for the network.

    Attributes:
        columns: The arrays named in COLUMNS, int32; [B, bucket], [B, max_rel], [max_ext], [1].
        tables: For each prompt, class of the output -> text, for `decode`.
        allowed_ext: bool [B, max_ext], which appended classes a prompt may use.
        blanks: The prompts' blanks.
    """

    columns: dict[str, np.ndarray]
    tables: list[dict[int, str]]
    allowed_ext: np.ndarray
    blanks: list[tuple[Blank, ...]]

    @property
    def num_ext(self) -> int:
        """How many classes are appended to the vocabulary."""
        return int(self.columns["num_ext"][0])


def as_record(prompt: str | Mapping[str, Any]) -> dict[str, Any]:
    """A plain text stands for a record that is continued."""
    if isinstance(prompt, str):
        return {"input": prompt, ANSWER: ""}
    if not isinstance(prompt, Mapping):
        raise DataError(f"a prompt is a text or a record, got {_shown(prompt)}")
    return dict(prompt)


def prepare(
    record: Mapping[str, Any],
    tokenizer: CpmBeeTokenizer,
    max_depth: int = 8,
    *,
    strict: bool = True,
    examples: Sequence[Mapping[str, Any]] = (),
) -> Prompt:
    """Turns a record into a prompt; texts under the answer key are ignored.

    Args:
        record: Nested dict of texts; leaves under `<ans>` are the blanks (a text or None).
        tokenizer: Of the model.
        max_depth: Steps in the tree that the model tells apart.
        strict: Refuse what the original refuses; otherwise see `mindplm.text.lenient_record`.
        examples: Records with answers, which the prompt sees.

    Raises:
        DataError: There is nothing to answer, or a value or tag that cannot be converted.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"a prompt is a record (a dict), got {_shown(record)}")
    if ANSWER not in record:
        raise DataError(
            f'the record has no key "{ANSWER}", so there is nothing to write; add "{ANSWER}": "" '
            f"(its keys are {', '.join(map(str, record)) or 'none'})"
        )
    paths: list[tuple[str, ...]] = []
    _check_size(record)
    marked = {**record, ANSWER: _placeholders(record[ANSWER], (), paths)}
    if not paths:
        raise DataError(
            f'record.{ANSWER} holds no text to write; expected "" or a dict with at least one ""'
        )
    sample = to_arrays(_ready(marked, tokenizer, strict), tokenizer, max_depth=max_depth)
    instance, state = _with_examples(
        sample, examples, tokenizer, strict=strict, max_depth=max_depth
    )
    segments = [segment for segment, _, predicted in sample.leaves if predicted]
    return Prompt(
        tokens=instance.tokens[:, instance.tokens[CONTEXT] != 0],
        rel=np.asarray(instance.segment_rel, np.int32),
        num_segments=sample.num_segments,
        blanks=tuple(Blank(s, k, p) for k, (s, p) in enumerate(zip(segments, paths), start=1)),
        indexed=tuple(
            Indexed(tokenizer.token_to_id[base], sub, state.table[fake_id])
            for base, subs in state.subs.items()
            if base != ANSWER
            for fake_id, sub in subs.items()
        ),
    )


def full_instance(
    record: Mapping[str, Any],
    tokenizer: CpmBeeTokenizer,
    max_depth: int = 8,
    *,
    strict: bool = True,
    examples: Sequence[Mapping[str, Any]] = (),
) -> Instance:
    """A record whose answers are there, and examples behind it.

    Raises:
        DataError: There are no answers, or a value or tag that cannot be converted.
    """
    sample = _example(record, tokenizer, strict=strict, max_depth=max_depth, state=None)
    return _with_examples(sample, examples, tokenizer, strict=strict, max_depth=max_depth)[0]


def _with_examples(
    sample: Sample,
    examples: Sequence[Mapping[str, Any]],
    tokenizer: CpmBeeTokenizer,
    *,
    strict: bool,
    max_depth: int,
) -> tuple[Instance, RecordState]:
    """Puts examples behind a record as pretraining does; they share its numbering of tags."""
    instance, state = make_instance(sample), sample.state
    for number, example in enumerate(examples, start=1):
        try:
            shown = _example(example, tokenizer, strict=strict, max_depth=max_depth, state=state)
        except DataError as error:
            raise DataError(f"example {number}: {error}") from None
        instance, state = append_incontext(instance, shown), shown.state
    return instance, state


def batch(
    prompts: Sequence[Prompt],
    tokenizer: CpmBeeTokenizer,
    *,
    bucket: int,
    max_rel: int,
    max_ext: int,
) -> PromptBatch:
    """Lays prompts side by side, padded on the left; the last column opens the first blank.

    Args:
        prompts: Each of at most bucket - 1 tokens.
        tokenizer: Of the model.
        bucket: Number of columns.
        max_rel: Room for the relations of a prompt's segments.
        max_ext: Room for indexed tokens of all prompts together.

    Raises:
        DataError: Something does not fit; the message says what and how much there is.
    """
    num = len(prompts)
    pairs, allowed, tables = _ext_table(prompts, tokenizer.vocab_size)
    _fits("the prompts have {} indexed tokens", len(pairs), max_ext)
    columns = {name: np.zeros((num, bucket), np.int32) for name in COLUMNS[:8]}
    columns["segment_rel"] = np.zeros((num, max_rel), np.int32)
    for i, prompt in enumerate(prompts):
        _fits("a prompt has {} tokens with its begin mark", len(prompt) + 1, bucket)
        _fits("a prompt has {} pairs of segments", len(prompt.rel), max_rel)
        real = slice(bucket - 1 - len(prompt), bucket - 1)
        for name, row in _TOKEN_ROWS.items():
            columns[name][i, real] = prompt.tokens[row]
        columns["positions"][i, real] = np.arange(len(prompt))
        columns["ids"][i, -1] = tokenizer.bos_id
        columns["segment_ids"][i, -1] = prompt.blanks[0].segment
        columns["num_segments"][i, -1] = prompt.num_segments
        columns["segment_rel"][i, : len(prompt.rel)] = prompt.rel
    columns["ext_ids"], columns["ext_sub"] = np.zeros((2, max_ext), np.int32)
    for i, (base, sub) in enumerate(pairs):
        columns["ext_ids"][i], columns["ext_sub"][i] = base, sub
    columns["num_ext"] = np.array([len(pairs)], np.int32)
    allowed_ext = np.zeros((num, max_ext), bool)
    for i, classes in enumerate(allowed):
        allowed_ext[i, classes] = True
    return PromptBatch(columns, tables, allowed_ext, [prompt.blanks for prompt in prompts])


def num_ext(prompts: Sequence[Prompt]) -> int:
    """How many classes a batch of these prompts appends to the vocabulary."""
    return len({(t.base, t.sub) for prompt in prompts for t in prompt.indexed if t.sub > 0})


def _placeholders(value: Any, path: tuple[str, ...], paths: list[tuple[str, ...]]) -> Any:
    """The same structure with `<ans_1>`, `<ans_2>`, ... as leaves; collects their paths."""
    if isinstance(value, Mapping):
        return {key: _placeholders(item, (*path, key), paths) for key, item in value.items()}
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{'.'.join(['record', ANSWER, *map(str, path)])} is {_shown(value)}; expected a text "
            "(usually empty) or a dict of texts"
        )
    paths.append(path)
    return f"<ans_{len(paths)}>"


def _ready(record: Any, tokenizer: CpmBeeTokenizer, strict: bool) -> Any:
    return record if strict else lenient_record(record, tokenizer.special_tokens)


def _check_size(record: Any) -> None:
    if (count := _count(record, 0)) > MOST_SEGMENTS:
        raise DataError(
            f"the record has {count} keys and texts, at most {MOST_SEGMENTS} can be related"
        )


def _count(value: Any, depth: int) -> int:
    if not isinstance(value, Mapping):
        return 1
    if depth == MOST_LEVELS:
        raise DataError(f"the record is nested too deeply, expected at most {MOST_LEVELS} levels")
    return len(value) + sum(_count(item, depth + 1) for item in value.values())


def _example(
    record: Any, tokenizer: CpmBeeTokenizer, *, strict: bool, max_depth: int, state: Any
) -> Sample:
    if not isinstance(record, Mapping):
        raise DataError(f"expected a record (a dict), got {_shown(record)}")
    _check_size(record)
    ready = _ready(record, tokenizer, strict)
    sample = to_arrays(ready, tokenizer, max_depth=max_depth, state=state)
    if not any(leaf.predicted for leaf in sample.leaves):
        raise DataError(f'the record has no answers; expected texts under the key "{ANSWER}"')
    return sample


def _ext_table(
    prompts: Sequence[Prompt], vocab_size: int
) -> tuple[list[tuple[int, int]], list[list[int]], list[dict[int, str]]]:
    """Pairs with appended classes by first use; for each prompt its classes and its table.

    The first indexed token of a base has sub 0 and so is the base's own class.
    """
    places: dict[tuple[int, int], int] = {}
    allowed: list[list[int]] = []
    tables: list[dict[int, str]] = []
    for prompt in prompts:
        classes, table = [], {}
        for base, sub, text in prompt.indexed:
            if sub == 0:
                table[base] = text
            else:
                place = places.setdefault((base, sub), len(places))
                classes.append(place)
                table[vocab_size + place] = text
        allowed.append(classes)
        tables.append(table)
    return list(places), allowed, tables


def _fits(what: str, count: int, room: int) -> None:
    if count > room:
        raise DataError(f"{what.format(count)}, there is room for {room}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
