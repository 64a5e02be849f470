"""What a task gave: figures as a table and as JSON, and all predictions to look at."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import files
from mindplm.config_task import BY_CHARACTER, TaskConfig
from mindplm.data.shapes import plain
from mindplm.measure import characters, metrics
from mindplm.measure.answers import Prediction
from mindplm.measure.figures import Figure, of_sums, share
from mindplm.measure.questions import Questions, without_answer

ALL = ""
"""Name of the group of all records."""


@dataclass
class TaskResult:
    """Figures of a task.

    Attributes:
        task: Its name.
        path: The data.
        figures: Group -> metric -> figure; the group "" holds all records.
        notes: Counts of what went otherwise than expected, in words.
        predictions: One for each record.
    """

    task: str
    path: str
    figures: dict[str, dict[str, Figure]]
    notes: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)

    @property
    def first(self) -> tuple[str, Figure]:
        """The metric that finetuning watches."""
        return next(iter(self.figures[ALL].items()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            group: {name: figure.to_dict() for name, figure in of_group.items()}
            for group, of_group in self.figures.items()
        }
        return {
            "task": self.task,
            "data": self.path,
            "metrics": figures.pop(ALL),
            "groups": figures,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return table([self])


def table(results: Sequence[TaskResult]) -> str:
    """Tasks and metrics as lines of text, with 95 % intervals."""
    rows = [("task", "metric", "value", "95 % interval", "records")]
    for result in results:
        for group, figures in result.figures.items():
            name = result.task + (f" / {group}" if group else "")
            for metric, figure in figures.items():
                low, high = _shown(metric, figure.low), _shown(metric, figure.high)
                value = _shown(metric, figure.value)
                rows.append((name, metric, value, f"{low} to {high}", f"{figure.count:,}"))
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text + " " * (width - _width(text)) if i < 2 else " " * (width - _width(text)) + text
            for i, (text, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    for result in results:
        lines += [f"{result.task}: {note}" for note in result.notes]
    return "\n".join(lines)


def summed_up(
    task: TaskConfig, questions: Questions, predictions: Sequence[Prediction]
) -> TaskResult:
    """Computes the figures of a task; a record that could not be asked counts as answered wrong."""
    figures = {ALL: _figures(task, predictions)}
    if task.group:
        for label in sorted(questions.labels):
            own = [p for p in predictions if p.document.label == label]
            figures[label] = _figures(task, own)
    notes = [
        f"{count} lines of {questions.path} not used: {reason}"
        for reason, count in sorted(questions.problems.items())
    ]
    notes += questions.first
    failed = [p for p in predictions if p.error]
    if failed:
        place = failed[0].document.place
        notes.append(f"{len(failed)} records could not be asked; {place}: {failed[0].error}")
    odd = [p for p in predictions if p.document.candidates and p.answer is None and not p.error]
    if odd:
        notes.append(f"{len(odd)} written answers are none of the candidates: {_commonest(odd)}")
    labels = questions.labels
    if labels and task.shape.kind in ("classification", "pairs"):
        most, count = labels.most_common(1)[0]
        part = 100 * count / sum(labels.values())
        notes.append(f"always answering {most!r} would be right in {part:.1f} %")
    return TaskResult(task.name, questions.path, figures, notes, list(predictions))


def save(results: Sequence[TaskResult], folder: str | Path) -> None:
    """Writes results.json, results.txt and predictions-TASK.jsonl of each task."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    listed = [result.to_dict() for result in results]
    text = json.dumps(listed, ensure_ascii=False, indent=1) + "\n"
    files.replace_file(root / "results.json", text.encode())
    files.replace_file(root / "results.txt", (table(results) + "\n").encode())
    for result in results:
        lines = "".join(
            json.dumps(prediction_line(p), ensure_ascii=False) + "\n" for p in result.predictions
        )
        data = lines.encode("utf-8", "surrogatepass")
        files.replace_file(root / f"predictions-{result.task}.jsonl", data)


def prediction_line(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it is written to a file."""
    document = prediction.document
    line: dict[str, Any] = {
        "place": document.place,
        "right": is_right(prediction),
        "answer": prediction.answer,
        "references": list(document.references),
        "record": plain(without_answer(document)),
    }
    if prediction.nats:
        line["nats"] = dict(zip(map(str, document.candidates), prediction.nats))
    if prediction.written is not None and prediction.written != prediction.answer:
        line["written"] = prediction.written
    if prediction.right is not None:
        line["reference_nats"] = prediction.right.nats
    if prediction.error:
        line["error"] = prediction.error
    return line


def is_right(prediction: Prediction) -> bool:
    """Whether an answer is a reference, or all of the pairs that were to be found."""
    document = prediction.document
    if document.candidates:
        return prediction.answer is not None and prediction.answer in document.references
    if isinstance(prediction.answer, list):
        return set(prediction.answer) == set(document.references)
    return metrics.is_exact(_text(prediction.answer), _texts(document.references))


# --- figures --------------------------------------------------------------------------------------


def _figures(task: TaskConfig, predictions: Sequence[Prediction]) -> dict[str, Figure]:
    answers = [_text(p.answer) for p in predictions]
    references = [_texts(p.document.references) for p in predictions]
    if predictions and predictions[0].document.candidates:
        answers = [_text(p.written) for p in predictions]
    found: dict[str, Figure] = {}
    for metric in task.metrics:
        if metric == "accuracy":
            found[metric] = share(sum(map(is_right, predictions)), len(predictions))
        elif metric == "perplexity":
            found[metric] = _perplexity(predictions)
        elif metric == "spans":
            pairs = [p.answer or [] for p in predictions]
            wanted = [p.document.references for p in predictions]
            for name, figure in metrics.spans(pairs, wanted).items():
                found[f"span_{name}"] = figure
        elif metric in BY_CHARACTER:
            found.update(getattr(characters, metric)(answers, references))
        elif metric == "rouge":
            found.update(metrics.rouge(answers, references))
        else:
            found[metric] = getattr(metrics, metric)(answers, references)
    return found


def _perplexity(predictions: Sequence[Prediction]) -> Figure:
    """Of the reference answers, by token, end marks included."""
    scores = [p.right for p in predictions if p.right is not None]
    sums = np.array([(s.nats, s.num_tokens) for s in scores], np.float64).reshape(-1, 2)
    return of_sums(sums, lambda s: np.exp(np.minimum(s[:, 0] / np.maximum(s[:, 1], 1), 700.0)))


def _text(answer: Any) -> str:
    """An answer as one text."""
    if isinstance(answer, Mapping):
        return "\n".join(_text(item) for item in answer.values())
    return "" if answer is None else str(answer)


def _texts(references: Sequence[Any]) -> list[str]:
    return [_text(plain(reference)) for reference in references]


# --- words ----------------------------------------------------------------------------------------


def _commonest(predictions: Sequence[Prediction]) -> str:
    counts = Counter(_text(p.written)[:20] for p in predictions)
    return ", ".join(f"{text!r} ({count})" for text, count in counts.most_common(3))


def _shown(metric: str, value: float) -> str:
    if metric == "perplexity":
        return f"{value:.2f}" if math.isfinite(value) else "inf"
    if metric in ("bleu", "chrf") or metric.startswith(("rouge", "char_bleu", "char_rouge")):
        return f"{value:.2f}"
    return f"{100 * value:.2f} %"


def _width(text: str) -> int:
    """Columns on a terminal, where a Chinese character takes two."""
    return len(text) + sum(character >= "\u2e80" for character in text)
