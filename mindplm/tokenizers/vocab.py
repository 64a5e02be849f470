"""Building a CPM-Bee vocabulary from a corpus: characters, Chinese words, English pieces.

The steps are deterministic: the same texts in the same order give the same file.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ahocorasick_rs
from tqdm import tqdm

from mindplm.errors import ConfigError, DataError, VocabError
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer
from mindplm.tokenizers.words import chinese_words

HEAD = (*SPECIALS, "<eod>")
ASCII = tuple(chr(code) for code in range(33, 127))
MIN_SIZE = len(HEAD) + len(ASCII)
RECORD_KEYS = (
    "input",
    "prompt",
    "question",
    "options",
    "document",
    "title",
    "text",
    "target",
    "author",
    "form",
    "book",
)
"""Usual keys of records; the model reads keys, so each is one piece whatever the corpus holds."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]{2,}")
_ENGLISH = re.compile(r" ?[A-Za-z]+")
_MAX_PIECE = 16
_SUFFIXES = (".txt", ".jsonl", ".tsv")


@dataclass
class Counts:
    """What a corpus holds: characters, Chinese words, English words with their leading space."""

    chars: Counter[str] = field(default_factory=Counter)
    chinese: Counter[str] = field(default_factory=Counter)
    english: Counter[str] = field(default_factory=Counter)
    texts: int = 0

    def add(self, text: str) -> None:
        """Counts one more text."""
        self.texts += 1
        self.chars.update(text)
        self.english.update(_ENGLISH.findall(text))
        for run in _HAN.findall(text):
            self.chinese.update(word for word in chinese_words().cut(run) if len(word) > 1)


def count_corpus(texts: Iterable[str], *, progress: bool = False) -> Counts:
    """Counts characters and words in one pass.

    Raises:
        DataError: There is no text, or nothing but white space.
    """
    counts = Counts()
    for text in tqdm(texts, desc="counting", unit=" texts", disable=not progress):
        counts.add(text)
    if not any(char.strip() for char in counts.chars):
        raise DataError(f"the corpus holds no text ({counts.texts} texts read)")
    return counts


def choose_entries(
    counts: Counts,
    size: int,
    *,
    min_char_count: int = 2,
    min_word_count: int = 4,
    chinese_share: float = 0.5,
    always: Sequence[str] = RECORD_KEYS,
) -> tuple[list[str], dict[str, Any]]:
    """Chooses the entries of a vocabulary.

    Special entries and ASCII come first, then the characters by frequency, then words: Chinese
    words get `chinese_share` of what is left and English pieces the rest; a side that has too
    few leaves its places to the other.

    Args:
        counts: What the corpus holds.
        size: The most entries to choose; fewer if the corpus has no more.
        min_char_count: Rarer characters are left out (they become unknown runs).
        min_word_count: Rarer words and pieces are left out.
        chinese_share: From 0 to 1.
        always: Entries to take in any case.

    Returns:
        The lines in file order and a report of counts.

    Raises:
        ConfigError: The size cannot hold what is always taken, or the share is not a share.
    """
    always = [entry for entry in dict.fromkeys(always) if len(entry) > 1]
    least = MIN_SIZE + len(always)
    if size < least:
        raise ConfigError(
            f"size={size} is too small: special entries, ASCII and the entries always taken need "
            f"{least}"
        )
    if not 0 <= chinese_share <= 1:
        raise ConfigError(f"chinese_share={chinese_share}, expected a number from 0 to 1")
    wanted = [
        char
        for char, count in _ranked(counts.chars)
        if count >= min_char_count and char.isprintable() and not char.isascii()
    ]
    chars = wanted[: size - least]
    left = size - least - len(chars)
    taken = set(always)
    chinese = {w: n for w, n in counts.chinese.items() if n >= min_word_count and w not in taken}
    words = [word for word, _ in _ranked({w: n * (len(w) - 1) for w, n in chinese.items()})]
    num_words = min(len(words), round(left * chinese_share))
    pieces = _english_pieces(counts.english, left - num_words, min_word_count, taken)
    words = words[: left - len(pieces)]
    lines = [*HEAD, *ASCII, *chars, *always, *words, *pieces]
    report = {
        "texts": counts.texts,
        "characters_read": sum(counts.chars.values()),
        "size": len(lines),
        "special": len(HEAD),
        "characters": len(ASCII) + len(chars),
        "characters_left_out": len(wanted) - len(chars),
        "words": len(words),
        "pieces": len(always) + len(pieces),
        "coverage": round(_coverage(counts.chars, {" ", "\n", *ASCII, *chars}), 6),
    }
    return lines, report


def build_vocab(
    texts: Iterable[str], size: int, *, progress: bool = False, **options: Any
) -> list[str]:
    """Builds the lines of a vocabulary file; for the options see `choose_entries`."""
    return choose_entries(count_corpus(texts, progress=progress), size, **options)[0]


def write_vocab(lines: Iterable[str], path: str | Path) -> None:
    """Writes a vocabulary file; an interrupted write leaves an older file as it was.

    Raises:
        VocabError: The file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise VocabError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def run(
    inputs: Sequence[str],
    size: int,
    output: str,
    *,
    fields: Sequence[str] = (),
    min_char_count: int = 2,
    min_word_count: int = 4,
    chinese_share: float = 0.5,
    always: Sequence[str] = RECORD_KEYS,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads corpus files, builds a vocabulary, writes it, and reports what it holds.

    Args:
        inputs: Files as `read_texts` takes them.
        size: The most entries.
        output: The vocabulary file to write.
        fields: Of records, only these keys; none means every text of a record.
        progress: Whether to show a progress bar.

    Returns:
        The report of `choose_entries` with "output" and the vocabulary's "fingerprint".
    """
    texts = (text for path in inputs for text in read_texts(path, fields))
    lines, report = choose_entries(
        count_corpus(texts, progress=progress),
        size,
        min_char_count=min_char_count,
        min_word_count=min_word_count,
        chinese_share=chinese_share,
        always=always,
    )
    fingerprint = CpmBeeTokenizer(lines).fingerprint
    write_vocab(lines, output)
    return {"output": str(output), **report, "fingerprint": fingerprint}


def read_texts(path: str | Path, fields: Sequence[str] = ()) -> Iterator[str]:
    """Yields the texts of a corpus file, one or more a line.

    Args:
        path: `.txt` (a line is a text), `.jsonl` (a line is a record or a text) or `.tsv` (a cell
            is a text), UTF-8, each also with `.gz` behind it.
        fields: Keys of records to read; none means all.

    Raises:
        DataError: The file cannot be read, or a line of it; the line is named.
    """
    path = Path(path)
    kind = Path(path.name[:-3] if path.suffix == ".gz" else path.name).suffix
    if kind not in _SUFFIXES:
        raise DataError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)}, maybe with .gz")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for raw in file:
                number += 1
                line = raw.decode("utf-8").rstrip("\r\n")
                if not line:
                    continue
                if kind == ".jsonl":
                    yield from _strings(json.loads(line), fields)
                else:
                    yield from line.split("\t") if kind == ".tsv" else [line]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _strings(value: Any, fields: Sequence[str]) -> Iterator[str]:
    """The strings inside a record; below a named field all of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not fields or key in fields:
                yield from _strings(inner, ())
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, fields)


def _ranked(scores: Mapping[str, int]) -> list[tuple[str, int]]:
    """Highest score first; ties in the order of code points."""
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _coverage(counts: Counter[str], known: set[str]) -> float:
    total = sum(counts.values())
    return sum(n for char, n in counts.items() if char in known) / total


def _english_pieces(words: Counter[str], number: int, min_count: int, taken: set[str]) -> list[str]:
    """Chooses pieces of words that make the greedy cut short.

    Starts with every frequent substring, cuts the words with them as the tokenizer does, keeps
    the pieces that saved most, and repeats with fewer until the number is reached.
    """
    scores: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + _MAX_PIECE) + 1):
                scores[word[start:end]] += count
    pieces = [p for p, n in scores.items() if n >= min_count and p not in taken]
    ranked = sorted(pieces, key=lambda p: (-scores[p] * (len(p) - 1), p))[: 16 * number]
    while len(ranked) > number:
        saved = _saved(words, [*ranked, *taken])
        # Dropping few at a time lets the words that lose a piece choose among the others.
        keep = max(number, len(ranked) * 3 // 4)
        ranked = sorted(ranked, key=lambda p: (-saved[p], -scores[p], p))[:keep]
    return ranked


def _saved(words: Counter[str], pieces: list[str]) -> Counter[str]:
    """How many tokens each piece saves when all words are cut greedily."""
    automaton = ahocorasick_rs.AhoCorasick(
        pieces, matchkind=ahocorasick_rs.MatchKind.LeftmostLongest
    )
    saved: Counter[str] = Counter()
    for word, count in words.items():
        for pattern, start, end in automaton.find_matches_as_indexes(word):
            saved[pieces[pattern]] += count * (end - start - 1)
    return saved
