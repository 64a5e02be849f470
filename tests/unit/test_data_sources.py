"""Reading texts and JSON lines: what is broken is named by file and line."""

from __future__ import annotations

import gzip
import json

import pytest
from data_samples import source

from mindplm.data.sources import Document, Problem, SourceReader, find_files
from mindplm.errors import ConfigError, DataError


def read(path, **keys):
    items = list(SourceReader(source(path, **keys)))
    documents = [item for item in items if isinstance(item, Document)]
    return documents, [item for item in items if isinstance(item, Problem)]


def test_a_blank_line_ends_a_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一\r\n二\r\n\r\n \n三\n".encode())
    documents, problems = read(path)
    assert [d.fields["text"] for d in documents] == ["一\n二", "三"]
    assert [d.place for d in documents] == [f"{path}:1", f"{path}:5"]
    assert not problems


def test_a_very_long_text_is_cut_between_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("mindplm.data.readers._LONGEST_TEXT", 10)
    path = tmp_path / "a.txt"
    path.write_text("abcde\n" * 5)
    documents, _ = read(path)
    assert "\n".join(d.fields["text"] for d in documents) == "\n".join(["abcde"] * 5)
    assert len(documents) == 3


def test_gzipped_files_and_patterns(tmp_path):
    for name in ("b", "a"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"text": name}) + "\n")
    (tmp_path / "sub.jsonl").mkdir()
    documents, _ = read(tmp_path / "*.jsonl*")
    assert [d.fields["text"] for d in documents] == ["a", "b"]


def test_broken_lines_are_named_and_the_others_read(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}', b'{"text": ', b"", b'["a"]', b'{"title": "x"}', b'{"text": 3}',
        b'{"text": " "}', b'{"text": "\xff"}', b'{"text": "also good"}', b"[" * 100_000,
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    documents, problems = read(path)
    assert [d.fields["text"] for d in documents] == ["good", "also good"]
    reasons = [(p.place.rsplit(":", 1)[1], p.reason) for p in problems]
    assert reasons == [
        ("2", "broken JSON"), ("3", "empty line"), ("4", "wrong type"), ("5", "no text"),
        ("6", "wrong type"), ("7", "empty text"), ("8", "not UTF-8"), ("10", "broken JSON"),
    ]  # fmt: skip
    assert all("\n" not in str(problem) for problem in problems)


def test_a_text_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\xfe\ntwo\n")
    documents, problems = read(path)
    assert [d.fields["text"] for d in documents] == ["one\ntwo"]
    assert str(problems[0]).startswith(f"{path}:2: not UTF-8")


def test_an_empty_file_is_a_problem(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text("")
        documents, problems = read(tmp_path / name)
        assert not documents
        assert [p.reason for p in problems] == ["empty file"]


def test_records_and_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"<ans>": "a"}\n{"text": "b"}\n')
    documents, problems = read(path, tasks={"record": 1.0})
    assert [list(d.fields) for d in documents] == [["<ans>"]]
    assert [p.reason for p in problems] == ["no <ans>"]
    documents, problems = read(path, tasks={"record": 1.0, "lm": 1.0})
    assert len(documents) == 2
    assert not problems
    documents, problems = read(path, tasks={"lm": 1.0})
    assert [p.reason for p in problems] == ["no text"]


def test_the_text_may_have_another_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "b"}\n{"text": "t"}\n')
    documents, problems = read(path, text_field="body")
    assert [d.fields["text"] for d in documents] == ["b"]
    assert "no text under 'body'" in problems[0].message


def test_embedded_corpora():
    documents, problems = read("embedded:poems_valid")
    assert len(documents) > 500
    assert not problems
    assert documents[0].place == "embedded:poems_valid:1"
    with pytest.raises(ConfigError, match="poems, poems_valid"):
        find_files("embedded:novels")


def test_paths_that_cannot_be_read(tmp_path):
    (tmp_path / "a.xls").write_text("a")
    for path, words in [
        (tmp_path / "none.txt", "none.txt: no such file"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path, "is a folder"),
        (tmp_path / "a.xls", "unknown kind of file; expected .jsonl"),
    ]:
        with pytest.raises(DataError, match=words.replace("*", ".")):
            find_files(str(path))


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"line\n" * 1000)[:-20])
    with pytest.raises(DataError, match=r"a.txt.gz:\d+: damaged or cut-off"):
        read(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="damaged or cut-off"):
        read(path)
