"""Files of records: order, errors in their place, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from test_generate_engine import PROMPTS, TOKENIZER, model

from mindplm.config import GenerateConfig
from mindplm.errors import ConfigError, DataError
from mindplm.generate import generate, jobs
from mindplm.generate.jobs import FileJob, Settings
from mindplm.generate.policies import stream_of

CONFIG = GenerateConfig(max_new_tokens=5, temperature=1.0)
LINES = [
    *(json.dumps(prompt) for prompt in PROMPTS),
    "",
    '{"input": ',
    '{"input": "no answer"}',
    json.dumps("plain text"),
    json.dumps({"input": "a" * 3000, "<ans>": ""}),
    "[" * 50_000,
    "   ",
    '{"input": "\\ud800", "<ans>": ""}',
    *(json.dumps({"input": "ab" * n, "<ans>": ""}) for n in range(9)),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes("\n".join(LINES).encode() + b"\n\xff\xfe\n3")
    return path


def outcome(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(source: Path, out: Path, net=None, **changes):
    settings = Settings(CONFIG, **{"seed": 7, "batch_size": 4, **changes})
    return FileJob(source, out, settings).run(net or model(), TOKENIZER, progress=False)


def test_results_stand_in_order_and_errors_in_their_place(source: Path, tmp_path: Path) -> None:
    report = run(source, tmp_path / "out.jsonl")
    results = outcome(tmp_path / "out.jsonl")
    lines = [(n, line) for n, line in enumerate(LINES, start=1) if line.strip()]
    lines += [(len(LINES) + 1, "\xff"), (len(LINES) + 2, "3")]
    assert len(results) == len(lines) == report.total
    failed = {n: r["error"] for (n, _), r in zip(lines, results) if "error" in r}
    for line, word in [
        (8, "not JSON"),
        (9, 'no key "<ans>"'),
        (11, "3015 tokens"),
        (12, "nested too deeply"),
        (14, "surrogate"),
        (len(LINES) + 1, "not UTF-8"),
        (len(LINES) + 2, "got int 3"),
    ]:
        assert failed[line].startswith(f"{source}:{line}: ")
        assert word in failed[line]
    assert report.failed == len(failed) == 7
    assert str(report) == f"{len(lines)} records, 7 with an error in their place"
    for i, ((number, line), result) in enumerate(zip(lines, results)):
        if number not in failed:
            alone = generate(model(), TOKENIZER, [json.loads(line)], CONFIG, seed=[stream_of(7, i)])
            assert result == alone[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


class PowerError(Exception):
    """Stands for a power failure."""


class BreaksAfter:
    """A network that fails at its n-th prompt batch."""

    def __init__(self, network, number: int):
        self.network, self.left = network, number

    def __getattr__(self, name: str):
        return getattr(self.network, name)

    def start(self, *columns):
        self.left -= 1
        if self.left < 0:
            raise PowerError
        return self.network.start(*columns)


@pytest.mark.parametrize("torn", [b"", b'5 0 {"input', b"rubbish\n9"])
def test_an_interrupted_run_is_gone_on_with(source: Path, tmp_path: Path, torn: bytes) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(source, whole)
    net = model()
    net = dataclasses.replace(net, network=BreaksAfter(net.network, 3))
    with pytest.raises(PowerError):
        run(source, out, net)
    assert not out.exists()
    side = tmp_path / "out.jsonl.part"
    with open(side, "ab") as file:
        file.write(torn)
    net.network.left = 100
    report = run(source, out, net)
    assert report.resumed > 8
    assert 100 - net.network.left < 5
    assert out.read_bytes() == whole.read_bytes()
    assert not side.exists()


def test_another_run_is_not_gone_on_with(source: Path, tmp_path: Path) -> None:
    net, out = model(), tmp_path / "out.jsonl"
    net = dataclasses.replace(net, network=BreaksAfter(net.network, 1))
    with pytest.raises(PowerError):
        run(source, out, net)
    for changes, word in [
        ({"seed": 8}, "seed differ"),
        ({"model": "other"}, "model differ"),
        ({"examples": [{"<ans>": "a"}]}, "examples differ"),
    ]:
        with pytest.raises(ConfigError, match=f"out.jsonl.part is of an interrupted.*{word}"):
            run(source, out, **changes)
    with open(source, "ab") as file:
        file.write(b"\n")
    with pytest.raises(ConfigError, match="input differ"):
        run(source, out)
    (tmp_path / "out.jsonl.part").write_text("rubbish\n")
    with pytest.raises(ConfigError, match="first line is not ours"):
        run(source, out)


def test_windows_are_small(source: Path, tmp_path: Path, monkeypatch) -> None:
    run(source, tmp_path / "one.jsonl")
    monkeypatch.setattr(jobs, "_WINDOW", 1)
    run(source, tmp_path / "many.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "many.jsonl").read_bytes()


def test_places_that_cannot_be_used_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both input and output"):
        run(source, source)
    with pytest.raises(ConfigError, match="is a folder"):
        run(source, tmp_path)
    with pytest.raises(ConfigError, match="there is no folder .*none to write it in"):
        run(source, tmp_path / "none" / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="is empty"):
        run(empty, tmp_path / "out.jsonl")
