"""WordPiece: words are cut into the longest pieces of the vocabulary, from left to right.

Used by BERT and CPT. A text becomes [CLS] text [SEP], a pair [CLS] a [SEP] b [SEP].
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mindplm.errors import VocabError
from mindplm.tokenizers.words import basic_words, chunks, halves

VOCAB_FILE, SETTINGS_FILE = "vocab.txt", "tokenizer_config.json"
PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_WORD = 100
_CACHED = 1 << 16
# What the public programs do to the spaces of a decoded text.
_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
            (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip

# A space beside something that is no letter or digit of an alphabet.
_INNER = re.compile(r"(?<=[^\x00-\u2fff]) +| +(?=[^\x00-\u2fff])")


class WordPieceTokenizer:
    """Cuts text into ids and joins ids into text.

    Args:
        lines: Pieces; the number of a line is its id.
        lower: Whether texts are lower-cased and lose their accents.
        pattern: A regular expression whose matches are the words, for vocabularies of something
            else than plain language; empty: BERT's way of finding words.
        source: What the vocabulary is called in error messages.

    Raises:
        VocabError: A special piece is missing, a piece occurs twice, or the pattern is none.

    Source: google-research/bert, its tokenization program.
    """

    def __init__(
        self,
        lines: Iterable[str],
        lower: bool = True,
        *,
        pattern: str = "",
        source: str = "vocabulary",
    ):
        self.lines = list(lines)
        self.lower, self.pattern = lower, pattern
        self.piece_to_id = {piece: i for i, piece in enumerate(self.lines)}
        missing = [piece for piece in SPECIALS if piece not in self.piece_to_id]
        if missing:
            raise VocabError(
                f"{source}: {', '.join(missing)} missing; it is no WordPiece vocabulary"
            )
        if len(self.piece_to_id) < len(self.lines):
            last = {piece: i for i, piece in enumerate(self.lines)}
            twice = next(piece for i, piece in enumerate(self.lines) if last[piece] != i)
            raise VocabError(f"{source}: {twice!r} occurs twice")
        self.vocab_size = len(self.lines)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids = [
            self.piece_to_id[piece] for piece in SPECIALS
        ]
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise VocabError(f"{source}: {pattern!r} is no regular expression: {error}") from None
        self._known: dict[str, list[str]] = {}

    @classmethod
    def from_file(cls, path: str | Path, words: str | None = None) -> WordPieceTokenizer:
        """Reads a vocabulary file, one piece a line.

        Args:
            path: The file.
            words: lower, cased, or a regular expression for the words; None: what
                tokenizer_config.json beside the file says by `do_lower_case` and `word_pattern`,
                else lower.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise VocabError(f"{path}: no such vocabulary file") from None
        except UnicodeDecodeError as error:
            raise VocabError(f"{path}: not UTF-8 (byte {error.start})") from None
        settings: Any = {}
        beside = path.with_name(SETTINGS_FILE)
        if beside.is_file():
            try:
                settings = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError as error:
                raise VocabError(f"{beside}: not JSON: {str(error)[:100]}") from None
        if words is not None:
            pattern = "" if words in ("lower", "cased") else words
            settings = {"do_lower_case": words == "lower", "word_pattern": pattern}
        lines = text.split("\n")
        lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
        return cls(
            lines,
            bool(settings.get("do_lower_case", True)),
            pattern=settings.get("word_pattern", ""),
            source=str(path),
        )

    def files(self) -> dict[str, bytes]:
        """The files of a checkpoint: `from_file` of the first one gives the same tokenizer."""
        settings = {"do_lower_case": self.lower}
        extra = {"word_pattern": self.pattern} if self.pattern else {}
        text = json.dumps({**settings, **extra}, ensure_ascii=False, indent=1) + "\n"
        vocab = "".join(f"{line}\n" for line in self.lines)
        return {VOCAB_FILE: vocab.encode(), SETTINGS_FILE: text.encode()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that the ids depend on."""
        digest = hashlib.sha256()
        for content in self.files().values():
            digest.update(content)
        return digest.hexdigest()

    # --- text to ids ------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[str]:
        """Pieces of a text.

        A special piece in it is kept whole between white space and Chinese characters; beside a
        sign or a letter it is ordinary text.
        """
        special = not self.pattern and any(piece in text for piece in SPECIALS)
        pieces: list[str] = []
        for part in chunks(text) if special else [text]:
            if part in SPECIALS:
                pieces.append(part)
                continue
            for word in self._words(part):
                pieces += self._pieces(word)
        return pieces

    def encode(
        self, text: str, pair: str | None = None, max_len: int = 0
    ) -> tuple[list[int], list[int]]:
        """Ids of [CLS] text [SEP] (pair [SEP]), and their types: 1 for the pair, else 0.

        Args:
            text: The text.
            pair: The second text.
            max_len: Most ids; the longer text loses tokens at its end first. 0: no limit.
        """
        first = self.tokenize(text)
        second = [] if pair is None else self.tokenize(pair)
        marks = 2 if pair is None else 3
        for _ in range(len(first) + len(second) + marks - max_len if max_len else 0):
            (first if len(first) > len(second) else second).pop()
        head = [CLS, *first, SEP]
        tail = [] if pair is None else [*second, SEP]
        return self.ids_of([*head, *tail]), [0] * len(head) + [1] * len(tail)

    def encode_pieces(self, text: str) -> tuple[list[int], list[str]]:
        """Ids and pieces of [CLS] text [SEP]."""
        pieces = [CLS, *self.tokenize(text), SEP]
        return self.ids_of(pieces), pieces

    def ids_of(self, pieces: Iterable[str]) -> list[int]:
        """The id of each piece; those that have none get that of [UNK]."""
        known, unknown = self.piece_to_id, self.unk_id
        return [known.get(piece, unknown) for piece in pieces]

    def size(self, text: str) -> int:
        """Tokens of a text, without the marks around it."""
        return len(self.tokenize(text))

    def parts(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        """Pieces of a text of at most `room` tokens, by halving it; and their sizes."""
        return halves(text, room, self.size)

    def _words(self, text: str) -> list[str]:
        if self._pattern is None:
            return basic_words(text, self.lower)
        return [match.group() for match in self._pattern.finditer(text)]

    def _pieces(self, word: str) -> list[str]:
        found = self._known.get(word)
        if found is None:
            found = self._cut(word)
            if len(self._known) < _CACHED:
                self._known[word] = found
        return found

    def _cut(self, word: str) -> list[str]:
        if len(word) > _LONGEST_WORD:
            return [UNK]
        pieces = []
        start = 0
        while start < len(word):
            head = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if head + word[start:e] in self.piece_to_id), 0)
            if not end:
                return [UNK]
            pieces.append(head + word[start:end])
            start = end
        return pieces

    # --- ids to text ------------------------------------------------------------------------------

    def decode(
        self, ids: Sequence[int], *, skip_special: bool = False, joined: bool = False
    ) -> str:
        """Text of ids.

        Args:
            ids: Ids of the vocabulary.
            skip_special: Leave out [CLS], [SEP], [PAD], [MASK] and [UNK].
            joined: Leave out the spaces around Chinese characters and signs; without it every word
                stands by itself but for English signs, as with the public programs.
        """
        skipped = set(self.special_ids) if skip_special else set()
        pieces = [self.lines[i] for i in ids if i not in skipped]
        if self.pattern:
            return "".join(pieces)
        text = " ".join(pieces).replace(" ##", "")
        for written, meant in _CLEANED:
            text = text.replace(written, meant)
        return _INNER.sub("", text.strip()) if joined else text.strip()
