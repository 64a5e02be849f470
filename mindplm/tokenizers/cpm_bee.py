"""The CPM-Bee tokenizer: greedy longest match, tags in angle brackets, unknown runs as dynamic ids.

Text is cut from left to right; each piece is the longest vocabulary entry that fits. `<name>` is a
tag, `<<` a literal `<`. Tags and unknown runs that have no entry get a *fake id* beyond the
vocabulary; which string a fake id stands for is kept in a table that travels with the ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import ahocorasick_rs

from mindplm.errors import DataError, VocabError

VOCAB_FILE = "vocab.txt"
SPECIALS = ("<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>",
            "<option>")  # fmt: skip
"""Entries that every vocabulary must have; `</n>` and `</_>` stand for newline and space."""
RENAMED = {"</n>": "\n", "</_>": " "}

# The character after '<' belongs to the tag whatever it is, so "<>" does not close it.
_TAG = re.compile(r"<[^<][^<>]*>")


_REBUILT = ("_matcher", "_unknown", "_ordinary", "_hidden")
"""What each process makes for itself."""


class Token(NamedTuple):
    """A piece of text; `start` counts characters of the text after `<<` became `<`."""

    text: str
    start: int
    is_unknown: bool
    is_special: bool


def escape(text: str) -> str:
    """Doubles every `<`, so that the text holds no tag."""
    return text.replace("<", "<<")


def unescape(text: str) -> str:
    """Turns every `<<` into `<`, from left to right."""
    return text.replace("<<", "<")


class CpmBeeTokenizer:
    """Cuts text into ids and joins ids into text.

    Args:
        lines: Vocabulary lines as in the file; empty ones are skipped and the id of an entry is
            its number among the others.
        source: What the lines are called in error messages.

    Raises:
        VocabError: An entry that every vocabulary needs is missing, or an entry occurs twice.
    """

    def __init__(self, lines: Iterable[str], *, source: str = "vocabulary"):
        given = list(lines)
        self.lines = [line for line in given if line]
        if not self.lines:
            raise VocabError(f"{source}: is empty; expected one entry per line")
        self.id_to_token = [RENAMED.get(line, line) for line in self.lines]
        self.token_to_id = {token: i for i, token in enumerate(self.id_to_token)}
        _check(given, self.token_to_id, source)
        self.vocab_size = len(self.id_to_token)
        self.special_tokens = {
            token: i
            for token, i in self.token_to_id.items()
            if token[0] == "<" and token[-1] == ">"
        }
        self.pad_id = self.token_to_id["<pad>"]
        self.unk_id = self.token_to_id["<unk>"]
        self.mask_id = self.token_to_id["<mask>"]
        self.bos_id = self.token_to_id["<s>"]
        self.eos_id = self.token_to_id["</s>"]
        self.newline_id = self.token_to_id["\n"]
        self.space_id = self.token_to_id[" "]

    @classmethod
    def from_file(cls, path: str | Path) -> CpmBeeTokenizer:
        """Reads a vocabulary file (UTF-8, one entry per line, only the line feed is stripped)."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            raise VocabError(f"{path}: no such vocabulary file") from None
        except OSError as error:
            raise VocabError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise VocabError(f"{path}:{line}: not UTF-8 (byte {error.start})") from None
        return cls(text.split("\n"), source=str(path))

    def size(self, text: str) -> int:
        """Tokens of a plain text."""
        return len(self._pieces(text)[0])

    def starts(self, text: str) -> list[int]:
        """Where each token of a plain text begins."""
        return list(accumulate(map(len, self._pieces(text)[0]), initial=0))[:-1]

    def num_characters(self, text: str) -> int:
        """Characters of a text with tags, a tag as one."""
        if "<" not in text:
            return len(text)
        return sum(1 if is_tag else len(part) for part, is_tag in _split(text))

    def parts(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        """Pieces of a plain text of `room` tokens each, the last of fewer, and their sizes."""
        every = self.starts(text)
        starts = every[::room]
        for low, high in zip(starts, [*starts[1:], len(text)]):
            yield text[low:high], room if high < len(text) else len(every) % room or room

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the lines, as hexadecimal digits."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def _content(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode("utf-8")

    @cached_property
    def _ordinary(self) -> dict[str, int]:
        """Ids of the entries that plain text is cut into."""
        return {t: i for t, i in self.token_to_id.items() if t not in self.special_tokens}

    @cached_property
    def _matcher(self) -> ahocorasick_rs.AhoCorasick:
        """The automaton over these entries; asked for texts, which is faster than for places."""
        return ahocorasick_rs.AhoCorasick(
            list(self._ordinary),
            matchkind=ahocorasick_rs.MatchKind.LeftmostLongest,
            store_patterns=True,
        )

    @cached_property
    def _unknown(self) -> re.Pattern[str]:
        """Runs of characters without an entry; a text without them is cut into entries only."""
        known = sorted(token for token in self.token_to_id if len(token) == 1)
        return re.compile(f"([^{re.escape(''.join(known))}]+)")

    @cached_property
    def _hidden(self) -> set[str]:
        """Those of them that longer entries have."""
        return {char for char in set("".join(self._ordinary)) if char not in self._ordinary}

    def __getstate__(self) -> dict[str, Any]:
        # The automaton cannot be pickled; each process builds its own when it first needs it.
        return {key: value for key, value in self.__dict__.items() if key not in _REBUILT}

    def tokenize(self, text: str) -> list[Token]:
        """Cuts a text into tokens.

        Raises:
            DataError: A tag is not closed, or another opens inside it.
        """
        tokens = []
        start = 0
        for part, is_tag in _split(text):
            if is_tag:
                tokens.append(Token(part, start, False, True))
            else:
                at = start
                for piece in self._pieces(part)[0]:
                    tokens.append(Token(piece, at, piece not in self._ordinary, False))
                    at += len(piece)
            start += len(part)
        return tokens

    def encode(
        self, text: str, table: Mapping[int, str] | None = None
    ) -> tuple[list[int], dict[int, str]]:
        """Turns a text into ids, without begin or end marks.

        Args:
            text: Text with tags; a literal `<` is written `<<`.
            table: Fake ids given out before, for a text that belongs to the same record.

        Returns:
            The ids and a new table: that of the argument and the fake ids met here. A run that
            holds `<` (which has an entry of its own in the published vocabulary, not in every one)
            is in the table with `<<`, so that it is no tag.

        Raises:
            DataError: A tag is not closed, or another opens inside it.
        """
        if not table and "<" not in text:  # most texts
            pieces, unknown = self._pieces(text)
            if not unknown:
                return list(map(self._ordinary.__getitem__, pieces)), {}
        table = dict(table) if table else {}
        ids: list[int] = []
        fake_ids: dict[str, int] | None = None
        for part, is_tag in _split(text):
            if is_tag:
                pieces, id_of = [part], self.token_to_id
                unknown = part not in id_of
            else:
                (pieces, unknown), id_of = self._pieces(part), self._ordinary
            if not unknown:
                ids += map(id_of.__getitem__, pieces)
                continue
            if fake_ids is None:
                fake_ids = {word: i for i, word in table.items()}
            own = list(map(id_of.get, pieces))
            for place in [i for i, known in enumerate(own) if known is None]:
                word = part if is_tag else escape(pieces[place])
                if word not in fake_ids:
                    fake_ids[word] = self.vocab_size + len(fake_ids)
                    table[fake_ids[word]] = word
                own[place] = fake_ids[word]
            ids += own  # type: ignore[arg-type]
        return ids, table

    def _pieces(self, part: str) -> tuple[list[str], bool]:
        """Entries and runs of unknown characters, in turn; whether there is such a run."""
        find = self._matcher.find_matches_as_strings
        runs = self._unknown.split(part)
        if len(runs) == 1:
            return find(part), False
        unknown = "".join(runs[1::2])
        try:
            unknown.encode()
        except UnicodeEncodeError as error:
            place = part.index(unknown[error.start])
            raise DataError(
                f"half a surrogate pair, U+{ord(part[place]):04X}, in "
                f"{_around(part, place)}; expected text that UTF-8 can hold"
            ) from None
        if not self._hidden.isdisjoint(unknown):
            return _with_gaps(find(part), part)
        pieces: list[str] = []
        for number, run in enumerate(runs):  # known and unknown characters in turn
            pieces += [run] if number % 2 else find(run)
        return pieces, True

    def decode(self, ids: Iterable[int], table: Mapping[int, str] | None = None) -> str:
        """Turns ids into a text that `encode` accepts (a literal `<` comes out as `<<`).

        Args:
            ids: Ids; negative ones are skipped.
            table: The strings that fake ids stand for.

        Raises:
            DataError: An id is neither in the vocabulary nor in the table.
        """
        table = table or {}
        parts = []
        for i in map(int, ids):
            if i in table:
                parts.append(table[i])
            elif 0 <= i < self.vocab_size:
                token = self.id_to_token[i]
                parts.append(token if token in self.special_tokens else escape(token))
            elif i >= 0:
                raise DataError(
                    f"id {i} stands for no token: the vocabulary has {self.vocab_size} entries "
                    f"and the table of fake ids {len(table)}"
                )
        return "".join(parts)

    def files(self) -> dict[str, bytes]:
        """The files that restore this tokenizer: names and contents."""
        return {VOCAB_FILE: self._content}

    def save(self, folder: str | Path) -> None:
        """Writes the files of this tokenizer into an existing folder."""
        for name, content in self.files().items():
            (Path(folder) / name).write_bytes(content)


def _with_gaps(entries: list[str], text: str) -> tuple[list[str], bool]:
    """The entries of a text with what stands between them; whether there is something."""
    pieces: list[str] = []
    end = 0
    for entry in entries:
        start = text.find(entry, end)  # it stands nowhere before: it would have been found
        if start > end:
            pieces.append(text[end:start])
        pieces.append(entry)
        end = start + len(entry)
    if end < len(text):
        pieces.append(text[end:])
    return pieces, len(pieces) > len(entries)


def _check(lines: list[str], token_to_id: dict[str, int], source: str) -> None:
    missing = [name for name in SPECIALS if RENAMED.get(name, name) not in token_to_id]
    if missing:
        hint = ""
        if lines[0].startswith("\ufeff"):
            hint = "; the file starts with a byte order mark, which does not belong there"
        elif f"{missing[0]}\r" in token_to_id:
            hint = "; the lines end with a carriage return, expected a line feed alone"
        raise VocabError(f"{source}: no entry {', '.join(missing)}{hint}")
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        if "\n" in line:
            raise VocabError(f"{source}:{number}: entry {line!r} holds a line feed; write </n>")
        token = RENAMED.get(line, line)
        if token in first:
            raise VocabError(
                f"{source}:{number}: entry {line!r} occurs twice, first on line {first[token]}"
            )
        first[token] = number


def _split(text: str) -> list[tuple[str, bool]]:
    """Splits into (text with `<<` resolved, False) and (tag, True); empty texts are left out."""
    if "<" not in text:
        return [(text, False)] if text else []
    parts: list[tuple[str, bool]] = []
    pending: list[str] = []
    position = 0
    while (opening := text.find("<", position)) >= 0:
        pending.append(text[position:opening])
        if text.startswith("<<", opening):
            pending.append("<")
            position = opening + 2
            continue
        tag = _TAG.match(text, opening)
        if tag is None:
            raise _stray(text, opening)
        if plain := "".join(pending):
            parts.append((plain, False))
        pending.clear()
        parts.append((tag.group(), True))
        position = tag.end()
    pending.append(text[position:])
    if plain := "".join(pending):
        parts.append((plain, False))
    return parts


def _stray(text: str, opening: int) -> DataError:
    inner = text.find("<", opening + 1)
    if inner >= 0:
        what = f"'<' at position {inner} inside the tag that '<' opens at position {opening}"
    else:
        what = f"end of text inside the tag that '<' opens at position {opening}"
    return DataError(f"{what}: {_around(text, opening)}; a literal '<' is written '<<'")


def _around(text: str, position: int, width: int = 30) -> str:
    """The text near a position, quoted."""
    left, right = max(0, position - width), position + width
    return f"{'...' if left else ''}{text[left:right]!r}{'...' if right < len(text) else ''}"
