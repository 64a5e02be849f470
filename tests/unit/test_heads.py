"""Heads on BERT and CPT: training on classes, tags and spans, measuring, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import numbers

from mindplm import cli, families
from mindplm.config_head import classes_of, form_of
from mindplm.config_shape import ShapeConfig
from mindplm.data.documents import Document
from mindplm.data.head_rows import class_of, pieces_of
from mindplm.data.packing import IGNORE
from mindplm.errors import ConfigError
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

LETTERS = "天地人好坏很一二三四五六七八九十？"
LINES = [*SPECIALS, *LETTERS]
TOKENIZER = WordPieceTokenizer(LINES)
RUN = """\
family: {family}
model: {{hidden_size: 32, num_heads: 2, ffn_size: 64, num_layers: {layers}, max_len: 32}}
tokenizer: {{path: "{folder}/vocab.txt"}}
runtime: {{device: cpu}}
head: {{task: "{folder}/task.yaml", {head}}}
data: {{folder: "{folder}/rows", seq_len: 16,
  train: [{{path: "{folder}/{data}", task: "{folder}/task.yaml"}}]}}
optim: {{lr: 1e-2, schedule: constant, weight_decay: 0}}
train: {{output: "{folder}/run", steps: 40, batch_size: 8, log_every: 10, eval_every: 40}}
finetune: {{tasks: [{{task: "{folder}/task.yaml", path: "{folder}/{data}"}}]}}
"""
TASKS = {
    "text": "shape: {kind: classification, labels: {p: 好, n: 坏}}\n"
    "method: likelihood\nmetrics: [accuracy]\n",
    "tokens": "shape: {kind: extraction, types: {num: 数}}\nmetrics: [spans]\n",
    "span": "shape: {kind: reading}\nmetrics: [exact, f1]\n",
}
CASES = [
    ("bert", "states: understanding", "text", "train.jsonl", "accuracy"),
    ("bert", "crf: true", "tokens", "train.conll", "span_f1"),
    ("cpt", "states: both", "span", "train.json", "exact"),
]


def data_of(form: str) -> str:
    """Sixteen records that a head can learn from what is in them."""
    digits = "一二三四五六七八"
    if form == "text":
        lines = [
            {"text": f"{digits[i % 8]}很{'好坏'[i // 8]}", "label": "pn"[i // 8]} for i in range(16)
        ]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if form == "tokens":
        begin = "天 O\n"
        return "".join(
            f"{begin * (i % 2)}{digits[i % 8]} B-num\n{digits[i // 2]} I-num\n人 O\n\n"
            for i in range(16)
        )
    paragraphs = [
        {
            "context": f"{'天' * (i % 3)}{digits[i % 8]}人。",
            "qas": [{"id": str(i), "question": "几？", "answers": [{"text": digits[i % 8]}]}],
        }
        for i in range(16)
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)


def written(folder: Path, family: str, head: str, form: str, data: str) -> Path:
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    (folder / "task.yaml").write_text(TASKS[form], encoding="utf-8")
    (folder / data).write_text(data_of(form), encoding="utf-8")
    layers = 1 if family == "bert" else "2, num_decoder_layers: 1"
    text = RUN.format(folder=folder, family=family, head=head, layers=layers, data=data)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder / "run.yaml"


@pytest.mark.parametrize(("family", "head", "form", "data", "metric"), CASES)
def test_a_head_learns_its_task_and_is_measured_again_from_its_checkpoint(
    family: str, head: str, form: str, data: str, metric: str, tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path, family, head, form, data)
    assert cli.main(["finetune", "-c", str(path)]) == 0, capsys.readouterr().err
    reports = [n for n in numbers(tmp_path / "run") if f"valid/task/{metric}" in n]
    assert reports[-1][f"valid/task/{metric}"] == pytest.approx(1.0)
    losses = [n["train/loss"] for n in numbers(tmp_path / "run") if "train/loss" in n]
    assert losses[-1] < 0.1 < losses[0]
    task = ["--task", str(tmp_path / "task.yaml"), "--data", str(tmp_path / data)]
    capsys.readouterr()
    assert cli.main(["evaluate", "-m", str(tmp_path / "run"), *task]) == 0
    out = capsys.readouterr().out
    assert metric in out and "100.00 %" in out and "16" in out


def test_words_in_slots_are_learned_and_asked_again_from_the_checkpoint(
    tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path, "cpt", "", "text", "train.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("head:")))
    task = tmp_path / "task.yaml"
    plain = TASKS["text"].replace("}}\n", "}, answer: text, show_options: false}\n")
    task.write_text(plain, encoding="utf-8")
    other = [f"data.folder={tmp_path / 'plain'}", f"train.output={tmp_path / 'other'}"]
    capsys.readouterr()
    assert cli.main(["finetune", "-c", str(path), *other]) == 2
    assert "cpt cannot be asked how likely answers are, as task is" in capsys.readouterr().err
    slots = ", slots: {templates: ['[texta]人[mask]']}}\n"
    task.write_text(plain.replace("false}\n", "false" + slots), encoding="utf-8")
    assert cli.main(["finetune", "-c", str(path)]) == 0, capsys.readouterr().err
    reports = [n for n in numbers(tmp_path / "run") if "valid/task/accuracy" in n]
    assert reports[-1]["valid/task/accuracy"] == pytest.approx(1.0)
    asked = ["--task", str(task), "--data", str(tmp_path / "train.jsonl")]
    capsys.readouterr()
    assert cli.main(["evaluate", "-m", str(tmp_path / "run"), *asked]) == 0
    assert "100.00 %" in capsys.readouterr().out


def test_records_become_ids_with_labels() -> None:
    pairs = ShapeConfig("pairs", labels={"0": "异", "1": "同"})
    fields = {"sentence1": "天地", "sentence2": "人"}
    document = Document("x:1", fields, label="1", candidates=("异", "同"))
    ((ids, labels),) = pieces_of(document, pairs, TOKENIZER, 16)
    cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
    read = TOKENIZER.ids_of(["天", "地", "人"])
    assert ids == [cls, *read[:2], sep, read[2], sep]
    assert labels.tolist() == [1, *[IGNORE] * 5]
    tagged = Document("x:1", {}, tagged=(("天", "S-num"), ("é", "O"), ("地", "E-num")))
    shape = ShapeConfig("extraction", types={"num": "数"})
    ((ids, labels),) = pieces_of(tagged, shape, TOKENIZER, 16)
    assert classes_of(shape) == ("O", "B-num", "I-num")
    assert ids == [cls, read[0], TOKENIZER.unk_id, read[1], sep]
    assert labels.tolist() == [IGNORE, 1, 0, 2, IGNORE]
    assert [class_of(tag) for tag in ("O", "M-a-b", "B-c")] == ["O", "I-a-b", "B-c"]


def test_what_does_not_fit_is_refused_with_its_length() -> None:
    shape = ShapeConfig("classification", labels={"p": "好", "n": "坏"})
    document = Document("x:1", {"input": "天" * 20}, label="p", candidates=("好", "坏"))
    with pytest.raises(ValueError, match="22 tokens, seq_len is 16"):
        pieces_of(document, shape, TOKENIZER, 16)


def test_kinds_of_data_and_families_without_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its shape is dialogue, a head learns classification"):
        form_of(ShapeConfig("dialogue"))
    path = written(tmp_path, "bert", "crf: false", "text", "train.jsonl")
    head = families.load_config(path).head
    assert families.rows_of("bert", head).name == "head of text"
    with pytest.raises(ConfigError, match="cpm_bee has no states for a head.*bert, cpt"):
        families.rows_of("cpm_bee", head)
    with pytest.raises(ConfigError, match="head.crf=true is for tags of tokens"):
        families.parts_of("bert", families.load_config(path, ["head.crf=true"]).head)
    made = families.parts_of("bert", families.load_config(path, ["head.states=both"]).head)
    with pytest.raises(ConfigError, match="head.states=both: bert has understanding only"):
        made.part("cell")(families.load_config(path, ["model.vocab_size=9"]).model)
