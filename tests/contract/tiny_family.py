"""What the contract needs of a family, and a model with its training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindplm.config import OptimConfig, RuntimeConfig
from mindplm.data.kinds import Draws
from mindplm.data.packing import PLACEHOLDER, RowShape
from mindplm.families import family
from mindplm.family import Family
from mindplm.generate.model import Model
from mindplm.nn.dropout import Moment, turn_on
from mindplm.nn.init import initialise
from mindplm.runtime import setup
from mindplm.train.optim import Adam
from mindplm.train.step import Numbers, Report, TrainStep

Columns = dict[str, np.ndarray]


SMALL: Mapping[str, int] = {"hidden_size": 32, "num_heads": 2, "ffn_size": 48, "num_layers": 2}
"""Sizes of tiny models that have no reason for others."""


def collated(
    rows: Sequence[Any], shape: RowShape, collate: Callable[..., Columns], marks: Any
) -> Callable[..., Columns]:
    """What makes a batch of rows, as `Tiny.columns`, drawn as the first of an epoch is."""
    ext = tuple(np.array([number], np.int32) for number in PLACEHOLDER)
    draws = Draws((ext[0], ext[1]), 5, [(0, i) for i in range(len(rows))])

    def columns(empty_rows: int = 0, **sizes: int) -> Columns:
        wider = shape._replace(**{n: getattr(shape, n) + more for n, more in sizes.items()})
        count = len(rows) + empty_rows
        return collate(rows, num_rows=count, shape=wider, marks=marks, draws=draws)

    return columns


@dataclass(frozen=True)
class Tiny:
    """What the contract needs of a family.

    Attributes:
        name: Key of the family table.
        config: Sizes of the model.
        classes: Classes that a uniform guess chooses from in the batch of `columns`.
        flavours: Names that its weight rules take; ("",) if they take none.
        columns: Batch of 8 rows; keyword arguments of `bigger` make it larger.
        bigger: Names and sizes of paddings, each applied alone and all of them at once.
        files: The tokenizer's files.
        cached_and_full: For families that write: model -> (logits of cached generation, those of
            whole rows), both [tokens, classes], for the same written tokens.
        prompts: For families that write: (model, prompts, most new tokens, buckets) -> writes.
        fast: Learning rate to learn a few rows by heart with.
    """

    name: str
    config: Any
    classes: int
    flavours: tuple[str, ...]
    columns: Callable[..., Columns]
    bigger: Mapping[str, int]
    files: Mapping[str, bytes]
    cached_and_full: Callable[[Any], tuple[np.ndarray, np.ndarray]] | None = None
    prompts: Callable[[Model, list[str], int, tuple[int, ...]], Any] | None = None
    fast: float = 2e-2

    @property
    def parts(self) -> Family:
        return family(self.name)

    @property
    def shared(self) -> set[str]:
        return set(self.parts.part("shared_columns"))

    def model(self, seed: int = 1) -> Any:
        setup(RuntimeConfig(device="cpu"))
        made = self.parts.part("cell")(self.config, ms.float32)
        initialise(made, seed)
        return made

    def loss(self, model: Any) -> Any:
        return self.parts.part("loss")(model)

    def first_rows(self, columns: Columns, count: int) -> Columns:
        return {n: a if n in self.shared else a[:count] for n, a in columns.items()}

    def gradients(self, model: Any, columns: Columns) -> tuple[float, float, dict[str, np.ndarray]]:
        """Loss sum, number of targets, and the gradient of each weight."""
        weights = list(model.trainable_params())
        compute = ms.jit(ops.value_and_grad(self.loss(model), None, weights, has_aux=True))
        (total, count), grads = compute(*(Tensor(array) for array in columns.values()))
        named = {w.name: g.asnumpy() for w, g in zip(weights, grads)}
        return float(total.asnumpy()), float(count.asnumpy()), named


class Stepper:
    """A model with its training step, as the trainer puts them together."""

    def __init__(
        self, tiny: Tiny, *, num_micro: int = 1, seed: int = 1, dropout: float = 0.0, **optim: Any
    ):
        self.tiny = tiny
        self.model = tiny.model(seed)
        turn_on(self.model, dropout, seed=seed, spared=tiny.config.UNDROPPED)
        config = OptimConfig(**{"lr": 1e-2, **optim})
        self.lr = config.lr
        self.optimizer = Adam(list(self.model.trainable_params()), config)
        self.step = TrainStep(
            tiny.loss(self.model),
            self.optimizer,
            clip_norm=config.clip_norm,
            num_micro=num_micro,
        )
        self.step.moment = Moment(self.model)
        self.done = 0

    def __call__(self, columns: Columns) -> tuple[float, float]:
        """One step; loss per target and gradient norm."""
        num_targets = int((columns["targets"] >= 0).sum())
        rates = self.optimizer.rates(self.lr, self.done)
        numbers = Numbers(num_targets, [rates], self.done, done=self.done)
        report = Report.of(self.step(columns, self.tiny.shared, numbers).asnumpy())
        self.done += 1
        return report.loss, report.norm

    def weights(self) -> dict[str, np.ndarray]:
        return {p.name: p.asnumpy() for p in self.model.trainable_params()}
