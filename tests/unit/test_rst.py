"""Signals: the table, what is drawn, what lines are refused, and how they become rows."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mindplm import assets
from mindplm.config import RunConfig, SourceConfig
from mindplm.config_shape import ShapeConfig
from mindplm.data import rst
from mindplm.data.cpm_bee import RecordError
from mindplm.data.documents import Document, Problem
from mindplm.data.draw import Work
from mindplm.data.kinds import Draws, RowSettings
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.pair_rows import ROWS
from mindplm.data.pair_text import Source, options_text, source_ids, source_of, target_ids
from mindplm.data.rst_cases import CASES
from mindplm.data.sources import SourceReader
from mindplm.errors import ConfigError, DataError
from mindplm.families import FAMILIES, load_config
from mindplm.tokenizers.sentencepieces import T5Tokenizer

TOKENIZER = T5Tokenizer.from_file(assets.path("pieces_t5.model"))
PARTS = [{"text": f"{name} lives there.", "entities": [name]} for name in ("Ada", "Bo", "Cy", "Di")]


def test_the_table_has_all_signals_in_both_formats_and_languages():
    table = rst.signals()
    assert len(table) == 30
    for kind in table.values():
        forms = Counter((prompt.chooses, prompt.language) for prompt in kind.prompts)
        assert forms[True, "en"] == forms[True, "zh"] == 2
        assert forms[False, "en"] == forms[False, "zh"] >= 2
        for prompt in kind.prompts:
            assert prompt.ask[0] in CASES and ("{options}" in prompt.query) == prompt.chooses
    assert sum(kind.samples for kind in table.values()) == 46_926_447
    for name, ability in rst.abilities().items():
        assert set(ability.signals) <= set(table), name
    assert len(rst.abilities()["all"].signals) == 30


def test_options_are_listed_as_people_list_them():
    assert options_text(["a"], "en") == '"a"'
    assert options_text(["a", "b"], "en") == '"a" or "b"'
    assert options_text(["a", "b", "c"], "en") == '"a", "b" or "c"'
    assert options_text(["a", "b", "c"], "zh") == "“a”、“b”还是“c”"


def test_braces_in_a_field_are_no_places():
    fields = {"text": "a {query} of {options}", "low_category": "{low_category}"}
    assert rst.filled("{text}: {low_category}", fields) == "a {query} of {options}: {low_category}"


def asked(name: str, record: dict, others: list[dict], seeds: int = 60) -> list[rst.Asked]:
    kind = rst.signal(name)
    return [rst.ask(kind, record, others, np.random.default_rng(i)) for i in range(seeds)]


def test_every_prompt_is_drawn_and_negatives_are_no_right_answers():
    rich = {"text": "Ada met BO and Eve.", "entities": ["Ada", "Bo "]}
    found = asked("wikipedia_entities", rich, [rich, *PARTS])
    assert {a.prompt.name for a in found} == {
        p.name for p in rst.signal("wikipedia_entities").prompts
    }
    for item in found:
        if item.options:
            wrong = set(item.options) - {item.target}
            assert item.target in rich["entities"] and wrong and wrong <= {"Cy", "Di"}
        else:
            assert item.target == ("Ada; Bo " if item.prompt.language == "en" else "Ada；Bo ")
    orders = {a.options.index(a.target) for a in found if a.options}
    assert len(orders) > 1


def test_without_other_records_the_question_is_open():
    assert all(
        not item.options for item in asked("arxiv_category", {"text": "t", "category": "c"}, [])
    )


def test_labels_are_translated_and_fixed_sets_are_shuffled():
    record = {"premise": "It rains.", "hypothesis": "It is dry.", "label": "contradiction"}
    found = asked("qa_control", record, [])
    zh = [item for item in found if item.prompt.language == "zh"]
    assert {item.target for item in zh} == {"矛盾"}
    orders = {item.options for item in zh if item.options}
    assert len(orders) > 1 and all(set(o) == {"蕴含", "矛盾", "无法判断"} for o in orders)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("rotten_tomatoes_sentiment", {"review": "x", "rating": 0.5}, "neither good nor bad"),
        ("rotten_tomatoes_sentiment", {"review": "x", "rating": 4.0}, "expected 0 to 1"),
        ("wordnet_pos", {"word": "a", "sentence": "b", "pos": "x"}, "accepted: noun, verb"),
        ("wikipedia_entities", {"text": "x", "entities": []}, "nothing can be asked"),
        ("wikipedia_sections", {"texts": ["x"], "titles": []}, "expected as many"),
    ],
)
def test_records_that_make_no_sense_are_told(name, record, message):
    with pytest.raises(RecordError, match=message):
        rst.ask(rst.signal(name), record, [], np.random.default_rng(0))


# --- lines ----------------------------------------------------------------------------------------


def read(path: Path, lines: list[str], **shape: str) -> list[Document | Problem]:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    source = SourceConfig(str(path), shape=ShapeConfig("signal", **shape))
    return list(SourceReader(ROWS.sources([source])[0]))


def test_lines_are_checked_with_their_number(tmp_path):
    lines = [
        '{"text": "a", "entities": ["a"]}',
        "{'text': 'it''s', 'entities': ['b']}",
        '{"text": "a"}',
        '{"text": "a", "entities": ["a"], "more": 1}',
        '{"text": "a", "entities": [1]}',
        "{'text': __import__('os').getcwd(), 'entities': []}",
        '{"text": "  ", "entities": []}',
    ]
    found = read(tmp_path / "x.jsonl", lines, signal="wikipedia_entities")
    good = [item.fields["data"] for item in found if isinstance(item, Document)]
    assert good == [{"text": "a", "entities": ["a"]}, {"text": "its", "entities": ["b"]}]
    told = [str(item) for item in found if isinstance(item, Problem)]
    words = ("needs the field 'entities'", "no field 'more'", "a list of texts", "JSON", "empty")
    for number, message, word in zip((3, 4, 5, 6, 7), told, words):
        assert f"x.jsonl:{number}" in message and word in message


def test_lines_that_name_their_signal_and_fields_under_other_names(tmp_path):
    dream = {"text": "t", "question": "q", "options": "['a', 'b']", "answer": "a"}
    (item,) = read(tmp_path / "a.jsonl", [json.dumps({"signal": "qa_dream", "data": dream})])
    assert item.fields == {
        "signal": "qa_dream",
        "data": {"context": "t", "question": "q", "options": ["a", "b"], "answer": "a"},
    }
    (item,) = read(tmp_path / "b.jsonl", ['{"signal": "qa_dreams", "data": {}}'])
    assert "did you mean qa_dream" in str(item)
    (item,) = read(
        tmp_path / "c.jsonl",
        ['{"text": "t", "title": "s", "more": 1}'],
        signal="arxiv_summary",
        inputs={"text": "text", "summary": "title"},  # type: ignore[arg-type]
    )
    assert item.fields["data"] == {"text": "t", "summary": "s"}
    with pytest.raises(ConfigError, match="signal 'wiki' is not known"):
        read(tmp_path / "d.jsonl", ["{}"], signal="wiki")


# --- pairs ----------------------------------------------------------------------------------------


def test_records_are_read_with_their_markers():
    assert str(source_of({"input": "a", "<ans>": ""})) == "a"
    assert str(source_of({"text": "a", "query": "b?"})) == "TEXT: a QUERY: b?"
    assert str(source_of({"question": "b?"})) == "QUERY: b?"
    record = {"题目": "甲", "question": "是{options}？", "options": {"<option_0>": "x", "o": "y"}}
    assert str(source_of(record)) == "TEXT: 题目: 甲 QUERY: 是“x”还是“y”？"
    assert source_of({"input": "1 << 2 <extra_id_0>"}).context == "1 << 2 <extra_id_0>"
    with pytest.raises(DataError, match="expected a record with a text"):
        source_of({"<ans>": "x"})


def test_the_context_is_cut_and_the_question_kept():
    source = Source("one two three four " * 20, "which?")
    whole = source_ids(source, TOKENIZER, 1000)
    assert not whole.cut and whole.ids[-1] == TOKENIZER.eos_id
    assert whole.ids[:-1] == TOKENIZER.encode(str(source))
    cut = source_ids(source, TOKENIZER, 40)
    assert cut.cut and len(cut.ids) == 40
    tail = [*TOKENIZER.encode("QUERY: which?"), TOKENIZER.eos_id]
    assert cut.ids[-len(tail) :] == tail
    with pytest.raises(DataError, match="the question has"):
        source_ids(source, TOKENIZER, len(tail))
    assert target_ids("one two three", TOKENIZER, 3).cut


def test_rows_hold_pairs_and_texts_whose_runs_are_drawn_anew():
    shape = RowShape(48, 0, 0, 24)
    sources = [
        SourceConfig("a", tasks={"signal": 1.0}),
        SourceConfig("b", tasks={"record": 1.0}),
        SourceConfig("c", tasks={"corrupt": 1.0}),
    ]
    drawer = ROWS.drawer(sources, ["a", "b", "c"], TOKENIZER, RowSettings(shape))
    texts = [
        Document(f"a:{i}", {"signal": "wikipedia_entities", "data": d}) for i, d in enumerate(PARTS)
    ]
    works = [
        Work(0, 0, 0, texts[0], texts),
        Work(1, 0, 0, Document("b:1", {"input": "come in", "<ans>": "go out"})),
        Work(2, 0, 0, Document("c:1", {"text": "all that glitters is not gold. " * 9})),
    ]
    packer = ROWS.packer(4, shape)
    drawn = drawer.many(works)
    assert not [problem for item in drawn for problem in item.problems]
    pieces = [piece for item in drawn for piece in item.instances]
    assert [piece.task for piece in pieces[:3]] == [2, 4, 6] and len(pieces) > 3
    rows = [row for piece in pieces for row in packer.add(piece)]
    again = [ROWS.row(row.arrays()) for row in rows]
    ext = (np.zeros(1, np.int32), np.ones(1, np.int32))

    def columns(epoch: int) -> dict[str, np.ndarray]:
        draws = Draws(ext, 1, [(epoch, i) for i in range(len(again))])
        return ROWS.collate(again, num_rows=8, shape=shape, marks=TOKENIZER, draws=draws)

    first, second = columns(0), columns(1)
    assert (first["ids"][:2] == second["ids"][:2]).all()
    assert (first["ids"][2] != second["ids"][2]).any()
    assert TOKENIZER.decode(first["ids"][1][:8]) == "come in"
    for place, row in enumerate(rows):
        real = first["targets"][place] != IGNORE
        written = first["targets"][place][real]
        assert written[-1] == TOKENIZER.eos_id and len(written) == row.num_targets
        assert first["decoder_ids"][place][1 : len(written)].tolist() == written[:-1].tolist()
        assert first["decoder_ids"][place][0] == 0
    assert not first["real"][len(rows) :].any()
    both = [*first["ids"][2], *first["targets"][2]]
    kept = [i for i in both if i > 2 and i < TOKENIZER.pieces.size]
    assert sorted(kept) == sorted(rows[2].tokens[0].tolist())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_rows_are_can_be_handed_to_other_processes(name):
    kind = FAMILIES[name].part("rows")
    assert pickle.loads(pickle.dumps(kind)) == kind


def test_settings_that_cannot_hold_a_target_are_refused():
    def config(**data: int) -> RunConfig:
        keys = [f"data.{name}={value}" for name, value in data.items()]
        return load_config("configs/t5/tiny.yaml", keys)

    shape = ROWS.settings(config(seq_len=512), "train").shape
    assert shape.max_targets == 128
    with pytest.raises(ConfigError, match="data.max_targets=20"):
        ROWS.settings(config(seq_len=512, max_targets=20), "train")
    with pytest.raises(ConfigError, match="there are 100 sentinels"):
        ROWS.settings(config(seq_len=2048), "train")


def test_sentinels_are_read_and_written():
    text = "山<extra_id_0>水 in<extra_id_1> the park\n<extra_id_99>"
    ids = TOKENIZER.encode(text)
    first = TOKENIZER.first_sentinel
    assert [i for i in ids if i >= TOKENIZER.pieces.size] == [first, first - 1, first - 99]
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode("<extra_id_100>")[0] < TOKENIZER.pieces.size
    assert TOKENIZER.vocab_size == 8192 and max(TOKENIZER.silent_ids) == 8191
