"""What differs between families on the way from documents to rows and from rows to batches.

Reading sources, spreading work over processes, writing and reading folders of rows, their order,
and the exact repetition of batches are the same for all; a family brings one `RowKind`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mindplm.config import RunConfig, SourceConfig
from mindplm.config_task import read_task
from mindplm.data.indexed import is_indexed
from mindplm.data.packing import RowShape
from mindplm.data.sources import RECORD
from mindplm.data.tasks import check_tasks
from mindplm.errors import ConfigError

SIGNAL = "signal"
"""Task of a source whose lines are signals."""


@dataclass(frozen=True)
class RowSettings:
    """What rows depend on besides texts and vocabulary; a family may add fields.

    Attributes:
        shape: Sizes of a row.
        repeat: Draws from a document of weight 1.
        seed: Seed of all draws.
    """

    shape: RowShape
    repeat: int = 1
    seed: int = 1234


class Draws(NamedTuple):
    """What a batch depends on besides its own rows.

    Attributes:
        ext: Extension table of the global batch (of CPM-Bee; others ignore it).
        seed: Seed of what is drawn anew each time that a row is used.
        keys: (epoch, number) of each row; with the seed they name its random stream.
    """

    ext: tuple[np.ndarray, np.ndarray]
    seed: int
    keys: Sequence[tuple[int, int]]

    def generator(self, place: int) -> np.random.Generator:
        """The random stream of the row at a place of the batch."""
        epoch, row = self.keys[place]
        key = np.array([self.seed, (epoch << 40) + row], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class RowKind:
    """A family's rows. The callables are functions of modules, so that processes can share them.

    A row has `task_ids`, `num_targets`, `num_chars`, `len()`, `arrays()` (what is stored, by
    `stored`) and `pairs()` (what it brings to the extension table).

    Attributes:
        name: Is kept in the folder, so that rows of another kind are refused.
        tasks: Names of the tasks that sources may have.
        usual: Weights of tasks of a source that names none.
        columns: Columns of a batch, in the order of the training cell.
        stored: Names of the int32 arrays of a stored row.
        marks: Attributes of the tokenizer that batches depend on; kept with the rows.
        settings: (settings of the run, train or valid) -> settings of the rows.
        drawer: (sources, their names, tokenizer, settings) -> object whose `many` turns draws from
            documents into instances.
        packer: (rows of a batch, shape) -> object that puts instances into rows.
        row: Stored arrays -> row.
        collate: (rows, num_rows=, shape=, marks=, draws=) -> columns.
        numbers: Most int32 numbers of a stored row of a shape.
        draws: Whether batches are drawn anew each time, as masks are; then every rank makes the
            whole global batch, since the number of targets is not known before.
        takes_sentences: Whether a document may be sentences of ids instead of a text.
        takes_slots: Whether a record may be filled into slots, see `config_slots`.
    """

    name: str
    tasks: tuple[str, ...]
    usual: Mapping[str, float]
    columns: tuple[str, ...]
    stored: tuple[str, ...]
    marks: tuple[str, ...]
    settings: Callable[[RunConfig, str], RowSettings]
    drawer: Callable[..., Any]
    packer: Callable[[int, RowShape], Any]
    row: Callable[[Mapping[str, np.ndarray]], Any]
    collate: Callable[..., dict[str, np.ndarray]]
    numbers: Callable[[RowShape], int]
    draws: bool = False
    takes_sentences: bool = False
    takes_slots: bool = False

    def sources(self, sources: Sequence[SourceConfig]) -> list[SourceConfig]:
        """The sources with the usual tasks where they name none, and the shapes of task files.

        Raises:
            ConfigError: A source names a task that this family does not have.
        """
        return [self._source(source) for source in sources]

    def _source(self, source: SourceConfig) -> SourceConfig:
        check_tasks(source.tasks, f"data source {source.path}", self.tasks)
        if source.task:
            shape = read_task(source.task).shape
            source = dataclasses.replace(source, shape=shape, task="")
        if is_indexed(source.path) and (source.shape or not self.takes_sentences):
            raise ConfigError(
                f"data source {source.path} holds sentences of token ids; only cpt's pretraining "
                "rows are made of them, and they have no shape"
            )
        if source.shape is None:
            records = source.transforms is not None and RECORD in self.tasks
            usual = {RECORD: 1.0} if records else dict(self.usual)
            return source if source.tasks else dataclasses.replace(source, tasks=usual)
        if source.shape.slots.templates and not self.takes_slots:
            raise ConfigError(
                f"data source {source.path}: {self.name} rows have no slots; they are cpt's, "
                "without a head"
            )
        task = SIGNAL if source.shape.kind == SIGNAL else RECORD
        if task not in self.tasks or set(source.tasks) - {task}:
            known = task if task in self.tasks else f"{task}, which {self.name} does not have"
            raise ConfigError(
                f"data source {source.path} has a shape, so its lines become {task}s; the only "
                f"task for them is {known}"
            )
        return dataclasses.replace(source, tasks={task: 1.0})
