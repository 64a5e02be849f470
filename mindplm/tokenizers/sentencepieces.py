"""SentencePiece models as tokenizers: CPM-1's, behind jieba's words, and T5's, with sentinels."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mindplm.errors import VocabError
from mindplm.tokenizers.words import chinese_words, halves

SPACE, NEWLINE = "\u2582", "\u2583"
"""What stands for a space and a line break in CPM-1's pieces."""
_MARKS = str.maketrans({" ": SPACE, "\n": NEWLINE})
_TEXTS = str.maketrans({" ": "", SPACE: " ", NEWLINE: "\n"})
_META = "\u2581"
_SENTINEL = re.compile(r"<extra_id_(\d|[1-9]\d)>")
_GUARD = "\ue000"
"""A character of nobody's, which no piece holds."""


class PieceModel:
    """A SentencePiece model file.

    Args:
        data: Contents of the file.
        source: What it is called in error messages.

    Raises:
        VocabError: It is none.
    """

    def __init__(self, data: bytes, source: str = "vocabulary"):
        from sentencepiece import SentencePieceProcessor

        self.data = data
        try:
            self.model: Any = SentencePieceProcessor(model_proto=data)
            self.size = self.model.get_piece_size()
        except (RuntimeError, TypeError) as error:
            raise VocabError(f"{source}: not a SentencePiece model: {str(error)[:100]}") from None

    @classmethod
    def read(cls, path: str | Path, name: str) -> PieceModel:
        """Reads a file, or the one of a name in a folder."""
        path = Path(path)
        path = path / name if path.is_dir() else path
        try:
            return cls(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise VocabError(f"{path}: no such vocabulary file (tokenizer.path)") from None

    def id_of(self, piece: str, source: str = "vocabulary") -> int:
        """Id of a piece that must be there.

        Raises:
            VocabError: It is not.
        """
        number = self.model.piece_to_id(piece)
        if self.model.id_to_piece(number) != piece:
            raise VocabError(f"{source}: {piece} is missing; it is no vocabulary of this family")
        return number

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["data"])  # type: ignore[misc]


class Cpm1Tokenizer:
    """Words by jieba, their spaces and line breaks as marks, then pieces.

    Args:
        pieces: The model.

    Raises:
        VocabError: A mark is missing in the model.

    Source: TsinghuaAI/CPM-1-Generate, GPT2Tokenizer.
    """

    FILE = "chinese_vocab.model"

    def __init__(self, pieces: PieceModel):
        self.pieces = pieces
        self.vocab_size = pieces.size
        self.unk_id = pieces.id_of("<unk>")
        self.sep_id = pieces.id_of("<sep>")
        self.pad_id = pieces.id_of("<pad>")
        self.mask_id = pieces.id_of("<mask>")
        self.eos_id = pieces.id_of("<eod>")
        """Ends documents."""
        silent = ("<unk>", "<s>", "</s>", "<sep>", "<pad>", "<mask>")
        self.silent_ids = [pieces.id_of(piece) for piece in silent]

    @classmethod
    def from_file(cls, path: str | Path) -> Cpm1Tokenizer:
        """Reads chinese_vocab.model, or the folder that holds it."""
        return cls(PieceModel.read(path, cls.FILE))

    def words(self, text: str) -> list[str]:
        """jieba's words; joined they are the text."""
        return chinese_words().lcut(text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special pieces in it are not recognised."""
        return self.pieces.model.encode(marked(text))

    def encode_hf46(self, text: str) -> list[int]:
        """Ids as the tokenizer of Transformers 4.6 gives them, which some checkpoints follow.

        It drops accents, joins white space, takes two single quotes for a double one and cuts a
        comma off a number.
        """
        text = " ".join(marked(text).split()).replace("``", '"').replace("''", '"')
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in decomposed if not unicodedata.combining(char))
        model = self.pieces.model
        pieces: list[str] = []
        for piece in model.encode_as_pieces(text):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                cut = model.encode_as_pieces(piece[:-1].replace(_META, ""))
                if piece[0] != _META and cut[0][0] == _META:
                    cut = cut[1:] if len(cut[0]) == 1 else [cut[0][1:], *cut[1:]]
                pieces += [*cut, piece[-1]]
            else:
                pieces.append(piece)
        return [model.piece_to_id(piece) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; widths of signs, unknown characters and tabs are not what they were."""
        return self.pieces.model.decode([int(i) for i in ids]).translate(_TEXTS)

    def text_of(self, token: int) -> str:
        """The text of one id."""
        return self.pieces.model.id_to_piece(token).replace(_META, "").translate(_TEXTS)

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode(text))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, and how words are found."""
        return hashlib.sha256(b"cpm1\n" + self.pieces.data).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The vocabulary as the file of a checkpoint."""
        return {self.FILE: self.pieces.data}


class T5Tokenizer:
    """Pieces of a text, and a hundred sentinels `<extra_id_0>`, `<extra_id_1>` ... that count down.

    The sentinels stand behind the pieces of the model; `vocab_size` is the number of rows that the
    published tables have for them, a multiple of ROWS.

    Args:
        pieces: The model.

    Raises:
        VocabError: It has no padding, end or unknown mark, or not as its first pieces.

    Source: google-research/text-to-text-transfer-transformer, its vocabulary and its sentinels.
    """

    FILE = "spiece.model"
    ROWS, NUM_SENTINELS = 128, 100

    def __init__(self, pieces: PieceModel):
        self.pieces = pieces
        self.pad_id, self.eos_id, self.unk_id = (
            pieces.id_of(piece) for piece in ("<pad>", "</s>", "<unk>")
        )
        if self.pad_id != 0:
            raise VocabError(f"<pad> has number {self.pad_id}; T5's vocabularies begin with it")
        self.first_sentinel = pieces.size + self.NUM_SENTINELS - 1
        """Id of `<extra_id_0>`; the others follow downwards."""
        self.vocab_size = t5_rows(pieces.size)
        rest = range(self.first_sentinel + 1, self.vocab_size)
        self.silent_ids = [self.pad_id, self.unk_id, *rest]

    @classmethod
    def from_file(cls, path: str | Path) -> T5Tokenizer:
        """Reads spiece.model, or the folder that holds it."""
        return cls(PieceModel.read(path, cls.FILE))

    def encode(self, text: str) -> list[int]:
        """Ids of a text without the end mark; sentinels in it are recognised."""
        ids: list[int] = []
        begin = 0
        for match in _SENTINEL.finditer(text):
            ids += self._inner(text[begin : match.start()], begin > 0)
            ids.append(self.first_sentinel - int(match.group(1)))
            begin = match.end()
        return ids + self._inner(text[begin:], begin > 0)

    def _inner(self, text: str, follows: bool) -> list[int]:
        """Ids of a text; one that follows a sentinel gets no word mark that it does not have."""
        if not follows or not text.strip() or text[0].isspace():
            return self.pieces.model.encode(text)
        return self.pieces.model.encode(_GUARD + text)[self._guard_len :]

    @cached_property
    def _guard_len(self) -> int:
        return len(self.pieces.model.encode(_GUARD))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; padding and end marks are nothing, sentinels are as `encode` reads them."""
        parts: list[str] = []
        waiting: list[int] = []
        for token in map(int, ids):
            if token < self.pieces.size:
                if token not in (self.pad_id, self.eos_id):
                    waiting.append(token)
            elif token <= self.first_sentinel:
                parts += [self._text(waiting, bool(parts)), self.text_of(token)]
                waiting = []
        return "".join([*parts, self._text(waiting, bool(parts))])

    def _text(self, ids: list[int], follows: bool) -> str:
        text = self.pieces.model.decode(ids) if ids else ""
        marked_word = bool(ids) and self.pieces.model.id_to_piece(ids[0]).startswith(_META)
        return " " + text if follows and marked_word and text else text

    def text_of(self, token: int) -> str:
        """The text of one id."""
        if token >= self.pieces.size:
            return f"<extra_id_{self.first_sentinel - token}>"
        return self.pieces.model.id_to_piece(token).replace(_META, " ")

    def size(self, text: str) -> int:
        """Tokens of a text, without the end mark."""
        return len(self.encode(text))

    def parts(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        """Parts of a text of at most `room` tokens, by halving it; and their sizes."""
        return halves(text, room, self.size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, and what stands behind its pieces."""
        return hashlib.sha256(b"t5\n" + self.pieces.data).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The vocabulary as the file of a checkpoint."""
        return {self.FILE: self.pieces.data}


def t5_rows(num_pieces: int) -> int:
    """Rows of T5's token table for a model of so many pieces."""
    return -(-(num_pieces + T5Tokenizer.NUM_SENTINELS) // T5Tokenizer.ROWS) * T5Tokenizer.ROWS


def num_t5_rows(path: Path) -> int:
    """Rows of the token table that goes with a vocabulary file."""
    return t5_rows(num_pieces(path))


def marked(text: str) -> str:
    """What CPM-1's model reads: jieba's words, apart by spaces, with marks for white space."""
    return " ".join(word.translate(_MARKS) for word in chinese_words().lcut(text))


def num_pieces(path: Path) -> int:
    """Entries of a vocabulary file."""
    return PieceModel.read(path, "").size
