"""CPM-Bee records to arrays: a nested dict of texts becomes a tree of token segments.

Every node of the tree is a segment: the root, each key, each leaf text. Ids follow a pre-order
walk. Leaves below the top-level key `<ans>` are predicted, everything else is context.

Indexed tokens (`<mask_3>`, `<option_0>`, a run of unknown characters) become pairs of a base id
and a sub index; the sub index counts the different ones of a base in order of appearance, from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from mindplm.errors import DataError, UserError
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

ANSWER = "<ans>"
"""Top-level key whose leaves are predicted."""
ROOT = "<root>"
_CACHED_SEGMENTS = 64


class RecordError(DataError):
    """A record that cannot be used: `reason` is a short name of why, to count by.

    `too_big` tells that a smaller one of its kind could be used.
    """

    def __init__(self, message: str, *, reason: str = "invalid record", too_big: bool = False):
        super().__init__(message)
        self.reason = reason
        self.too_big = too_big


class Shuffler(Protocol):
    """numpy.random, a RandomState or a Generator."""

    def shuffle(self, x: np.ndarray) -> None:
        """Permutes an array in place."""


class Leaf(NamedTuple):
    """A leaf text: where it stands in the tree and in the record."""

    segment: int
    path: tuple[str, ...]
    predicted: bool


@dataclass
class RecordState:
    """The indexed tokens met so far; handed on to in-context samples of the same instance.

    `table` tells which text a fake id stands for, `subs` the sub index of a fake id, by base.
    """

    table: dict[int, str] = field(default_factory=dict)
    subs: dict[str, dict[int, int]] = field(default_factory=dict)


class Indexed(NamedTuple):
    """The tokens whose sub index is not 0: where they are, and that index; int32."""

    at: np.ndarray
    values: np.ndarray


_NONE = Indexed(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass
class Sample:
    """The arrays of one record.

    What is the same for all tokens of a segment is kept for each segment; `subs, segs, context`
    have it for each token.

    Attributes:
        ids: Token ids, int32.
        lengths: Tokens of each segment, int32.
        known: Whether each segment is context (1) or predicted (0), int32.
        indexed: The tokens with sub indices.
        rel: Flat num_segments x num_segments matrix of relations, row = query segment, int32.
        state: Indexed tokens for the next sample of the instance.
        nodes: The segments of the tree.
        num_chars: Characters of the predicted texts, a tag as one.
        num_targets: Tokens of the predicted segments.
    """

    ids: np.ndarray
    lengths: np.ndarray
    known: np.ndarray
    indexed: Indexed
    rel: np.ndarray
    state: RecordState
    nodes: list[_Node]
    num_chars: int
    num_targets: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_segments(self) -> int:
        """Segments of the tree."""
        return len(self.lengths)

    @cached_property
    def subs(self) -> np.ndarray:
        """Sub index of each token, int32."""
        subs = np.zeros(len(self.ids), np.int32)
        subs[self.indexed.at] = self.indexed.values
        return subs

    @cached_property
    def segs(self) -> np.ndarray:
        """Number of the segment of each token, int32."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @cached_property
    def context(self) -> np.ndarray:
        """Whether each token is context, int8."""
        return np.repeat(self.known.astype(np.int8), self.lengths)

    @property
    def leaves(self) -> list[Leaf]:
        """The texts of the record."""
        return [Leaf(i, n.path, n.predicted) for i, n in enumerate(self.nodes) if n.is_leaf]


class _Node(NamedTuple):
    text: str
    depth: int
    path: tuple[str, ...]
    is_leaf: bool
    predicted: bool


def to_arrays(
    record: Any,
    tokenizer: CpmBeeTokenizer,
    *,
    max_depth: int = 8,
    shuffle: Shuffler | None = None,
    state: RecordState | None = None,
) -> Sample:
    """Turns a record into arrays.

    Args:
        record: A dict of texts and dicts, or one text.
        tokenizer: Cuts the texts.
        max_depth: Steps up and down in the tree are counted up to max_depth - 1.
        shuffle: Permutes the dicts below `<ans>`; None keeps their order.
        state: Indexed tokens of the records before this one in the same instance.

    Raises:
        RecordError: With the path inside the record: a value that is neither text nor dict, a key
            that is not text, a tag that is not known or not closed.
    """
    nodes = [_Node(ROOT, 0, (), False, False)]
    _visit(record, (), shuffle, nodes)
    table = state.table if state else {}
    ids: list[int] = []
    lengths = []
    num_chars = num_targets = 0
    for node in nodes:
        body, table = _encode(node, tokenizer, table)
        ids.append(tokenizer.bos_id)
        ids += body
        if node.predicted:
            num_chars += tokenizer.num_characters(node.text)
            num_targets += len(body) + 1
            lengths.append(len(body) + 1)
        else:
            ids.append(tokenizer.eos_id)
            lengths.append(len(body) + 2)
    sample = Sample(
        ids=np.array(ids, np.int32),
        lengths=np.array(lengths, np.int32),
        known=np.array([not node.predicted for node in nodes], np.int32),
        indexed=_NONE,
        rel=relations(tuple([node.depth for node in nodes]), max_depth),
        state=RecordState(dict(table), _copied(state)),
        nodes=nodes,
        num_chars=num_chars,
        num_targets=num_targets,
    )
    if table:
        _replace_fake_ids(sample, tokenizer)
    return sample


def _copied(state: RecordState | None) -> dict[str, dict[int, int]]:
    return {base: dict(known) for base, known in state.subs.items()} if state else {}


def _replace_fake_ids(sample: Sample, tokenizer: CpmBeeTokenizer) -> None:
    """Turns ids beyond the vocabulary into base ids and sub indices."""
    table, subs_of = sample.state.table, sample.state.subs
    indexed: list[tuple[int, int]] = []
    for position in np.flatnonzero(sample.ids >= tokenizer.vocab_size).tolist():
        token = int(sample.ids[position])
        base = _base(table[token], tokenizer)
        if base not in tokenizer.token_to_id:
            segment = np.searchsorted(np.cumsum(sample.lengths), position, side="right")
            known_tags = " ".join(tokenizer.special_tokens)
            raise RecordError(
                f"{_place(sample.nodes[segment])}: unknown tag {table[token]}; accepted: "
                f"{known_tags}, or one of these with a suffix like <mask_0>; a literal '<' is "
                "written '<<'",
                reason="unknown tag",
            )
        known = subs_of.setdefault(base, {})
        sub = known.setdefault(token, len(known))
        sample.ids[position] = tokenizer.token_to_id[base]
        if sub:
            indexed.append((position, sub))
    if indexed:
        sample.indexed = Indexed(*np.array(indexed, np.int32).T)


def relations(depths: tuple[int, ...], max_depth: int) -> np.ndarray:
    """Flat matrix of relations between the segments of a tree.

    For two segments with lowest common ancestor c: up = steps from the query segment to c,
    down = steps from c to the key segment; the value is up * max_depth + down + 1, and 0 for a
    segment with itself.

    Args:
        depths: Depth of each segment in pre-order, which determines the tree.
        max_depth: Steps are clipped to max_depth - 1.
    """
    if len(depths) <= _CACHED_SEGMENTS:
        return _cached_relations(depths, max_depth)
    return _relations(depths, max_depth)


def _relations(depths: tuple[int, ...], max_depth: int) -> np.ndarray:
    num = len(depths)
    # Column k holds the ancestor at depth k; below a node, a number that no other node has.
    ancestors = np.repeat(-1 - np.arange(num), max(depths) + 1).reshape(num, -1)
    path: list[int] = []
    for node, depth in enumerate(depths):
        path[depth:] = [node]
        ancestors[node, : depth + 1] = path
    common = np.full((num, num), -1)
    for ancestor in ancestors.T:
        common += ancestor[:, None] == ancestor[None, :]
    own = np.array(depths)
    up = np.minimum(own[:, None] - common, max_depth - 1)
    down = np.minimum(own[None, :] - common, max_depth - 1)
    rel = up * max_depth + down + 1
    np.fill_diagonal(rel, 0)
    return rel.astype(np.int32).ravel()


@lru_cache(maxsize=1024)
def _cached_relations(depths: tuple[int, ...], max_depth: int) -> np.ndarray:
    rel = _relations(depths, max_depth)
    rel.setflags(write=False)
    return rel


def _visit(value: Any, path: tuple[str, ...], shuffle: Shuffler | None, nodes: list[_Node]) -> None:
    """Adds the segments of a part of a record, in pre-order."""
    inside = bool(path) and path[0] == ANSWER
    depth = len(path) + 1
    if isinstance(value, str):
        nodes.append(_Node(value, depth, path, True, inside))
        return
    if not isinstance(value, Mapping):
        message = f"{_name(path)} is {_kind(value)}; expected text or an object of texts"
        raise RecordError(message, reason="wrong type")
    items = list(value.items())
    if inside and shuffle is not None:
        order = np.arange(len(items))
        shuffle.shuffle(order)
        items = [items[i] for i in order]
    for key, child in items:
        if not isinstance(key, str):
            message = f"{_name(path)} has the key {key!r}, {_kind(key)}; expected text"
            raise RecordError(message, reason="wrong type")
        nodes.append(_Node(key, depth, path, False, False))
        _visit(child, (*path, key), shuffle, nodes)


def _encode(
    node: _Node, tokenizer: CpmBeeTokenizer, table: dict[int, str]
) -> tuple[list[int], dict[int, str]]:
    try:
        if not node.is_leaf:
            known = _key_ids(tokenizer, node.text)
            if known is not None:
                return known, table
        return tokenizer.encode(node.text, table)
    except UserError as error:
        raise RecordError(f"{_place(node)}: {error}", reason="invalid text") from None


@lru_cache(maxsize=4096)
def _key_ids(tokenizer: CpmBeeTokenizer, key: str) -> list[int] | None:
    """Ids of a key, the same few keys again and again; None if it has indexed tokens."""
    ids, table = tokenizer.encode(key)
    return None if table else ids


def _base(text: str, tokenizer: CpmBeeTokenizer) -> str:
    """The vocabulary entry that an indexed token is a numbered form of."""
    if not (text.startswith("<") and text.endswith(">")) or text.startswith("<<"):
        return "<unk>"
    return "<" + text[1:-1].split("_", 1)[0] + ">"


def _place(node: _Node) -> str:
    return _name(node.path) if node.is_leaf else f"the key {node.text!r} of {_name(node.path)}"


def _name(path: tuple[str, ...]) -> str:
    return ".".join(("record", *path))


def _kind(value: Any) -> str:
    names = {list: "a list", tuple: "a list", bool: "true or false", int: "a number"}
    names |= {float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
