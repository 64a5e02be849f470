"""The inputs of GPT-1's fine-tuning tasks: marked sequences of token ids, and their arrays.

classification        start text extract
entailment            start premise delimiter hypothesis extract
similarity            both orders of two texts, as entailment has them
multiple_choice       start context delimiter answer extract, one for each answer

Source: Radford et al. 2018, figure 1; openai/finetune-transformer-lm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mindplm.errors import DataError

TASKS = ("classification", "entailment", "similarity", "multiple_choice")
STS_CLASSES = 6
Ids = Sequence[int]


class Marks(NamedTuple):
    """Ids of the marks that a sequence holds."""

    start: int
    delimiter: int
    extract: int


def mark(parts: Sequence[Ids], marks: Marks) -> list[int]:
    """start part delimiter part ... extract."""
    ids = [marks.start]
    for number, part in enumerate(parts):
        ids += [marks.delimiter] if number else []
        ids += part
    return [*ids, marks.extract]


def sequences(task: str, parts: Sequence[Ids], marks: Marks) -> list[list[int]]:
    """The sequences of one example.

    Args:
        task: One of TASKS.
        parts: Token ids of its texts: one; premise and hypothesis; two texts; or a context and
            all answers.
        marks: Ids of the marks.
    """
    if task == "similarity":
        return [mark(parts, marks), mark(parts[::-1], marks)]
    if task == "multiple_choice":
        return [mark([parts[0], answer], marks) for answer in parts[1:]]
    return [mark(parts, marks)]


def part_room(seq_len: int, num_parts: int) -> int:
    """Most tokens of each part, so that all parts and marks fit."""
    return seq_len // num_parts - 2 if num_parts > 1 else seq_len - 2


def arrays(
    examples: Sequence[Sequence[Ids]], marks: Marks, seq_len: int, num_rows: int = 0
) -> dict[str, np.ndarray]:
    """Columns of examples with equally many sequences each.

    Args:
        examples: The sequences of each example.
        marks: Ids of the marks.
        seq_len: Length of the rows; padded with 0.
        num_rows: Examples of the batch, the rest empty; 0: as many as there are.

    Returns:
        ids [B, A, T], length [B, A], extract [B, A] (place of the first extract mark), int32.

    Raises:
        DataError: A sequence is longer than a row.
    """
    shape = (max(num_rows, len(examples)), max(map(len, examples)))
    ids = np.zeros((*shape, seq_len), np.int32)
    length, extract = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, example in enumerate(examples):
        for k, sequence in enumerate(example):
            if len(sequence) > seq_len:
                raise DataError(f"an example has {len(sequence)} tokens, rows have {seq_len}")
            ids[i, k, : len(sequence)] = sequence
            length[i, k] = len(sequence)
            extract[i, k] = list(sequence).index(marks.extract)
    return {"ids": ids, "length": length, "extract": extract}


def soft_scores(scores: Sequence[float], num_classes: int = STS_CLASSES) -> np.ndarray:
    """A score between two whole numbers as shares of the two classes, fp32 [N, classes]."""
    low = np.floor(np.asarray(scores, np.float64)).astype(np.int64)
    part = np.asarray(scores, np.float64) - low
    shares = np.zeros((len(low), num_classes), np.float32)
    rows = np.arange(len(low))
    shares[rows, low] = 1 - part
    above = part > 0
    shares[rows[above], low[above] + 1] = part[above]
    return shares
