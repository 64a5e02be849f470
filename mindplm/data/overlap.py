"""Records that are learned and measured on, and records that occur twice."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mindplm.config import SourceConfig
from mindplm.data.documents import Document
from mindplm.data.sources import SourceReader
from mindplm.text import leaves

_FIRST = 20
_FEW = 10
"""In fewer documents than half of this no text counts as a fixed part of a task's wording."""


class Mark(NamedTuple):
    """What tells a document from others.

    Attributes:
        place: Where it stands.
        texts: Hashes of the texts that are given.
        answer: Hash of the answer.
    """

    place: str
    texts: frozenset[int]
    answer: int


Marks = Sequence[Sequence[Mark]]
"""Marks of the documents of each source."""


@dataclass
class Overlap:
    """What two sets of documents have in common.

    Attributes:
        total: Documents of the second set.
        count: Those whose given part (all but the answer) is in the first set too.
        with_answer: Those of them whose answer is the same as well.
        first: Places of the first ones, in both sets.
    """

    total: int = 0
    count: int = 0
    with_answer: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def take(self, mark: Mark, known: Mark | None) -> None:
        """Counts a document and the one that it is equal to, if there is one."""
        self.total += 1
        if known is None:
            return
        self.count += 1
        self.with_answer += mark.answer == known.answer
        if len(self.first) < _FIRST:
            self.first.append((mark.place, known.place))


def find_overlap(train: Iterable[SourceConfig], measured: Iterable[SourceConfig]) -> Overlap:
    """Finds the documents of `measured` that are in `train` too.

    Spaces, case and the width of letters do not count, nor texts that most documents of a source
    have, such as a question; so another wording of the same task hides nothing.

    Args:
        train: Sources, with the shapes of their task files.
        measured: Likewise.
    """
    return overlap(list(map(marks, train)), list(map(marks, measured)))


def overlap(train: Marks, measured: Marks) -> Overlap:
    """`find_overlap` of the marks of sources."""
    fixed = fixed_texts([*train, *measured])
    seen: dict[frozenset[int], Mark] = {}
    for mark in itertools.chain.from_iterable(train):
        seen.setdefault(mark.texts - fixed, mark)
    found = Overlap()
    for mark in itertools.chain.from_iterable(measured):
        found.take(mark, seen.get(mark.texts - fixed))
    return found


def repeats(marked: Marks) -> Overlap:
    """The documents that were met before."""
    fixed = fixed_texts(marked)
    seen: dict[frozenset[int], Mark] = {}
    found = Overlap()
    for mark in itertools.chain.from_iterable(marked):
        known = seen.setdefault(mark.texts - fixed, mark)
        found.take(mark, known if known is not mark else None)
    return found


def marks(source: SourceConfig) -> list[Mark]:
    """The marks of the documents of a source."""
    return [mark_of(item) for item in SourceReader(source) if isinstance(item, Document)]


def mark_of(document: Document) -> Mark:
    """The mark of a document, with all its texts."""
    given = {key: value for key, value in document.fields.items() if key != document.slot}
    answer = "\n".join(leaves(document.fields.get(document.slot, "")))
    return Mark(document.place, frozenset(map(_hash, leaves(given))), _hash(answer))


def fixed_texts(marked: Marks) -> set[int]:
    """The texts that most documents of a source have, such as a question."""
    fixed: set[int] = set()
    for of_source in marked:
        counts = Counter(text for mark in of_source for text in mark.texts)
        least = max(len(of_source), _FEW)
        fixed.update(text for text, count in counts.items() if 2 * count > least)
    return fixed


def _hash(text: str) -> int:
    plain = "".join(unicodedata.normalize("NFKC", text).lower().split())
    digest = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
