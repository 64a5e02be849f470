"""Token ids in the .bin and .idx files of Megatron and CPT: reading, writing, sample maps.

NAME.bin holds the ids of all sentences, one after the other. NAME.idx says where each begins, how
long it is, and with which sentence each document begins.

Source: fastnlp/CPT, pre-training folder, which has it from NVIDIA/Megatron-LM.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mindplm import files
from mindplm.errors import DataError

KIND = "indexed"
SUFFIX = ".idx"
SENTENCES = "sentences"
"""Key of a document's sentences, which are lists of ids."""
_MAGIC, _OLD_MAGIC = b"MMIDIDX\0\0", b"TNTIDX\0\0"
_HEAD = struct.Struct("<QBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2"}
_SHORT_VOCAB = 65500
_LONGEST_SENTENCE = 512


def best_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that the original stores ids of a vocabulary in."""
    return np.dtype("<u2" if 0 < vocab_size < _SHORT_VOCAB else "<i4")


class IndexedDataset:
    """The sentences and documents of a data set; the ids stay on disk until they are asked for.

    Attributes:
        sizes: Ids of each sentence, int32.
        document_starts: Number of the first sentence of each document, and of all sentences.

    Args:
        path: NAME.idx, NAME.bin, or NAME.

    Raises:
        DataError: A file is missing, damaged, or of the older container.
    """

    def __init__(self, path: str | Path):
        index, self._ids_path = files_of(path)
        data = _read(index)
        if not data.startswith(_MAGIC):
            old = ", not of the older container TNTIDX" if data.startswith(_OLD_MAGIC) else ""
            raise DataError(f"{index}: expected an index that begins with MMIDIDX{old}")
        try:
            self._take(data[len(_MAGIC) :])
        except (ValueError, KeyError, struct.error) as error:
            raise DataError(f"{index}: damaged index: {error}") from None
        size = self._ids_path.stat().st_size if self._ids_path.is_file() else -1
        item = self.dtype.itemsize
        end = int((self._pointers + self.sizes.astype(np.int64) * item).max(initial=0))
        if size < end:
            found = "no such file" if size < 0 else f"{size} bytes, expected {end}"
            raise DataError(f"{self._ids_path}: {found}")

    def _take(self, data: bytes) -> None:
        version, code, count, starts = _HEAD.unpack_from(data)
        if version != 1:
            raise ValueError(f"version {version}, expected 1")
        self.dtype = np.dtype(_DTYPES[code])
        if self.dtype.kind == "f":
            raise ValueError("it holds no ids but numbers with fractions")
        place = _HEAD.size
        self.sizes = np.frombuffer(data, "<i4", count, place)
        self._pointers = np.frombuffer(data, "<i8", count, place + 4 * count)
        self.document_starts = np.frombuffer(data, "<i8", starts, place + 12 * count)
        edges = self.document_starts
        if not len(edges) or edges[0] != 0 or edges[-1] != count or (np.diff(edges) < 0).any():
            raise ValueError("documents do not begin with 0, rise, and end with the last sentence")

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.sizes)

    @property
    def num_documents(self) -> int:
        """Number of documents, empty ones among them."""
        return len(self.document_starts) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """The ids of a sentence."""
        return self.sentences(number, number + 1)[0]

    def sentences(self, first: int, last: int) -> list[np.ndarray]:
        """The ids of the sentences from one on to below another."""
        found = []
        with open(self._ids_path, "rb") as content:
            for size, pointer in zip(self.sizes[first:last], self._pointers[first:last]):
                content.seek(pointer)
                data = content.read(int(size) * self.dtype.itemsize)
                found.append(np.frombuffer(data, self.dtype).astype(np.int64))
        return found

    def document(self, number: int) -> list[np.ndarray]:
        """The sentences of a document."""
        return self.sentences(*self.document_starts[number : number + 2].tolist())


def is_indexed(path: str) -> bool:
    """Whether a source's path names indexes."""
    return path.endswith(SUFFIX)


def files_of(path: str | Path) -> tuple[Path, Path]:
    """NAME.idx and NAME.bin of either, or of NAME."""
    text = str(path)
    name = text[:-4] if text.endswith((SUFFIX, ".bin")) else text
    return Path(name + SUFFIX), Path(name + ".bin")


def write_indexed(
    path: str | Path, documents: Iterable[Sequence[Sequence[int]]], *, vocab_size: int
) -> None:
    """Writes NAME.idx and NAME.bin.

    Args:
        path: As of `IndexedDataset`.
        documents: For each document its sentences, which are ids; documents must not be empty.
        vocab_size: Decides the type of the ids.
    """
    index, ids_path = files_of(path)
    dtype = best_dtype(vocab_size)
    code = next(code for code, name in _DTYPES.items() if np.dtype(name) == dtype)
    sizes: list[int] = []
    starts = [0]
    with open(ids_path, "wb") as content:
        for document in documents:
            for sentence in document:
                content.write(np.asarray(sentence).astype(dtype).tobytes())
                sizes.append(len(sentence))
            starts.append(len(sizes))
    lengths = np.array(sizes, "<i4")
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    pointers = np.concatenate([np.zeros(1, np.int64), ends])[: len(sizes)].astype("<i8")
    head = _MAGIC + _HEAD.pack(1, code, len(sizes), len(starts))
    parts = (lengths, pointers, np.array(starts, "<i8"))
    files.replace_file(index, head + b"".join(part.tobytes() for part in parts))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


# --- the order of samples -------------------------------------------------------------------------


def sample_map(
    document_starts: Sequence[int],
    sizes: Sequence[int],
    *,
    num_epochs: int,
    max_num_samples: int,
    max_len: int,
    short_prob: float,
    seed: int,
    min_sentences: int = 1,
) -> np.ndarray:
    """The original's samples in its order: int64 rows (first sentence, last + 1, length).

    Documents with too few sentences are left out, and so are those of several of which one is
    longer than 512 ids. Passes over the documents are only ended as a whole.

    Args:
        document_starts: Of an `IndexedDataset`.
        sizes: Ids of each sentence.
        num_epochs: Most passes over the documents.
        max_num_samples: No pass is begun with so many samples.
        max_len: Wanted ids of a sample; the original passes the length of a row less 2.
        short_prob: Share of samples that are wanted shorter, of random length from 2 on.
        seed: Of lengths; that of the order is one more.
        min_sentences: Least sentences of a sample.
    """
    every = round(1 / short_prob) if short_prob > 0 else 0
    lengths = _lengths(max_len, every, seed)
    edges, sizes = list(document_starts), list(sizes)
    used = [pair for pair in zip(edges, edges[1:]) if _is_used(sizes[slice(*pair)], min_sentences)]
    found: list[tuple[int, int, int]] = []
    for _ in range(num_epochs if used else 0):
        if len(found) >= max_num_samples:
            break
        for first, last in used:
            found += _samples(first, last, sizes, lengths, min_sentences)
    rows = np.array(found, np.int64).reshape(-1, 3)
    order = np.arange(len(rows))
    draws = _mersenne_64(seed + 1)
    for i in range(len(rows) - 1, 0, -1):
        other = next(draws) % (i + 1)
        order[[i, other]] = order[[other, i]]
    return rows[order]


def _is_used(sizes: Sequence[int], min_sentences: int) -> bool:
    long = len(sizes) > 1 and max(sizes) > _LONGEST_SENTENCE
    return len(sizes) >= min_sentences and len(sizes) > 0 and not long


def _samples(
    first: int, last: int, sizes: Sequence[int], lengths: Iterator[int], min_sentences: int
) -> Iterator[tuple[int, int, int]]:
    """The samples of a document; a last sentence alone is joined to those before it."""
    begin, total, count, wanted = first, 0, 0, next(lengths)
    for number in range(first, last):
        total += sizes[number]
        count += 1
        left = last - number - 1
        if left == 0 or (total >= wanted and left > 1 and count >= min_sentences):
            yield begin, number + 1, wanted
            begin, total, count, wanted = number + 1, 0, 0, next(lengths)


def _lengths(most: int, every: int, seed: int) -> Iterator[int]:
    """Wanted lengths; nothing is drawn if none is short."""
    rng = np.random.RandomState(seed)  # noqa: NPY002  the original's generator
    while True:
        if not every:
            yield most
            continue
        drawn = int(rng.randint(0, 1 << 32, dtype=np.uint32))
        yield most if drawn % every else 2 + drawn % (most - 1)


def _mersenne_64(seed: int) -> Iterator[int]:
    """The numbers of the 64-bit Mersenne Twister.

    Source: Nishimura 2000, "Tables of 64-bit Mersenne twisters", parameters of MT19937-64.
    """
    size, middle, whole = 312, 156, (1 << 64) - 1
    state = [seed & whole]
    for i in range(1, size):
        before = state[-1]
        state.append((6364136223846793005 * (before ^ (before >> 62)) + i) & whole)
    upper, lower = whole ^ 0x7FFFFFFF, 0x7FFFFFFF
    while True:
        for i in range(size):
            joined = (state[i] & upper) | (state[(i + 1) % size] & lower)
            mixed = (joined >> 1) ^ (0xB5026F5AA96619E9 if joined & 1 else 0)
            state[i] = state[(i + middle) % size] ^ mixed
        for number in state:
            number ^= (number >> 29) & 0x5555555555555555
            number ^= (number << 17) & 0x71D67FFFEDA60000
            number ^= (number << 37) & 0xFFF7EEE000000000
            yield number ^ (number >> 43)
