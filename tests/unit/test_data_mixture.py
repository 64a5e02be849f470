"""Mixture files: what they say, what is refused, and what changes take effect."""

from __future__ import annotations

import json
import logging
import os
import re

import pytest
from data_samples import write_lines

from mindplm.data.mixture import PLATFORM, MixtureFile, changes, read_mixture
from mindplm.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    for name in "AB":
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "x.jsonl", [{"<ans>": "a"}])
    (tmp_path / "t.py").write_text("def transform(data, num_sample, r):\n    return data\n")
    return tmp_path


def entry(name="A", **keys):
    return {"dataset_name": name, "task_name": "lm", "path": f"{name}/x.jsonl", **keys}


def write(folder, entries, name="mixture.json"):
    path = folder / name
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_json_and_yaml_say_the_same(folder):
    own = entry("B", weight=2.5, incontext_weight=[0.5, 0.5], transforms=[{"<ans>": "$a.b"}])
    path = write(folder, [entry("A", transforms="t.py"), own])
    text = (
        "- {dataset_name: A, task_name: lm, path: A/x.jsonl, transforms: t.py}\n"
        "- dataset_name: B\n  task_name: lm\n  path: B/x.jsonl\n  weight: 2.5\n"
        "  incontext_weight: [0.5, 0.5]\n  transforms: [{<ans>: $a.b}]\n"
    )
    entries = read_mixture(path)
    assert entries == read_mixture(write(folder, text, "mixture.yaml"))
    assert [e.name for e in entries] == ["lm.A", "lm.B"]
    assert [e.weight for e in entries] == [1.0, 2.5]
    assert entries[0].incontext_weight == (1.0,)
    assert entries[0].path == str(folder / "A" / "x.jsonl")
    assert entries[0].transforms == str(folder / "t.py")


@pytest.mark.parametrize(("entries", "words"), [
    ("[{", "broken JSON"),
    ("{}", "expected a list of entries"),
    ("[]", "at least one"),
    ([3], "entry 0: expected keys and values"),
    ([entry(wieght=2)], "unknown key wieght; did you mean weight?"),
    ([{"dataset_name": "A"}], "missing task_name, path"),
    ([entry(weight=0)], "lm.A: weight=0.0, expected > 0"),
    ([entry(weight="much")], "weight: expected a finite number"),
    ([entry(incontext_weight=[])], "lm.A: incontext_weight=[]"),
    ([entry(incontext_weight=[-1, 2])], "expected one weight > 0, none < 0"),
    ([entry(), entry()], "entry 1: lm.A was named before"),
    ([entry("C")], "entry 0 (lm.C): path {folder}/C/x.jsonl: no such file or folder"),
    ([entry(transforms="u.py")], "transforms {folder}/u.py: no such script"),
    ([entry(transforms=[{"*": "c"}])], "transforms.0: * has a * but its value is constant"),
    ([entry(transforms=[{"a": "$b.*"}])], "transforms.0: a and $b.* differ in their *"),
    ([entry(transforms=["x"])], "transforms.0: expected a record"),
    ([entry(transforms=[{"a": 3}])], "transforms.0: a is no text"),
])  # fmt: skip
def test_mistakes_name_the_entry(folder, entries, words):
    path = write(folder, entries)
    with pytest.raises(ConfigError, match=re.escape(words.format(folder=folder))) as caught:
        read_mixture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such mixture file"):
        read_mixture(tmp_path / "none.json")


def test_prefixes_of_the_platform(folder, monkeypatch):
    path = write(folder, [entry("A", path="x.jsonl")])
    (folder / "platform.json").write_text(json.dumps({"dataset_map": {"A": "B"}}))
    monkeypatch.setenv(PLATFORM, str(folder / "platform.json"))
    assert read_mixture(path)[0].path == str(folder / "B" / "x.jsonl")
    monkeypatch.setenv(PLATFORM, str(folder / "none.json"))
    with pytest.raises(ConfigError, match="expected JSON with the key dataset_map"):
        read_mixture(path)


def test_changes_take_effect_and_broken_files_do_not(folder, caplog):
    path = write(folder, [entry("A"), entry("B")])
    mixture = MixtureFile(path)
    assert not mixture.refresh()
    steps = [
        ([entry("A", weight=3), entry("B")], True),
        ("[{", False),
        ([entry("A", weight=3), entry("B")], False),
        ([entry("A", weight=3, transforms="t.py")], True),
    ]
    logging.getLogger("mindplm").propagate = True
    for number, (entries, changed) in enumerate(steps, start=1):
        write(folder, entries)
        os.utime(path, ns=(number * 10**9, number * 10**9))
        before = mixture.entries
        assert mixture.refresh() == changed
        assert not mixture.refresh()
        assert (mixture.entries != before) == changed
    assert [e.name for e in mixture.entries] == ["lm.A"]
    assert mixture.entries[0].transforms == str(folder / "t.py")
    assert "the mixture stays as it was" in caplog.text


def test_changes_in_words(folder):
    old = read_mixture(write(folder, [entry("A"), entry("B")]))
    new = read_mixture(write(folder, [entry("A", weight=2, transforms="t.py")]))
    assert changes(old, new) == [
        "weight of lm.A was 1.0, is 2.0",
        f"transforms of lm.A was None, is {folder / 't.py'}",
        "lm.B was removed",
    ]
    assert changes(new, old)[-1] == "lm.B was added"
