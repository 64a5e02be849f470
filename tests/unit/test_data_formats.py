"""Kinds of input files: the same documents come out, in chunks of bounded size."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from data_samples import POEM, source
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.data import chunks
from mindplm.data.binary import DatasetWriter
from mindplm.data.sources import Document, Problem, SourceReader
from mindplm.errors import DataError

TEXTS = [f"{POEM}{i}" * (1 + i % 5) for i in range(60)] + ['a "quoted", text\nof two lines', "x,y"]


def documents(path, **keys):
    items = list(SourceReader(source(path, **keys)))
    assert not [item for item in items if isinstance(item, Problem)]
    return items


def texts(path, **keys):
    return [item.fields["text"] for item in documents(path, **keys)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)


def write(path, kind):
    texts = [text.replace("\n", " ") for text in TEXTS] if kind == "tsv" else TEXTS
    objects = [{"text": text, "title": str(i)} for i, text in enumerate(texts)]
    lines = [json.dumps(value, ensure_ascii=False) for value in objects]
    if kind == "tsv":  # where nothing is quoted
        cells = [["text", "title"], *([v["text"], v["title"]] for v in objects)]
        path.write_text("\n".join("\t".join(row) for row in cells), encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["text", "title"])
            table.writerows([value["text"], value["title"]] for value in objects)
    elif kind == "array":
        path.write_text("\ufeff [\n" + " ,\n".join(lines) + "\n]\n", encoding="utf-8")
    elif kind == "pretty":
        path.write_text(json.dumps(objects, indent=2, ensure_ascii=False), encoding="utf-8")
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(objects), path)
    else:
        path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(("name", "kind"), [
    ("a.csv", "csv"), ("a.tsv", "tsv"), ("a.json", "array"), ("b.json", "pretty"),
    ("c.json", "lines"), ("a.jsonl", "lines"), ("a.parquet", "parquet"),
])  # fmt: skip
def test_tables_arrays_and_lines(tmp_path, name, kind):
    write(tmp_path / name, kind)
    found = documents(tmp_path / name)
    wanted = [text.replace("\n", " ") for text in TEXTS] if kind == "tsv" else TEXTS
    assert [item.fields["text"] for item in found] == wanted
    assert [item.fields["title"] for item in found] == [str(i) for i in range(len(TEXTS))]
    assert len({item.place for item in found}) == len(TEXTS)


def pack(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
        return
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    half = len(data) // 2  # two frames, as files that were put together have
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:])]
    path.write_bytes(b"".join(frames))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(("name", "kind"), [("a.csv", "csv"), ("a.json", "array"),
                                            ("a.jsonl", "lines")])  # fmt: skip
def test_packed_files(tmp_path, name, kind, suffix):
    path = tmp_path / (name + suffix)
    write(path, kind)
    pack(path)
    assert texts(path) == TEXTS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{name}{suffix}:\d+: damaged or cut-off"):
        texts(path)


@pytest.mark.parametrize("payload", ["pickle", "json"])
def test_binary_data_sets(tmp_path, payload):
    folder = tmp_path / "set"
    for name, part in (("p", TEXTS[:40]), ("q", TEXTS[40:])):
        with DatasetWriter(folder, name, block_bytes=5000, payload=payload) as writer:
            for text in part:
                writer.write({"text": text})
    assert texts(folder) == TEXTS
    numbers = [number for chunk in SourceReader(source(folder)).chunks()
               for number, _ in SourceReader(source(folder)).documents(chunk)]  # fmt: skip
    assert len(set(numbers)) == len(TEXTS)


def test_pickles_that_would_run_something_are_refused(tmp_path):
    with DatasetWriter(tmp_path / "set", "p", payload="raw") as writer:
        writer.write(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00lsq\x00\x85R.")
        writer.write(b'{"text": "good"}')
        writer.write(b"3")
    items = list(SourceReader(source(tmp_path / "set")))
    assert [type(item) for item in items] == [Problem, Document, Problem]
    assert "refused: its pickle asks for os.system" in str(items[0])
    assert items[0].reason == "broken record"


@given(st.lists(st.text(alphabet="ab明\n \r", max_size=40), max_size=30), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_chunks_of_texts_change_nothing(tmp_path_factory, parts, size):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes("\n\n".join(parts).encode())
    whole = list(SourceReader(source(path)))
    old, chunks.CHUNK_BYTES = chunks.CHUNK_BYTES, size
    try:
        assert list(SourceReader(source(path))) == whole
    finally:
        chunks.CHUNK_BYTES = old


def test_chunks_are_small_whatever_the_file(tmp_path):
    for kind, name in (("csv", "a.csv"), ("lines", "a.jsonl"), ("array", "a.json")):
        write(tmp_path / name, kind)
        pieces = list(SourceReader(source(tmp_path / name)).chunks())
        assert len(pieces) > 5
        assert all(len(piece.content()) < 700 + 2000 for piece in pieces)
        assert sum(piece.read_bytes for piece in pieces) == (tmp_path / name).stat().st_size


def test_rows_of_tables_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,title\r\none,1\r\ntwo\r\n\r\n\xff,4\r\nfive,5\r\n")
    items = list(SourceReader(source(path)))
    assert [item.place for item in items] == [f"{path}:{line}" for line in (2, 3, 4, 5, 6)]
    reasons = [item.reason for item in items if isinstance(item, Problem)]
    assert reasons == ["wrong number of columns", "empty line", "not UTF-8"]
    path.write_text("text,text\n1,2\n")
    with pytest.raises(DataError, match=r"a.csv:1: the first line cannot be the names"):
        SourceReader(source(path))


@pytest.mark.parametrize(("text", "words"), [
    ('[{"text": "a"}, {"text": ', "broken JSON after item 1"),
    ('[{"text": "a"} {"text": "b"}]', "broken JSON after item 1: no comma"),
    ('[{"text": "a"}', "after item 1: the array does not end"),
])  # fmt: skip
def test_broken_arrays_are_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        texts(tmp_path / "a.json")


def test_empty_files_of_all_kinds(tmp_path):
    for name, content in (("a.csv", ""), ("a.json", "[]"), ("b.json", ""), ("a.tsv", "")):
        (tmp_path / name).write_text(content)
        (item,) = SourceReader(source(tmp_path / name))
        assert item.reason == "empty file"


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(DataError, match=r"needs the package zstandard; .*mindplm\[zstd\]"):
        texts(tmp_path / "a.txt.zst")


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "LARGEST_BYTES", 5000)
    (tmp_path / "a.jsonl").write_text("x" * 20_000)
    with pytest.raises(DataError, match="no place to cut"):
        texts(tmp_path / "a.jsonl")
