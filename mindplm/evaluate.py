"""Evaluation by loss: nats per predicted token and per character of the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindplm import families, runtime
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.data.loader import eval_batches
from mindplm.errors import ConfigError, DataError
from mindplm.merged import open_model
from mindplm.nn.values import load_model


@dataclass(frozen=True)
class Score:
    """Loss sums over a data folder.

    Attributes:
        nats: Sum of the losses of all predicted tokens, end marks included.
        num_targets: Predicted tokens, end marks included.
        num_chars: Characters of the predicted texts, line feeds included; 0: not counted.
        num_rows: Rows read.
    """

    nats: float
    num_targets: int
    num_chars: int
    num_rows: int

    @property
    def per_target(self) -> float:
        """Nats per predicted token."""
        return self.nats / max(self.num_targets, 1)

    @property
    def per_char(self) -> float:
        """Nats per character; it does not depend on how the vocabulary cuts the text.

        NaN where characters are not counted, as with masked words.
        """
        return self.nats / self.num_chars if self.num_chars else math.nan

    def __str__(self) -> str:
        perplexity = math.exp(min(self.per_target, 700.0))
        of_token = f"{self.per_target:.4f} per token (perplexity {perplexity:.1f})"
        counts = f"{self.num_targets} tokens, {self.num_rows} rows"
        if not self.num_chars:
            return f"{of_token} over {counts}"
        return (
            f"{self.per_char:.4f} nats per character, {of_token} over {self.num_chars} characters, "
            f"{counts}"
        )

    def logged(self) -> dict[str, float]:
        """The figures of a log line."""
        values = {"valid/loss": self.per_target, "valid/per_char": self.per_char}
        return values if self.num_chars else {"valid/loss": self.per_target}

    def to_dict(self) -> dict[str, float]:
        """All figures, for JSON."""
        return {**asdict(self), "per_target": self.per_target, "per_char": self.per_char}


class Evaluator:
    """The compiled forward pass over batches of one shape.

    Args:
        loss: Cell from columns to (loss sum, number of targets).
    """

    def __init__(self, loss: nn.Cell):
        @ms.jit
        def forward(*columns):
            return loss(*columns)

        self._forward = forward

    def __call__(
        self,
        batches: Iterable[tuple[Mapping[str, np.ndarray], Any]],
        *,
        total: int,
        progress: bool = True,
        gather: Callable[..., np.ndarray] | None = None,
    ) -> Score:
        """Sums the losses of all batches.

        Args:
            batches: (columns, info) pairs; of info, "chars" and "rows" are summed.
            total: Number of batches, for the progress bar.
            progress: Show a bar on a terminal.
            gather: Where each process has a part of every batch: gives the numbers of all of them,
                [processes, numbers].

        Raises:
            DataError: Nothing in the batches is predicted.
        """
        nats, targets, chars, rows = 0.0, 0, 0, 0
        bar = tqdm(batches, total=total, desc="evaluate", disable=None if progress else True)
        for columns, info in bar:
            loss, count = self._forward(*(Tensor(array) for array in columns.values()))
            nats += float(loss.asnumpy())
            targets += round(float(count.asnumpy()))
            chars += info["chars"]
            rows += len(info["rows"])
        if gather is not None:
            nats, targets = gather(nats, targets).sum(0).tolist()
            targets = round(targets)
        if not targets:
            raise DataError("the evaluation rows predict nothing")
        return Score(nats, targets, chars, rows)


def run(folder: str | Path, config: RunConfig | None = None) -> Score:
    """Measures a checkpoint on the validation rows of a run.

    Args:
        folder: A checkpoint, or a run folder, which stands for its newest checkpoint.
        config: Whose data.valid and runtime are used; None: those of the run that wrote it.

    Raises:
        UserError: The checkpoint or the rows cannot be used.
    """
    opened = open_model(folder)
    saved = opened.base
    if config is None and opened.run is not None:
        config = families.config_from_dict(opened.run, f"{folder}/run.yaml")
    if config is None:
        raise ConfigError(f"{saved.folder} has no run.yaml; give the settings of a run")
    runtime.setup(config.runtime)
    parts, tokenizer = families.parts_of(saved.family, config.head), opened.tokenizer()
    model = parts.part("cell")(saved.model(), runtime.compute_dtype(config.runtime.dtype))
    load_model(model, opened.weights(), str(saved.folder))
    rows = prepare.rows(config, tokenizer, "valid", parts.part("rows"))
    size = config.micro_batch_size
    batches = eval_batches(rows, batch_size=size)
    return Evaluator(parts.part("loss")(model))(batches, total=-(-len(rows) // size))
