"""Task files: what a model is asked, and how its answers are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Literal

from mindplm.config_generate import GenerateConfig
from mindplm.config_shape import ShapeConfig
from mindplm.errors import ConfigError
from mindplm.strict import Source, apply_overrides, at_least, build, key_paths, require
from mindplm.yaml_io import load_yaml

BY_CHARACTER = ("character_bleu", "character_rouge", "character_overlap", "distinct")
METRICS = (
    *("accuracy", "exact", "f1", "spans", "bleu", "chrf", "rouge", "perplexity"),
    *BY_CHARACTER,
)
_CHOOSING = ("classification", "pairs", "choices")


@dataclass(frozen=True)
class TaskConfig:
    """A task to measure a model on."""

    shape: ShapeConfig
    """What the lines of the data are."""
    metrics: tuple[str, ...]
    """accuracy (of a choice), exact and f1 (of short answers), spans (precision, recall and F1 of
    extracted texts), bleu, chrf, rouge (of texts), perplexity (of the right answers);
    character_bleu, character_rouge, character_overlap and distinct, by character as CPT's figures
    are. The first is the one that finetuning watches."""
    name: str = ""
    """Name in tables; empty: that of the file."""
    path: str = ""
    """The data; empty: to be given when the task is run."""
    method: Literal["likelihood", "generate"] = "generate"
    """likelihood: the likeliest of the candidates is chosen; generate: an answer is written."""
    likelihood: Literal["answer", "token", "prior"] = "answer"
    """Of the method likelihood: compare answers by their probability; by that per token, so that
    long ones are no worse; or by how much the question makes them likelier than they are without
    it."""
    template: str = ""
    """Of the method likelihood, for families that read from left to right: the text that is made
    of a candidate and the inputs by key, such as "这是关于{answer}的文章：|{input}". What is
    behind the bar is scored; candidates are compared by how likely they make it. Empty: the
    candidates themselves are scored, behind the record."""
    shots: int = 0
    """Records with answers that each question is shown."""
    shots_path: str = ""
    """Where they are taken from."""
    shots_seed: int = 0
    """Which ones are drawn; those of all labels are as many as possible."""
    limit: int = 0
    """At most so many of the data's records, spread evenly over them; 0: all."""
    group: bool = False
    """Whether metrics are given for each label too."""
    generate: GenerateConfig = field(default_factory=lambda: GenerateConfig(max_new_tokens=32))
    """How answers are written."""

    def __post_init__(self) -> None:
        known = ", ".join(METRICS)
        require(bool(self.metrics), f"metrics is empty; accepted in it: {known}")
        for metric in self.metrics:
            require(metric in METRICS, f"metrics: {metric} is not known; accepted: {known}")
        kind = self.shape.kind
        require(
            self.shape.answer != "input"
            or (self.method, self.likelihood)
            in (("likelihood", "answer"), ("likelihood", "token")),
            "shape.answer=input needs method=likelihood, and likelihood=answer or token",
        )
        require(
            kind in _CHOOSING or (self.method == "generate" and "accuracy" not in self.metrics),
            f"method likelihood and the metric accuracy need answers to choose from, "
            f"but the shape is {kind}",
        )
        require(
            ("spans" in self.metrics) <= (kind == "extraction"),
            f"the metric spans needs the shape extraction, got {kind}",
        )
        writes = set(self.metrics) - {"accuracy", "perplexity"}
        require(
            self.method == "generate" or not writes,
            f"method=likelihood writes nothing, so it cannot measure {', '.join(sorted(writes))}",
        )
        require(
            not self.shape.slots.templates or self.metrics == ("accuracy",),
            f"shape.slots: a label is chosen, so metrics must be [accuracy], got {self.metrics}",
        )
        self._check_template()
        at_least("task", self, shots=0, shots_seed=0, limit=0)
        require(
            self.shots == 0 or self.shots_path != "",
            f"shots={self.shots} needs shots_path, a file of the same shape with answers",
        )

    def _check_template(self) -> None:
        if not self.template:
            return
        known = ("answer", *self.shape.shown)
        try:
            names = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            raise ConfigError(f"template={self.template!r}: {error}") from None
        odd = names - set(known)
        require(
            not odd and self.template.count("|") == 1,
            f"template={self.template!r}: expected one bar | and names of "
            f"{', '.join('{' + name + '}' for name in known)}",
        )
        require(
            self.method == "likelihood" and self.likelihood != "prior" and not self.shots,
            "template needs method=likelihood, no likelihood=prior and no shots",
        )
        require(self.shape.answer == "text", "template needs shape.answer=text")


def read_task(path: str | Path, overrides: Sequence[str] = ()) -> TaskConfig:
    """Reads a task file and lays `key=value` overrides over it.

    Raises:
        ConfigError: A key or value that cannot be used, with its place.
    """
    tree = apply_overrides(load_yaml(path), overrides)
    tree.setdefault("name", Path(path).stem)
    source = Source(str(path), tuple(overrides), tuple(key_paths(TaskConfig)))
    return build(TaskConfig, tree, "", source)
