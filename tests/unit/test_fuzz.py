"""Broken and hostile input, a few cases of it; MINDPLM_FUZZ=1 runs as many as a release wants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from fuzzing import checkpoints, forge, records
from fuzzing.watch import Watch

LONG = os.environ.get("MINDPLM_FUZZ") == "1"


def test_checkpoints(tmp_path: Path) -> None:
    count = 1000 if LONG else 80
    report = checkpoints.run(tmp_path, count, seed=1)
    assert not report["failures"], json.dumps(report, indent=1)
    assert report["ended refused"] > count // 2
    assert report["ended refused"] + report["ended well"] == count


def test_records(tmp_path: Path) -> None:
    count = 10_000 if LONG else 60
    only = None if LONG else ["generate", "preprocess"]
    report = records.run(tmp_path, count, seed=1, only=only)
    assert not report["failures"], json.dumps(report, indent=1)
    assert report["generate"]["done"] > count // 5
    assert report["generate"]["refused"] > count // 10


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()

    def seen(work: Any) -> list[str]:
        with Watch([inside]) as watch:
            work()
        return watch.found

    assert not seen(lambda: (inside / "a").write_text("a"))
    assert not seen(lambda: (inside / "a").read_text())
    for work, event in [
        (lambda: (outside / "a").write_text("a"), "open"),
        (lambda: (inside / "a").rename(outside / "a"), "os.rename"),
        (lambda: (outside / "a").unlink(), "os.remove"),
        (lambda: (outside / "b").mkdir(), "os.mkdir"),
        (lambda: os.system("true"), "os.system"),
        (lambda: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda: eval("1 + 1"), "exec"),
    ]:
        assert [text for text in seen(work) if text.startswith(event)], event


@pytest.mark.parametrize("seed", range(3))
def test_cases_depend_on_their_number_alone(tmp_path: Path, seed: int) -> None:
    assert records.lines(50, seed)[:20] == records.lines(20, seed)
    assert records.lines(20, seed) != records.lines(20, seed + 1)
    assert len(forge._ODD) > 20
