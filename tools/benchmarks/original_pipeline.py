"""The original's way from texts to batches, written plainly from its description: a baseline.

Lines become a binary data set, which is shuffled in two passes and read again; its objects become
records, arrays, rows, batches. One process, Python loops: the tokenizer tries the longest entries
first at each character, the relation of each two segments is found by walking up the tree, rows
grow by concatenation, targets are found token by token. Its results equal those of the library (a
test compares them); it is here to measure against, nothing else uses it.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.data import long_text
from mindplm.data.binary import DatasetWriter
from mindplm.data.binary_reader import DatasetReader, shuffle_dataset

LONGEST = 32
IGNORE = -100
FIELDS = ("inputs", "inputs_sub", "context", "sample_ids", "num_segments", "segment_ids",
          "segment_rel_offset", "spans")  # fmt: skip
Sample = dict[str, Any]


class Tokenizer:
    """Greedy longest match, character by character.

    Args:
        lines: Lines of a vocabulary file.
    """

    def __init__(self, lines: Iterable[str]):
        names = {"</n>": "\n", "</_>": " "}
        self.vocab = {names.get(line, line): i for i, line in enumerate(filter(None, lines))}
        self.special = {t for t in self.vocab if t.startswith("<") and t.endswith(">")}
        self.bos, self.eos = self.vocab["<s>"], self.vocab["</s>"]

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Texts and tags in turn."""
        parts: list[tuple[str, bool]] = []
        current, inside, pending = "", False, False
        for character in text:
            if inside:
                current += character
                if character == "<":
                    raise ValueError("a tag inside a tag")
                if character == ">":
                    parts.append((current, True))
                    current, inside = "", False
            elif pending:
                pending = False
                if character == "<":
                    current += "<"
                else:
                    parts.append((current, False))
                    current, inside = "<" + character, True
            elif character == "<":
                pending = True
            else:
                current += character
        if inside or pending:
            raise ValueError("a tag that does not end")
        return [*parts, (current, False)]

    def tokenize(self, text: str) -> list[tuple[str, bool]]:
        """Pieces, and whether the vocabulary has them."""
        tokens: list[tuple[str, bool]] = []
        for part, is_tag in self.split(text):
            if is_tag:
                tokens.append((part, part in self.vocab))
                continue
            at, unknown = 0, ""
            while at < len(part):
                for length in range(min(LONGEST, len(part) - at), 0, -1):
                    piece = part[at : at + length]
                    if piece in self.vocab and piece not in self.special:
                        if unknown:
                            tokens.append((unknown, False))
                            unknown = ""
                        tokens.append((piece, True))
                        at += length
                        break
                else:
                    unknown += part[at]
                    at += 1
            if unknown:
                tokens.append((unknown, False))
        return tokens


def to_arrays(record: Any, tokenizer: Tokenizer, max_depth: int = 8) -> Sample:
    """A record as lists, one entry a token, and the relations of its segments."""
    segments: list[dict[str, Any]] = [
        {"text": "<root>", "depth": 0, "parent": None, "predicted": False}
    ]

    def walk(value: Any, parent: int, predicted: bool) -> None:
        depth = segments[parent]["depth"] + 1
        if isinstance(value, str):
            segments.append({"text": value, "depth": depth, "parent": parent,
                             "predicted": predicted})  # fmt: skip
            return
        for key, child in value.items():
            segments.append({"text": key, "depth": depth, "parent": parent, "predicted": False})
            walk(child, len(segments) - 1, predicted or (depth == 1 and key == "<ans>"))

    walk(record, 0, False)
    ids: list[int] = []
    subs: list[int] = []
    context: list[int] = []
    segs: list[int] = []
    seen: dict[str, dict[str, int]] = {}
    for number, segment in enumerate(segments):
        body = [(tokenizer.bos, 0)]
        for piece, known in tokenizer.tokenize(segment["text"]):
            if known:
                body.append((tokenizer.vocab[piece], 0))
                continue
            base = "<unk>"
            if piece.startswith("<") and piece.endswith(">"):
                base = "<" + piece[1:-1].split("_")[0] + ">"
            places = seen.setdefault(base, {})
            body.append((tokenizer.vocab[base], places.setdefault(piece, len(places))))
        if not segment["predicted"]:
            body.append((tokenizer.eos, 0))
        for token, sub in body:
            ids.append(token)
            subs.append(sub)
            context.append(0 if segment["predicted"] else 1)
            segs.append(number)
    relations = [
        _relation(segments, a, b, max_depth)
        for a in range(len(segments))
        for b in range(len(segments))
    ]
    return {"ids": ids, "subs": subs, "context": context, "segs": segs, "rel": relations,
            "num_segments": len(segments)}  # fmt: skip


def _relation(segments: list[dict[str, Any]], a: int, b: int, max_depth: int) -> int:
    if a == b:
        return 0
    up = down = 0
    while a != b:
        if segments[a]["depth"] >= segments[b]["depth"]:
            a, up = segments[a]["parent"], up + 1
        else:
            b, down = segments[b]["parent"], down + 1
    return min(up, max_depth - 1) * max_depth + min(down, max_depth - 1) + 1


class Packer:
    """Best fit into open rows; rows grow by concatenation."""

    def __init__(self, batch_size: int, max_length: int, tokenizer: Tokenizer):
        self.batch_size, self.max_length, self.tokenizer = batch_size, max_length, tokenizer
        self.rows: list[dict[str, np.ndarray]] = []

    def add(self, sample: Sample) -> dict[str, np.ndarray] | None:
        """Takes a sample; returns a batch when there are more rows than it holds."""
        length = len(sample["ids"])
        best = None
        for row in self.rows:
            room = self.max_length - len(row["inputs"])
            if room >= length and (best is None or room < self.max_length - len(best["inputs"])):
                best = row
        new: dict[str, np.ndarray] = {
            "inputs": np.array(sample["ids"], np.int32),
            "inputs_sub": np.array(sample["subs"], np.int32),
            "context": np.array(sample["context"], np.int8),
            "sample_ids": np.zeros(length, np.int32),
            "num_segments": np.full(length, sample["num_segments"], np.int32),
            "segment_ids": np.array(sample["segs"], np.int32),
            "segment_rel_offset": np.zeros(length, np.int32),
            "spans": np.zeros(length, np.int32),
            "segment_rel": np.array(sample["rel"], np.int32),
        }
        if best is None:
            self.rows.append(new)
        else:
            new["segment_rel_offset"] += len(best["segment_rel"])
            new["spans"] += best["spans"][-1] + 1
            for name, values in new.items():
                best[name] = np.concatenate([best[name], values])
        if len(self.rows) <= self.batch_size:
            return None
        batch, self.rows = self.rows[: self.batch_size], self.rows[self.batch_size :]
        return self.batch(batch)

    def batch(self, rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Padded arrays with the extension table and targets."""
        shape = (len(rows), self.max_length)
        arrays = {name: np.zeros(shape, np.int32) for name in FIELDS}
        arrays["target"] = np.full(shape, IGNORE, np.int32)
        arrays["length"] = np.array([len(row["inputs"]) for row in rows], np.int32)
        longest = max(len(row["segment_rel"]) for row in rows)
        arrays["segment_rel"] = np.zeros((len(rows), longest), np.int32)
        table: dict[tuple[int, int], int] = {}
        for row in rows:
            for token, sub in zip(row["inputs"], row["inputs_sub"]):
                if sub > 0 and (token, sub) not in table:
                    table[token, sub] = len(table)
        if not table:
            table[0, 1] = 0
        for i, row in enumerate(rows):
            length = len(row["inputs"])
            for name in FIELDS:
                arrays[name][i, :length] = row[name]
            arrays["segment_rel"][i, : len(row["segment_rel"])] = row["segment_rel"]
            for j in range(2, length):
                if row["context"][j - 1] == 0:
                    token, sub = row["inputs"][j], row["inputs_sub"][j]
                    if token == self.tokenizer.bos:
                        token = self.tokenizer.eos
                    elif sub > 0:
                        token = len(self.tokenizer.vocab) + table[token, sub]
                    arrays["target"][i, j - 1] = token
            if row["context"][length - 1] == 0:
                arrays["target"][i, length - 1] = self.tokenizer.eos
        pairs = np.array(list(table), np.int32)
        arrays["ext_ids"], arrays["ext_sub"] = pairs[:, 0], pairs[:, 1]
        return arrays


def left_to_right(text: str, rng: random.Random) -> dict[str, str]:
    """A text as a record: the left part is given, the right one the answer."""
    cut = max(1, int(rng.random() * len(text)))
    left, right = text[:cut].replace("<", "<<"), text[cut:].replace("<", "<<")
    return {"input": left, "<ans>": right}


def stored(lines: Iterable[str], folder: Path) -> Iterator[Any]:
    """The objects of JSON lines from a shuffled binary data set that is made of them first."""
    with DatasetWriter(folder / "plain", "data") as writer:
        for line in lines:
            writer.write(json.loads(line))
    shuffle_dataset(folder / "plain", folder / "mixed", "data")
    for record in DatasetReader(folder / "mixed", passes=1, raw=True):
        yield pickle.loads(record)  # written above by this program


def batches(
    objects: Iterable[Any], tokenizer: Tokenizer, *, batch_size: int, max_length: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of objects with texts; what is longer than a row is left out."""
    rng = random.Random(seed)
    packer = Packer(batch_size, max_length, tokenizer)
    for value in objects:
        text = long_text.clean(value["text"])
        for part in long_text.split(text, 1, max_length):
            sample = to_arrays(left_to_right(part, rng), tokenizer)
            if len(sample["ids"]) > max_length:
                continue
            batch = packer.add(sample)
            if batch is not None:
                yield batch
    if packer.rows:
        yield packer.batch(packer.rows)
