"""The programs in tools/: the form of poems, the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

from mindplm.config import SourceConfig
from mindplm.data.sources import Document, SourceReader

sys.path.insert(0, str(ROOT / "tools"))
import poems

LOST = "忍辱收珍宝，嗔●捐福田。\n高心难见佛，下意得生天。"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["poems", "poems_valid"])
def test_all_embedded_poems_are_well_formed(name: str) -> None:
    documents = list(SourceReader(SourceConfig(path=f"embedded:{name}")))
    assert len(documents) == {"poems": 15195, "poems_valid": 805}[name]
    for document in documents:
        assert isinstance(document, Document)
        assert poems.form(document.fields["text"]) == document.fields["form"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故乡。", "5x4"),
        ("床前看月光，疑是地上霜。举头望山月？低头思故乡", "5x4"),
        (LOST, "5x4"),
        ("", None),
        ("床前看月光，疑是地上霜。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，abcde。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头 思故乡。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故乡上霜。", None),
        ("。\n".join(["天" * 6 + "，" + "地" * 6] * 2), None),
    ],
)
def test_form(text: str, form: str | None) -> None:
    assert poems.form(text) == form


def test_report_counts_by_form() -> None:
    found = poems.report([LOST, LOST, "天地"], 0.8)
    assert (found["poems"], found["well_formed"], found["different"]) == (3, 2, 2)
    assert found["forms"] == {"5x4": 2}
    assert Counter(sample["form"] for sample in found["samples"]) == {"5x4": 2, None: 1}


def test_poems_of_no_checkpoint_is_an_error(tmp_path) -> None:
    done = run("poems.py", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("tokenizer", "--corpus", "poems_valid"),
        ("preprocess", "--corpus", "poems_valid"),
        ("train", "--preset", "tiny", "--vocab-size", "500", "--seq-len", "32", "--targets", "all"),
        ("generate", "--preset", "tiny", "--vocab-size", "300", "--batch", "2", "--beams", "2")
        + ("--prompt", "32", "--new", "3"),
    ],
    ids=lambda words: words[0],
)
def test_bench(words: tuple[str, ...]) -> None:
    done = run("bench.py", *words, "--json", "--runs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bench"] == words[0]
    assert found["machine"]["cores"] >= 1 and found["machine"]["mindspore"]
    assert all(result["tokens/s"] > 0 for result in found["results"])
