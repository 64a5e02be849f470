"""Common kinds of data files become the records that the training forms ask for."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_samples import settings, small_tokenizer

from mindplm.config import SourceConfig
from mindplm.config_shape import ShapeConfig
from mindplm.data.bee_rows import ROWS
from mindplm.data.documents import Document, Problem
from mindplm.data.preprocess import preprocess
from mindplm.data.shapes import spans
from mindplm.data.sources import SourceReader
from mindplm.errors import ConfigError, DataError

LABELS = {"positive": "好评", "negative": "差评"}


def items(path: Path, text: str | bytes, **shape: Any) -> list[Document | Problem]:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return list(SourceReader(SourceConfig(str(path), shape=ShapeConfig(**shape))))


def documents(path: Path, text: str, **shape: Any) -> list[Document]:
    found = items(path, text, **shape)
    assert not [item for item in found if isinstance(item, Problem)]
    return [item for item in found if isinstance(item, Document)]


def problems(path: Path, text: str | bytes, **shape: Any) -> list[tuple[str, str]]:
    found = [item for item in items(path, text, **shape) if isinstance(item, Problem)]
    return [(item.place.rpartition("/")[2], item.reason) for item in found]


# --- classification, pairs, choices ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_a_table_of_labelled_texts(tmp_path: Path, name: str) -> None:
    text = 'it\'s "good" <b>\tpositive\nbad\tnegative\n'
    made = documents(
        tmp_path / name, text, kind="classification", columns=("text", "label"), labels=LABELS,
        question="好吗",
    )  # fmt: skip
    assert made[0].fields == {
        "input": 'it\'s "good" <<b>',
        "options": {"<option_0>": "好评", "<option_1>": "差评"},
        "question": "好吗",
        "<ans>": "<option_0>",
    }
    assert made[1].place.endswith(f"{name}:2") and made[1].label == "negative"
    assert made[1].candidates == ("<option_0>", "<option_1>")
    assert made[1].references == ("<option_1>",)


def test_the_header_names_the_columns_and_quoted_texts_hold_line_feeds(tmp_path: Path) -> None:
    text = 'label,words\npositive,"one, two\nthree"\nnegative,four\n'
    made = documents(
        tmp_path / "a.csv", text, kind="classification", labels=LABELS,
        inputs={"评论": "words"}, answer="text", show_options=False,
    )  # fmt: skip
    assert [item.fields for item in made] == [
        {"评论": "one, two\nthree", "<ans>": "好评"},
        {"评论": "four", "<ans>": "差评"},
    ]
    assert [item.place.rpartition(":")[2] for item in made] == ["2", "4"]


def test_long_inputs_are_cut_where_it_is_asked_for(tmp_path: Path) -> None:
    line = json.dumps({"text": "a<b" * 9, "label": "positive"})
    shape: dict[str, Any] = {"kind": "classification", "labels": LABELS, "max_chars": 5}
    made = documents(tmp_path / "a.jsonl", line, **shape)
    assert made[0].fields["input"] == "a<<ba<<"


def test_pairs_of_json_lines_with_numbers_as_labels(tmp_path: Path) -> None:
    lines = [{"sentence1": "a", "sentence2": "b", "label": 1}]
    made = documents(
        tmp_path / "a.jsonl", json.dumps(lines[0]), kind="pairs", labels={"0": "不同", "1": "相同"}
    )
    assert made[0].fields["sentence2"] == "b" and made[0].fields["<ans>"] == "<option_1>"


def test_choices_of_one_text_that_a_pattern_takes_apart(tmp_path: Path) -> None:
    line = {"target": "1", "raw": "[翻译]明月[0]床前[1]故乡[答案]"}
    made = documents(
        tmp_path / "a.jsonl", json.dumps(line), kind="choices", label="target",
        patterns={"raw": r"\[翻译\](?P<text>.*)\[0\](?P<a>.*)\[1\](?P<b>.*)\[答案\]"},
        options=("a", "b"),
    )  # fmt: skip
    assert made[0].fields == {
        "input": "明月",
        "options": {"<option_0>": "床前", "<option_1>": "故乡"},
        "<ans>": "<option_1>",
    }


def test_the_input_is_predicted_from_each_of_the_answers(tmp_path: Path) -> None:
    line = json.dumps({"text": "a < b", "options": ["明月", "故乡"], "label": "故乡"})
    made = documents(
        tmp_path / "a.jsonl", line, kind="choices", options=("options",), answer="input",
        answer_key="诗句", show_options=False, question="q",
    )  # fmt: skip
    assert made[0].fields == {"question": "q", "诗句": "故乡", "<ans>": "a << b"}
    assert (made[0].slot, made[0].candidates) == ("诗句", ("明月", "故乡"))
    assert made[0].references == ("故乡",)


def test_a_gap_is_filled_with_one_of_a_list(tmp_path: Path) -> None:
    line = {"content": "打了一个#idiom#。", "candidates": ["措手不及", "八仙过海"], "answer": 0}
    shape: dict[str, Any] = {
        "kind": "choices", "inputs": {"input": "content"}, "options": ("candidates",),
        "label": "answer", "gap": "#idiom#", "answer": "text", "show_options": False,
    }  # fmt: skip
    made = documents(tmp_path / "a.jsonl", json.dumps(line), **shape)
    assert made[0].fields == {"input": "打了一个<mask_0>。", "<ans>": {"<mask_0>": "措手不及"}}
    assert made[0].candidates == ({"<mask_0>": "措手不及"}, {"<mask_0>": "八仙过海"})
    twice = json.dumps({**line, "content": "#idiom##idiom#"})
    assert problems(tmp_path / "a.jsonl", twice, **shape) == [("a.jsonl:1", "no gap")]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    text = b"good\tpositive\nbad\tnegativ\nx\n\t positive\n\n" + b"\xff\tpositive\n"
    found = problems(
        tmp_path / "a.tsv", text, kind="classification", columns=("text", "label"), labels=LABELS
    )
    assert found == [
        ("a.tsv:2", "unknown label"),
        ("a.tsv:3", "wrong number of columns"),
        ("a.tsv:4", "empty text"),
        ("a.tsv:5", "empty line"),
        ("a.tsv:6", "not UTF-8"),
    ]
    one = {"kind": "choices", "options": ("o",)}
    for line, reason in (
        ({"text": "a", "o": ["b", "c"], "label": 2}, "unknown label"),
        ({"text": "a", "o": ["b"], "label": 0}, "unusable options"),
        ({"text": "a", "o": ["b", "b"], "label": 0}, "unusable options"),
        ({"o": ["b", "c"], "label": 0}, "no column"),
        ({"text": [1], "o": ["b", "c"], "label": 0}, "wrong type"),
    ):
        assert problems(tmp_path / "a.jsonl", json.dumps(line), **one) == [("a.jsonl:1", reason)]


def test_a_table_without_shape_or_header_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("good\tpositive\n")
    with pytest.raises(DataError, match=r"a\.tsv: a table .* shape: \{kind: classification"):
        SourceReader(SourceConfig(str(path)))
    with pytest.raises(DataError, match="shape.columns"):
        items(path, "a\ta\nb\tc\n", kind="classification", labels=LABELS)
    with pytest.raises(DataError, match=r"a\.csv:2: not a comma-separated table"):
        items(tmp_path / "a.csv", 'text,label\n"a"b,c\n', kind="classification", labels=LABELS)


# --- extraction -----------------------------------------------------------------------------------

CONLL = "小 B-name\n楠 I-name\n在 O\n北 B-place\n京 I-place\n。 O\n\n上 B-place\n海 I-place\n"


def test_tagged_tokens(tmp_path: Path) -> None:
    types = {"name": "人名", "place": "地名"}
    text = CONLL + "和 O\n北 B-place\n京 I-place"
    made = documents(tmp_path / "a.conll", text, kind="extraction", types=types, question="找")
    assert made[0].fields == {
        "input": "小楠在北京。",
        "question": "找",
        "<ans>": {"人名": "小楠", "地名": "北京"},
    }
    assert made[1].fields["<ans>"] == {"人名": "", "地名": "上海；北京"}
    assert made[1].references == (("地名", "上海"), ("地名", "北京"))
    assert made[1].place.endswith(":8")
    found = problems(tmp_path / "a.conll", CONLL, kind="extraction", types={"name": "人名"})
    assert found == [("a.conll:4", "unknown label"), ("a.conll:8", "unknown label")]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-x I-x O", [("x", "ab")]),
        ("B-x B-x I-x", [("x", "a"), ("x", "bc")]),
        ("I-x I-y I-y", [("x", "a"), ("y", "bc")]),
        ("B-x M-x E-x", [("x", "abc")]),
        ("S-x E-x O", [("x", "a"), ("x", "b")]),
        ("O O O", []),
    ],
)
def test_spans_of_tags(tags: str, found: list[tuple[str, str]]) -> None:
    assert spans(list("abc"), tags.split()) == found


# --- reading, translation, dialogue, records ------------------------------------------------------


def test_questions_in_squads_layout(tmp_path: Path) -> None:
    answers = [{"text": "北京", "answer_start": 0}, {"text": "北京"}, {"text": "北京市"}]
    paragraph = {
        "context": "北京是首都",
        "qas": [
            {"id": "Q1", "question": "首都？", "answers": answers},
            {"id": "Q2", "question": "谁？", "answers": []},
        ],
    }
    tree = {"data": [{"paragraphs": [paragraph]}]}
    good, bad = items(tmp_path / "a.json", json.dumps(tree, indent=1), kind="reading")
    assert isinstance(good, Document) and isinstance(bad, Problem)
    assert good.fields == {"input": "北京是首都", "question": "首都？", "<ans>": "北京"}
    assert good.references == ("北京", "北京市") and good.place.endswith("a.json:Q1")
    assert (bad.place.rpartition(":")[2], bad.reason) == ("Q2", "no answer")
    for text in ("{}", "[]", "{", '{"data": [1]}'):
        with pytest.raises(DataError, match=r"a\.json: not"):
            items(tmp_path / "a.json", text, kind="reading")


def test_translation_both_ways(tmp_path: Path) -> None:
    made = documents(
        tmp_path / "a.tsv", "moon\t月\n", kind="translation", columns=("source", "target"),
        forward="英翻中", backward="中翻英",
    )  # fmt: skip
    assert [item.fields for item in made] == [
        {"input": "moon", "prompt": "英翻中", "<ans>": "月"},
        {"input": "月", "prompt": "中翻英", "<ans>": "moon"},
    ]
    assert [item.references for item in made] == [("月",), ("moon",)]


MESSAGES = [
    {"role": "system", "content": "你是诗人"},
    {"role": "user", "content": "a < b"},
    {"role": "assistant", "content": "对"},
    {"from": "human", "value": "再见\n"},
    {"from": "gpt", "value": "再见！"},
]


def test_a_dialogue_answer_by_answer(tmp_path: Path) -> None:
    line = json.dumps({"messages": MESSAGES})
    made = documents(tmp_path / "a.jsonl", line, kind="dialogue")
    first = "你是诗人\n<sep>用户： a << b\n<sep>AI："
    assert [item.fields for item in made] == [
        {"input": first, "<ans>": " 对"},
        {"input": first + " 对\n<sep>用户： 再见\n<sep>AI：", "<ans>": " 再见！"},
    ]
    made = documents(tmp_path / "a.jsonl", line, kind="dialogue", markers=True)
    assert made[0].fields == {"input": "你是诗人<用户>a << b<AI>", "<ans>": "对"}


def test_a_dialogue_with_all_answers_in_one_record(tmp_path: Path) -> None:
    line = json.dumps({"conversations": MESSAGES})
    made = documents(tmp_path / "a.jsonl", line, kind="dialogue", turns="together")
    assert [item.fields for item in made] == [
        {
            "input": "你是诗人\n<sep>用户： a << b\n<sep>AI： <mask_0>\n<sep>用户： 再见\n"
            "<sep>AI： <mask_1>",
            "<ans>": {"<mask_0>": "对", "<mask_1>": "再见！"},
        }
    ]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "no list of messages"),
        ([], "no list of messages"),
        (MESSAGES[:2], "nothing to learn"),
        ([{"role": "tool", "content": "x"}], "message 1 has role 'tool'"),
        ([MESSAGES[1], MESSAGES[0]], "message 2 is the system's"),
        ([{"role": "user"}], "message 1 has no text"),
        (["x"], "message 1 is no object"),
    ],
)
def test_dialogues_that_cannot_be_used(tmp_path: Path, messages: Any, words: str) -> None:
    line = json.dumps({"messages": messages} if messages is not None else {"x": 1})
    (found,) = items(tmp_path / "a.jsonl", line, kind="dialogue")
    assert isinstance(found, Problem) and words in found.message


def test_records_keep_their_answers_as_references(tmp_path: Path) -> None:
    lines = '{"input": "x", "<ans>": "a << b "}\n{"input": "y"}\n'
    good, bad = items(tmp_path / "a.jsonl", lines, kind="records")
    assert isinstance(good, Document) and good.references == ("a < b",)
    assert isinstance(bad, Problem) and bad.reason == "no <ans>"


# --- settings and preprocessing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"kind": "classification"}, "labels needs at least two labels"),
        ({"kind": "classification", "labels": {"a": "x", "b": "x"}}, "the same words"),
        ({"kind": "choices"}, "options names no column"),
        ({"kind": "extraction"}, "types names no type"),
        ({"kind": "translation", "forward": ""}, "forward and backward are both empty"),
        ({"kind": "reading", "balance": True}, "balance needs labels"),
        ({"kind": "choices", "options": ("a",), "show_options": False}, "needs show_options=true"),
        (
            {"kind": "choices", "options": ("a",), "answer": "input", "answer_key": "input"},
            "needs a key 'input' that no input has",
        ),
        ({"kind": "records", "patterns": {"a": "("}}, "pattern of a"),
        ({"kind": "records", "patterns": {"a": "b"}}, "no named group"),
    ],
)
def test_shapes_that_make_no_sense(shape: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ShapeConfig(**shape)


def test_preprocessing_counts_problems_and_balances_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    rows = ["a\tpositive"] * 90 + ["b\tnegative"] * 9 + ["c\tunknown"]
    path.write_text("\n".join(rows))
    labels = {"positive": "y", "negative": "n"}
    shape = ShapeConfig("classification", ("text", "label"), labels=labels, balance=True)
    source = SourceConfig(str(path), shape=shape)
    report = preprocess([source], small_tokenizer(), settings(), tmp_path / "rows", progress=False)
    assert report["invalid"]["unknown label"]["first"] == [
        f"{path}:100: label 'unknown' is not known; accepted: positive, negative"
    ]
    assert report["instances"] == 180, "each of the 9 ten times, the 90 once"
    with pytest.raises(ConfigError, match="the only task for them is record"):
        ROWS.sources([SourceConfig(str(path), tasks={"lm": 1}, shape=shape)])


def test_fractional_weights_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\tpositive\n" * 50 + "b\tnegative\n" * 40)
    shape = ShapeConfig("classification", ("text", "label"), labels=LABELS, balance=True)
    reader = SourceReader(SourceConfig(str(path), shape=shape))
    weights = Counter(item.weight for item in reader if isinstance(item, Document))
    assert weights == {1.0: 50, 1.25: 40} and reader.max_weight == 1.25


def test_a_source_takes_the_shape_of_a_task_file(tmp_path: Path) -> None:
    task = tmp_path / "reviews.yaml"
    task.write_text(
        "shape: {kind: classification, columns: [text, label], labels: {positive: y, negative: n}}"
        "\nmetrics: [accuracy]\n"
    )
    (source,) = ROWS.sources([SourceConfig("a.tsv", task=str(task))])
    assert source.shape is not None and source.shape.labels == {"positive": "y", "negative": "n"}
    assert source.tasks == {"record": 1.0}
    with pytest.raises(ConfigError, match="both shape and task"):
        SourceConfig("a.tsv", task=str(task), shape=source.shape)
