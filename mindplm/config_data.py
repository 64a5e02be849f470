"""The data section of a run's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from mindplm.config_shape import ShapeConfig
from mindplm.strict import at_least, require


@dataclass(frozen=True)
class SourceConfig:
    """One source of texts or records."""

    path: str
    """A file, a glob pattern, the folder of a binary data set, or embedded:poems,
    embedded:sanguo, embedded:classics, embedded:english (with _valid for the held-out part where
    there is one)."""
    name: str = ""
    """Name in reports and logs; empty: made from the path."""
    weight: float = 1.0
    """How often a document of it is used, relative to the other sources."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Weight of each way to make training rows of a text; none: the usual ones of the family.
    For cpm_bee lm (cut in two), write (all of it), infill (blanks), or record: lines are
    records."""
    text_field: str = "text"
    """Key of the text in JSON lines."""
    extra_fields: tuple[str, ...] = ("title", "author")
    """Keys of JSON lines that some records show beside the text; of title and author."""
    shape: Optional[ShapeConfig] = None  # noqa: UP045 (it is evaluated, also by Python 3.9)
    """What the lines are, if they are no texts or records yet: reviews with labels, questions
    and answers, tagged tokens, messages ...; they become records."""
    task: str = ""
    """A task file whose shape the lines have, instead of naming a shape here."""
    task_name: str = ""
    """Losses are reported by it, together with other sources of that name; empty: each task of
    the source by itself."""
    transforms: Any = None
    """What makes records of the documents: the path of a Python script with a function
    transform(data, num_sample, r), or a list of records whose texts may be $key."""
    incontext_weight: tuple[float, ...] = (1.0,)
    """Weights of showing 0, 1, 2 ... other records of the source with a record."""

    def __post_init__(self) -> None:
        require(
            self.shape is None or not self.task,
            f"data: source {self.path} names both shape and task; choose one of them",
        )
        require(self.path != "", "data: a source has an empty path")
        require(self.weight > 0, f"data: weight={self.weight} of {self.path}, expected > 0")
        require(
            set(self.extra_fields) <= {"title", "author"},
            f"data: extra_fields={list(self.extra_fields)} of {self.path}, accepted in it: "
            "title, author",
        )
        require(
            not self.tasks or (min(self.tasks.values()) >= 0 and sum(self.tasks.values()) > 0),
            f"data: tasks={self.tasks} of {self.path}, expected at least one weight > 0, none < 0",
        )
        shown = self.incontext_weight
        require(
            min(shown, default=-1) >= 0 and sum(shown) > 0,
            f"data: incontext_weight={list(shown)} of {self.path}, expected at least one weight > "
            "0, none < 0",
        )
        if self.transforms == "" or self.transforms == []:
            object.__setattr__(self, "transforms", None)


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it is cut into rows."""

    folder: str
    """Where prepared rows are written: <folder>/train and <folder>/valid."""
    train: list[SourceConfig] = field(default_factory=list)
    """Sources of training texts."""
    mixture: str = ""
    """A mixture file (JSON as the original's, or YAML) whose entries are further sources."""
    stream: bool = False
    """Draw training rows while training, and not before; changes of the mixture file and of its
    scripts then take effect in a run."""
    valid: list[SourceConfig] = field(default_factory=list)
    """Sources of validation texts; none: no validation."""
    seq_len: int = 512
    """Tokens of a row."""
    max_rel: int = 0
    """Room of a row for segment relation values; 0: chosen from seq_len."""
    max_ext: int = 64
    """Extra output classes of a batch (numbered blanks, unknown characters ...)."""
    max_targets: int = 0
    """Predicted positions of a row; 0: seq_len."""
    repeat: int = 1
    """Differently drawn records made of each document."""
    lenient: bool = True
    """Mend records as they are written for `generate`: a '<' that opens no known tag is doubled,
    dialogues with <用户> and <AI> are laid out. false: refuse them."""
    dedup: bool = False
    """Leave out documents that were met before, to the letter."""
    strict: bool = False
    """Stop at the first document that cannot be used, instead of counting it."""
    workers: int = 0
    """Processes that prepare rows; 0: one for each core. The rows are the same."""

    def __post_init__(self) -> None:
        require(
            len(self.train) > 0 or self.mixture != "",
            "data.train is empty and data.mixture names no file, expected at least one source",
        )
        require(self.folder != "", "data.folder is empty, expected a folder")
        at_least("data", self, seq_len=8, max_rel=0, max_ext=1, max_targets=0, repeat=1)
        at_least("data", self, workers=0)
        require(
            self.max_targets <= self.seq_len,
            f"data.max_targets={self.max_targets}, expected at most data.seq_len={self.seq_len}",
        )
