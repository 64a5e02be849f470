"""Fills [MASK] in texts with a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm import checkpoint, families, runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import ConfigError, DataError
from mindplm.nn.loss import take_positions
from mindplm.nn.values import load_model
from mindplm.tokenizers.wordpiece import MASK

BUCKETS = (32, 64, 128, 256, 512)
"""Lengths that texts are padded to; one graph is compiled for each that occurs."""
_BATCH = 8


@dataclass(frozen=True)
class Filled:
    """A text with guesses for its masks.

    Attributes:
        text: The text with the best guess in each mask.
        guesses: For each mask the best pieces with their probabilities, best first.
    """

    text: str
    guesses: list[list[tuple[str, float]]]

    def __str__(self) -> str:
        lines = [self.text]
        for number, best in enumerate(self.guesses, start=1):
            shown = ", ".join(f"{piece} {probability:.3f}" for piece, probability in best)
            lines.append(f"  {MASK} {number}: {shown}")
        return "\n".join(lines)


class _Guess(nn.Cell):
    """Probabilities of all words at chosen positions, fp32 [B, P, V]."""

    def __init__(self, model: Any):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_bt, types_bt, positions_bt, spans_bt, places_bp):
        hidden = self.model(ids_bt, types_bt, positions_bt, spans_bt)
        logits = self.model.project(take_positions(hidden, places_bp))
        shape = (places_bp.shape[0], places_bp.shape[1], logits.shape[-1])
        return ops.softmax(logits, -1).reshape(shape)


class Filler:
    """A masked language model that was read from a checkpoint.

    Args:
        folder: A checkpoint folder, or a run folder, which stands for its newest checkpoint.
        settings: Device, threads and type; None: the defaults.

    Raises:
        UserError: The folder cannot be used, or holds no masked language model.
    """

    def __init__(self, folder: str | Path, settings: RuntimeConfig | None = None):
        settings = settings or RuntimeConfig()
        runtime.setup(settings)
        saved = checkpoint.read(folder)
        parts = families.family(saved.family)
        if parts.part("rows").name != "masked":
            raise ConfigError(f"{saved.folder} holds {saved.family}, which guesses no masks")
        self.tokenizer = parts.part("tokenizer").from_file(saved.folder / saved.tokenizer_files[0])
        self.config = saved.model()
        self.model = parts.part("cell")(self.config, runtime.compute_dtype(settings.dtype))
        load_model(self.model, saved.weights(), str(saved.folder))
        self._guess = _Guess(self.model)

    def __call__(self, texts: Sequence[str], top: int = 5) -> list[Filled]:
        """Fills the masks of texts.

        Args:
            texts: Each with at least one [MASK].
            top: Guesses to return for each mask.

        Raises:
            DataError: A text has no mask, or is too long.
        """
        prepared = [self._encode(text, number) for number, text in enumerate(texts, start=1)]
        most = max(len(places) for _, places in prepared)
        room = -(-most // 8) * 8
        order = sorted(range(len(texts)), key=lambda i: len(prepared[i][0]))
        results: dict[int, Filled] = {}
        for first in range(0, len(order), _BATCH):
            numbers = order[first : first + _BATCH]
            probabilities = self._run([prepared[i] for i in numbers], room)
            for place, number in enumerate(numbers):
                results[number] = self._filled(*prepared[number], probabilities[place], top)
        return [results[i] for i in range(len(texts))]

    def _encode(self, text: str, number: int) -> tuple[list[int], list[int]]:
        # The original's rules see no mask beside a sign; a user means them all.
        apart = text if self.tokenizer.pattern else text.replace(MASK, f" {MASK} ")
        ids, _ = self.tokenizer.encode(apart)
        places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_id]
        if not places:
            raise DataError(f"text {number} has no {MASK}: {text[:60]!r}")
        longest = min(self.config.max_len, BUCKETS[-1])
        if len(ids) > longest:
            raise DataError(f"text {number} has {len(ids)} tokens, at most {longest} are read")
        return ids, places

    def _run(self, batch: list[tuple[list[int], list[int]]], room: int) -> np.ndarray:
        need = max(len(ids) for ids, _ in batch)
        width = min(next(b for b in BUCKETS if b >= need), self.config.max_len)
        columns = np.zeros((3, _BATCH, width), np.int32)
        places = np.zeros((_BATCH, room), np.int32)
        columns[1] = np.arange(width)
        for i, (ids, masks) in enumerate(batch):
            columns[0, i, : len(ids)] = ids
            columns[2, i, : len(ids)] = 1
            places[i, : len(masks)] = masks
        ids, positions, spans = map(Tensor, columns)
        guessed = self._guess(ids, ops.zeros_like(ids), positions, spans, Tensor(places))
        return guessed.astype(ms.float32).asnumpy()

    def _filled(
        self, ids: list[int], places: list[int], probabilities: np.ndarray, top: int
    ) -> Filled:
        guesses = []
        whole = list(ids)
        for place, row in zip(places, probabilities):
            best = np.argsort(-row, kind="stable")[:top]
            guesses.append([(self.tokenizer.lines[i], float(row[i])) for i in best])
            whole[place] = int(best[0])
        text = self.tokenizer.decode(whole[1:-1], joined=True)
        return Filled(text, guesses)


def fill(
    folder: str | Path, texts: Sequence[str], top: int = 5, settings: RuntimeConfig | None = None
) -> list[Filled]:
    """Fills the masks of texts; see `Filler`, which keeps the model for further texts."""
    return Filler(folder, settings)(texts, top)
