"""GPT-1's fine-tuning rows: files to examples, batches, and what cannot be used."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindplm import families
from mindplm.config import RuntimeConfig, SourceConfig
from mindplm.config_head import HeadConfig, marked_form
from mindplm.config_shape import ShapeConfig
from mindplm.config_task import read_task
from mindplm.data.draw import Work
from mindplm.data.gpt1_tasks import arrays
from mindplm.data.marked_rows import ROWS, MarkedDrawer, MarkedSettings, collate, marks_of
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.sources import SourceReader
from mindplm.errors import ConfigError
from mindplm.measure.headed import of_run
from mindplm.measure.questions import read_questions
from mindplm.models.gpt1.config import Gpt1Config
from mindplm.nn.init import initialise
from mindplm.runtime import setup
from mindplm.tokenizers.bpe import BpeTokenizer
from mindplm.tokenizers.bpe_vocab import build

TOKENIZER = build(["the cat sat on the mat", "a dog < a cat"] * 3, 130, min_char_count=1)
MARKS = marks_of(TOKENIZER)
SEQ_LEN = 24


def rows_of(tmp_path, shape: ShapeConfig, lines: list[dict], head: HeadConfig):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    form = marked_form(shape, head)
    settings = MarkedSettings(RowShape(SEQ_LEN, 0, 0, form.num_sequences), form=form)
    source = SourceConfig(str(path), shape=shape, tasks={"record": 1.0})
    drawer = MarkedDrawer([source], ["data"], TOKENIZER, settings)
    drawn = drawer.many([Work(0, i, 0, d) for i, d in enumerate(SourceReader(source))])
    packer = ROWS.packer(2, settings.shape)
    rows = [row for item in drawn for piece in item.instances for row in packer.add(piece)]
    again = [ROWS.row({k: np.asarray(v) for k, v in row.arrays().items()}) for row in rows]
    columns = collate(again, num_rows=3, shape=settings.shape, marks=None, draws=None)
    return columns, drawn


def marked(*texts: str) -> list[int]:
    ids = [MARKS.start]
    for number, text in enumerate(texts):
        ids += [MARKS.delimiter] if number else []
        ids += TOKENIZER.encode(text)
    return [*ids, MARKS.extract]


def check(columns, wanted: list[list[list[int]]], labels: list[int]) -> None:
    for place, example in enumerate(wanted):
        for number, ids in enumerate(example):
            assert columns["ids"][place, number, : len(ids)].tolist() == ids
            assert columns["length"][place, number] == len(ids)
            assert columns["ids"][place, number, columns["extract"][place, number]] == MARKS.extract
    assert columns["label"].tolist() == labels + [IGNORE] * (3 - len(labels))


HEAD = HeadConfig("task.yaml")


def test_one_text_and_its_class(tmp_path):
    shape = ShapeConfig("classification", labels={"a": "x", "b": "y"})
    lines = [{"text": "a < cat", "label": "b"}, {"text": "mat", "label": "a"}]
    columns, _ = rows_of(tmp_path, shape, lines, HEAD)
    check(columns, [[marked("a < cat")], [marked("mat")]], [1, 0])


@pytest.mark.parametrize("symmetric", [False, True])
def test_two_texts_in_one_order_or_both(tmp_path, symmetric):
    shape = ShapeConfig("pairs", labels={"0": "x", "1": "y"})
    lines = [{"sentence1": "a cat", "sentence2": "the mat", "label": 1}]
    columns, _ = rows_of(tmp_path, shape, lines, HeadConfig("t", symmetric=symmetric))
    both = [marked("a cat", "the mat"), marked("the mat", "a cat")]
    check(columns, [both[: 1 + symmetric]], [1])


@pytest.mark.parametrize("listed", [False, True])
def test_an_answer_to_choose_makes_a_sequence_each(tmp_path, listed):
    options = ("o",) if listed else ("o1", "o2", "o3")
    words = ["cat", "dog", "mat"]
    shape = ShapeConfig("choices", options=options, answer="text", show_options=listed)
    line = {"text": "the", "label": 2, **({"o": words} if listed else dict(zip(options, words)))}
    short = {**line, "label": 0, **({"o": words[:2]} if listed else {})}
    head = HeadConfig("t", choices=3 if listed else 0)
    columns, drawn = rows_of(tmp_path, shape, [line, short], head)
    wanted = [marked("the", word) for word in words]
    check(columns, [wanted] if listed else [wanted, wanted], [2] if listed else [2, 0])
    if listed:
        assert "2 answers, expected 3" in str(drawn[1].problems[0])


def test_long_texts_are_cut_and_counted(tmp_path):
    shape = ShapeConfig("classification", labels={"a": "x", "b": "y"})
    columns, drawn = rows_of(tmp_path, shape, [{"text": "cat " * 40, "label": "a"}], HEAD)
    assert columns["length"][0, 0] == SEQ_LEN
    assert sum(drawn[0].counts.values()) == 1


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ConfigError, match="gpt1 learns classification, pairs, choices"):
        marked_form(ShapeConfig("records"), HEAD)
    with pytest.raises(ConfigError, match=r"head\.choices"):
        marked_form(ShapeConfig("choices", options=("o",), answer="text"), HEAD)
    with pytest.raises(ConfigError, match="rules\\+marks"):
        marks_of(BpeTokenizer({"a": 0}, [], "exact"))


def test_a_head_answers_as_the_network_scores(tmp_path):
    setup(RuntimeConfig(device="cpu"))
    task_file = tmp_path / "task.yaml"
    task_file.write_text(
        "shape: {kind: choices, options: [o1, o2], show_options: false, answer: text}\n"
        "method: likelihood\nmetrics: [accuracy]\n"
    )
    data = tmp_path / "data.jsonl"
    lines = [{"text": f"the {w}", "o1": "cat", "o2": "mat dog", "label": i % 2}
             for i, w in enumerate(["cat", "dog", "mat", "cat sat", "on"])]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    head = HeadConfig(str(task_file))
    parts = families.parts_of("gpt1", head)
    sizes = Gpt1Config(vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_heads=2, ffn_size=32,
                       num_layers=1, max_len=SEQ_LEN, init_std=0.3)  # fmt: skip
    model = parts.part("cell")(sizes)
    initialise(model, 1)
    assert {"head.weight", "head.bias", "embed.weight"} <= {w.name for w in model.get_parameters()}
    assert model.head.weight.shape == (1, 16)
    run = SimpleNamespace(head=head, data=SimpleNamespace(seq_len=SEQ_LEN), micro_batch_size=3,
                          family="gpt1")  # fmt: skip
    task = read_task(task_file)
    result = of_run(run, model, TOKENIZER).measure(task, read_questions(task, str(data)))
    examples = [[marked(line["text"], line[name]) for name in ("o1", "o2")] for line in lines]
    columns = arrays(examples, MARKS, SEQ_LEN)
    scores = model(*map(Tensor, columns.values())).asnumpy()
    right = 0
    for prediction, own, line in zip(result.predictions, scores, lines):
        np.testing.assert_allclose(np.diff(prediction.nats), -np.diff(own), rtol=1e-3, atol=1e-4)
        assert prediction.answer == ("cat", "mat dog")[int(own.argmax())]
        right += int(own.argmax()) == line["label"]
    assert result.figures[""]["accuracy"].value == pytest.approx(right / len(lines))
