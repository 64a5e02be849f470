"""Byte-pair encoding over the characters of words, as GPT-1 has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mindplm.errors import VocabError
from mindplm.tokenizers import words

VOCAB_FILE = "bpe.json"
END = "</w>"
UNKNOWN = "<unk>"
START, DELIMITER, EXTRACT, DOCUMENT_END = "_start_", "_delimiter_", "_classify_", "<eos>"
SPECIALS = (START, DELIMITER, EXTRACT)
"""Marks of the fine-tuning inputs of GPT-1."""
WITH_MARKS = "+marks"
_MERGE_FILES = ("vocab_40000.bpe", "merges.txt")
_VOCAB_FILES = (VOCAB_FILE, "encoder_bpe_40000.json", "vocab.json")
_ORIGINAL_FILES = {
    "openai": ("encoder_bpe_40000.json", "vocab_40000.bpe"),
    "hf": ("vocab.json", "merges.txt"),
}
_CACHED = 1 << 16


class BpeTokenizer:
    """Cuts text into ids and joins ids into text.

    Args:
        pieces: Piece to id, without gaps from 0 on.
        merges: Pairs of pieces, the first one merged first.
        form: How words are found; one of `mindplm.tokenizers.words.FORMS`. With `exact` pieces
            hold their spaces, otherwise the last piece of a word ends with `</w>`.
        source: What the vocabulary is called in error messages.

    Raises:
        VocabError: Ids have gaps, or the form is not known.
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        form: str = "rules",
        *,
        source: str = "vocabulary",
    ):
        if form not in words.FORMS:
            raise VocabError(f"{source}: words={form!r}, accepted: {', '.join(words.FORMS)}")
        self.pieces, self.merges, self.form = dict(pieces), list(merges), form
        self.vocab_size = len(self.pieces)
        self.by_id = [""] * self.vocab_size
        for piece, number in self.pieces.items():
            if not isinstance(number, int) or not 0 <= number < self.vocab_size:
                raise VocabError(
                    f"{source}: {piece!r} has id {number}, expected 0 to {self.vocab_size - 1}"
                )
            self.by_id[number] = piece
        if len(set(self.pieces.values())) != self.vocab_size:
            raise VocabError(f"{source}: an id stands for several pieces")
        self.unk_id = self.pieces.get(UNKNOWN, 0)
        self.eos_id = self.pieces.get(DOCUMENT_END, -1)
        """Ends documents; -1: there is no such mark."""
        self.pad_id = 0
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(self.merges)}
        self._end = "" if form == "exact" else END
        self._known: dict[str, tuple[str, ...]] = {}

    @classmethod
    def from_file(cls, path: str | Path, form: str | None = None) -> BpeTokenizer:
        """Reads a vocabulary.

        Args:
            path: Our bpe.json; or the JSON file of pieces of the original or the HF release, with
                the file of merges beside it; or a folder with one of these.
            form: How words are found, if the file does not say; None: `rules`. With "+marks"
                behind it the vocabulary gets the marks of fine-tuning inputs that it has not.

        Raises:
            VocabError: A file is missing or cannot be used.
        """
        if form is not None and form.endswith(WITH_MARKS):
            return cls.from_file(path, form[: -len(WITH_MARKS)]).with_specials()
        path = _vocab_file(Path(path))
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, ValueError) as error:
            raise VocabError(f"{path}: not a JSON file of pieces: {str(error)[:100]}") from None
        except FileNotFoundError:
            raise VocabError(f"{path}: no such vocabulary file (tokenizer.path)") from None
        if not isinstance(tree, dict):
            raise VocabError(f"{path}: expected a mapping of pieces to ids")
        if isinstance(tree.get("pieces"), list):
            pieces = {piece: number for number, piece in enumerate(tree["pieces"])}
            merges = [(left, right) for left, right in tree["merges"]]
            return cls(pieces, merges, form or tree["words"], source=str(path))
        return cls(tree, _read_merges(path.parent), form or "rules", source=str(path))

    @property
    def specials(self) -> dict[str, int]:
        """The marks that this vocabulary has, by name."""
        names = (*SPECIALS, DOCUMENT_END)
        return {name: self.pieces[name] for name in names if name in self.pieces}

    def with_specials(self, names: Sequence[str] = SPECIALS) -> BpeTokenizer:
        """The same with marks at the end of the vocabulary, those that it has not yet."""
        pieces = dict(self.pieces)
        for name in names:
            pieces.setdefault(name, len(pieces))
        return BpeTokenizer(pieces, self.merges, self.form)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special marks in it are not recognised, unknown pieces are unk_id."""
        found = self.pieces
        return [
            found.get(piece, self.unk_id)
            for word in words.split(text, self.form)
            for piece in self.cut(word)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special marks give nothing."""
        hidden = {UNKNOWN, *self.specials} if self.form == "exact" else set(self.specials)
        text = "".join(piece for i in ids if (piece := self.by_id[i]) not in hidden)
        return text.replace(END, " ").strip() if self._end else text

    def text_of(self, token: int) -> str:
        """The text of one id, with the space behind it if its word ends."""
        piece = self.by_id[token]
        return piece.replace(END, " ") if self._end else piece

    @property
    def silent_ids(self) -> list[int]:
        """Ids that stand for no text."""
        return [self.unk_id, *(i for i in self.specials.values() if i != self.eos_id)]

    def cut(self, word: str) -> tuple[str, ...]:
        """The pieces of a word."""
        known = self._known.get(word)
        if known is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            known = self._known[word] = self._merge(word)
        return known

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode(text))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that ids depend on."""
        return hashlib.sha256(self.files()[VOCAB_FILE]).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The vocabulary as the file of a checkpoint."""
        tree = {"words": self.form, "pieces": self.by_id, "merges": self.merges}
        return {VOCAB_FILE: (json.dumps(tree, ensure_ascii=False) + "\n").encode()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def _merge(self, word: str) -> tuple[str, ...]:
        """Merges the best-ranked neighbours everywhere until no pair of them is known."""
        parts = [*word[:-1], word[-1:] + self._end]
        while len(parts) > 1:
            pairs = zip(parts, parts[1:])
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            parts = merged(parts, best)
        return tuple(parts)


def num_pieces(path: Path) -> int:
    """Entries of a vocabulary file."""
    return BpeTokenizer.from_file(path).vocab_size


def original_files(tokenizer: BpeTokenizer, flavour: str) -> dict[str, bytes]:
    """The files of the original (openai) or of the HF port, which `from_file` reads as well."""
    pieces, merges = _ORIGINAL_FILES["openai" if flavour == "openai" else "hf"]
    lines = ["#version: 0.2", *map(" ".join, tokenizer.merges), ""]
    text = json.dumps(tokenizer.pieces, ensure_ascii=flavour == "openai") + "\n"
    return {pieces: text.encode(), merges: "\n".join(lines).encode()}


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with every occurrence of a pair as one, from left to right."""
    result: list[str] = []
    place = 0
    while place < len(parts):
        both = parts[place] == pair[0] and parts[place + 1 : place + 2] == [pair[1]]
        result.append(pair[0] + pair[1] if both else parts[place])
        place += 1 + both
    return result


def _vocab_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _VOCAB_FILES if (path / name).is_file()]
    if not found:
        raise VocabError(f"{path} holds none of {', '.join(_VOCAB_FILES)}")
    return found[0]


def _read_merges(folder: Path) -> list[tuple[str, str]]:
    found = [folder / name for name in _MERGE_FILES if (folder / name).is_file()]
    if not found:
        raise VocabError(f"{folder}: the merges are missing; expected {' or '.join(_MERGE_FILES)}")
    lines = found[0].read_text(encoding="utf-8").split("\n")
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        pair = tuple(line.split())
        if len(pair) != 2:
            raise VocabError(f"{found[0]}:{number}: {line[:60]!r} is not a pair of pieces")
        merges.append((pair[0], pair[1]))
    return merges
