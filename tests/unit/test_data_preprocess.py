"""From sources to rows: counts, errors, and the same rows however many processes work."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from data_samples import POEM, SHAPE, settings, small_tokenizer, source, write_lines

from mindplm.data.packing import ext_table
from mindplm.data.pool import ordered_map
from mindplm.data.preprocess import preprocess
from mindplm.data.records import open_folder
from mindplm.errors import ConfigError, DataError

TOKENIZER = small_tokenizer()


def run(sources, folder, **keys):
    own = settings(**{k: keys.pop(k) for k in ("repeat", "seed", "shape", "lenient") if k in keys})
    return preprocess(sources, TOKENIZER, own, folder, progress=False, **keys)


def all_rows(folder):
    rows = open_folder(folder)
    return list(rows.read(np.arange(len(rows))))


def texts(count):
    return [{"text": POEM[i % 5 :] * (1 + i % 7), "title": "静夜思"} for i in range(count)]


def test_report_and_rows_agree(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, texts(40))
    report = run([source(path)], tmp_path / "train", repeat=2)
    rows = all_rows(tmp_path / "train")
    index = open_folder(tmp_path / "train").index
    assert report["documents"] == 40
    assert report["draws"] == 80
    assert report["pieces"] == report["instances"] == sum(len(row.task_ids) for row in rows)
    assert report["rows"] == len(rows)
    assert report["tokens"] == sum(map(len, rows)) == index.length.sum()
    assert report["targets"] == index.num_targets.sum() == sum(row.num_targets for row in rows)
    assert report["target_characters"] == index.num_chars.sum()
    assert report["characters"] == sum(len(text["text"]) for text in texts(40))
    assert report["fill"] == pytest.approx(report["tokens"] / (SHAPE.seq_len * len(rows)), abs=1e-4)
    assert sum(report["tasks"].values()) == report["instances"]
    assert json.loads((tmp_path / "train" / "report.json").read_text()) == report


def test_all_text_is_in_the_answers_of_written_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, texts(30))
    report = run([source(path, tasks={"write": 1.0})], tmp_path / "train")
    assert report["target_characters"] == report["characters"]


@pytest.mark.parametrize("workers", [2, 3])
def test_rows_do_not_depend_on_the_number_of_processes(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("mindplm.data.preprocess._SMALL_BYTES", 0)
    monkeypatch.setattr("mindplm.data.chunks.CHUNK_BYTES", 1500)
    write_lines(tmp_path / "a.jsonl", texts(60))
    (tmp_path / "b.txt").write_text("the moon\n\n" * 30)
    made = [source(tmp_path / "a.jsonl"), source(tmp_path / "b.txt", weight=1.5)]
    for number in (1, workers):
        run(made, tmp_path / str(number), workers=number)
    one, other = all_rows(tmp_path / "1"), all_rows(tmp_path / str(workers))
    assert len(one) == len(other)
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.task_ids, b.task_ids)


def test_seed_changes_the_draws(tmp_path):
    write_lines(tmp_path / "a.jsonl", texts(10))
    for seed in (1, 2, 1):
        run([source(tmp_path / "a.jsonl")], tmp_path / f"train{seed}", seed=seed)
    first, second = all_rows(tmp_path / "train1"), all_rows(tmp_path / "train2")
    assert any(
        a.tokens.shape != b.tokens.shape or (a.tokens != b.tokens).any()
        for a, b in zip(first, second)
    )


def test_weight_is_the_number_of_draws(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", texts(200))
    made = [source(tmp_path / "a.jsonl", weight=2.0), source(tmp_path / "b.jsonl", weight=0.25)]
    report = run(made, tmp_path / "train")
    assert report["sources"]["a"]["draws"] == 400
    assert 30 < report["sources"]["b"]["draws"] < 70


BROKEN = [
    {"input": "a", "<ans>": "b"},
    {"input": "a"},
    {"input": "a < b", "<ans>": "b"},
    {"input": "<用户>", "<ans>": "b"},
    {"input": ["a"], "<ans>": "b"},
    {"input": "a", "<ans>": {}},
    {"input": "a" * 200, "<ans>": "b"},
    {"input": "".join(f"<mask_{i}>" for i in range(30)), "<ans>": "b"},
    {str(i): "" for i in range(11)} | {"<ans>": "b"},
]


def test_what_cannot_be_used_is_counted_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, BROKEN)
    path.write_text(path.read_text() + "{broken\n")
    report = run([source(path, tasks={"record": 1.0})], tmp_path / "train", repeat=3,
                 shape=SHAPE._replace(max_rel=500), lenient=False)  # fmt: skip
    found = {reason: entry["first"][0] for reason, entry in report["invalid"].items()}
    lines = {"no <ans>": 2, "invalid text": 3, "unknown tag": 4, "wrong type": 5,
             "nothing to predict": 6, "too long": 7, "too many indexed tokens": 8,
             "too many segments": 9, "broken JSON": 10}  # fmt: skip
    assert {r: e["count"] for r, e in report["invalid"].items()} == dict.fromkeys(lines, 1)
    for reason, line in lines.items():
        assert found[reason].startswith(f"{path}:{line}: "), found[reason]
        assert "\n" not in found[reason]
    assert report["too_long"] == 1
    assert report["num_invalid"] == 9
    assert report["instances"] == 3


def test_strict_stops_at_the_first(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, BROKEN)
    with pytest.raises(DataError, match=r"a.jsonl:2: record without <ans>"):
        run([source(path, tasks={"record": 1.0})], tmp_path / "train", strict=True)
    assert not (tmp_path / "train").exists()


def test_nothing_usable_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, BROKEN[1:])
    with pytest.raises(DataError, match=r"nothing in it can be used; .*a.jsonl:2: "):
        run([source(path, tasks={"record": 1.0})], tmp_path / "train", lenient=False)
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        run([source(path)], tmp_path / "train")
    assert not (tmp_path / "train").exists()
    with pytest.raises(DataError, match="no such file"):
        run([source(tmp_path / "b.jsonl")], tmp_path / "train")
    with pytest.raises(ConfigError, match="task 'sing' is not known"):
        run([source(path, tasks={"sing": 1.0})], tmp_path / "train")


def test_any_rows_fit_into_one_extension_table(tmp_path):
    shape = SHAPE._replace(max_ext=6)
    write_lines(tmp_path / "a.jsonl", [{"text": f"A{i}BCDE月F明G" * 3} for i in range(30)])
    write_lines(tmp_path / "b.jsonl", [
        {"input": "".join(f"<option_{k}>" for k in range(i % 5)), "<ans>": "XYa"}
        for i in range(30)
    ])  # fmt: skip
    made = [source(tmp_path / "a.jsonl"), source(tmp_path / "b.jsonl", tasks={"record": 1.0})]
    report = run(made, tmp_path / "train", shape=shape)
    assert len(ext_table(all_rows(tmp_path / "train"))[0]) <= 6
    assert report["invalid"].keys() <= {"too many indexed tokens"}
    assert sum(n for name, n in report["tasks"].items() if name.startswith("a/")) >= 30


def square(number):
    if number == 13:
        raise ValueError("unlucky")
    return number * number


def test_work_comes_back_in_order_and_so_do_errors():
    assert list(ordered_map(square, range(9), 2)) == [n * n for n in range(9)]
    with pytest.raises(ValueError, match="unlucky"):
        list(ordered_map(square, range(20), 2))


def test_a_worker_that_dies_ends_the_work():
    with pytest.raises(RuntimeError, match="a worker process ended"):
        list(ordered_map(os._exit, [3, 3, 3], 2))


def test_records_are_mended_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"input": "a < b", "<ans>": "c"}, {"input": "<用户>明<AI>", "<ans>": "月"},
                       {"input": "a", "<ans>": "b"}])  # fmt: skip
    report = run([source(path, tasks={"record": 1.0})], tmp_path / "train")
    assert report["instances"] == 3
    assert report["notes"]["mended records"] == 2
    by_hand = [{"input": "a << b", "<ans>": "c"}, {"input": "用户： 明\n<sep>AI：", "<ans>": "月"},
               {"input": "a", "<ans>": "b"}]  # fmt: skip
    write_lines(path, by_hand)
    again = run([source(path, tasks={"record": 1.0})], tmp_path / "again", lenient=False)
    assert "mended records" not in again["notes"]
    one, other = all_rows(tmp_path / "train"), all_rows(tmp_path / "again")
    assert [row.tokens.tolist() for row in one] == [row.tokens.tolist() for row in other]


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_documents_are_left_out_on_request(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("mindplm.data.preprocess._SMALL_BYTES", 0)
    monkeypatch.setattr("mindplm.data.preprocess.BUCKET_BYTES", 5000)
    monkeypatch.setattr("mindplm.data.chunks.CHUNK_BYTES", 1500)
    different = [{"text": f"{POEM}{i}"} for i in range(60)]
    write_lines(tmp_path / "a.jsonl", [*different, *different[:25]])
    write_lines(tmp_path / "b.jsonl", [*different[50:], {"text": POEM * 9}, {"text": POEM * 9}])
    made = [source(tmp_path / f"{name}.jsonl", tasks={"write": 1.0}) for name in "ab"]
    made[0] = source(made[0].path, weight=2.0, tasks={"write": 1.0})
    plain = run(made, tmp_path / "all", workers=workers)
    assert (plain["duplicates"], plain["documents"]) == (0, 97)
    report = run(made, tmp_path / "train", workers=workers, dedup=True)
    assert report["documents"] == 97
    assert report["duplicates"] == 25 + 10 + 1
    assert report["sources"]["a"]["duplicates"] == 25
    written = 2 * sum(len(d["text"]) for d in different) + len(POEM) * 9
    assert report["target_characters"] == written


def test_tasks_are_named_by_the_source_and_sorted(tmp_path):
    write_lines(tmp_path / "a.jsonl", texts(20))
    write_lines(tmp_path / "b.jsonl", [{"input": "a", "<ans>": "b"}] * 5)
    write_lines(tmp_path / "c.jsonl", [{"input": "a", "<ans>": "c"}] * 7)
    made = [source(tmp_path / "a.jsonl", tasks={"write": 1.0, "lm": 1.0}),
            source(tmp_path / "b.jsonl", tasks={"record": 1.0}, task_name="qa"),
            source(tmp_path / "c.jsonl", tasks={"record": 1.0}, task_name="qa")]  # fmt: skip
    report = run(made, tmp_path / "train")
    names = open_folder(tmp_path / "train").task_names
    assert names == sorted(set(names))
    assert report["tasks"]["qa"] == 12
    counts = np.bincount(np.concatenate([row.task_ids for row in all_rows(tmp_path / "train")]))
    assert {names[i]: int(n) for i, n in enumerate(counts) if n} == report["tasks"]


def test_lengths_and_unknown_characters_are_reported(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"input": "abcXY", "<ans>": "b"}] * 4)
    report = run([source(tmp_path / "a.jsonl", tasks={"record": 1.0})], tmp_path / "train")
    assert report["lengths"] == {"<= 32": 4}
    assert report["notes"]["unknown tokens"] == 4
