"""Interrupted preparation: the same command goes on, and the rows are those of one go."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from data_samples import POEM, settings, small_tokenizer, source, write_lines

from mindplm.data import preprocess as module
from mindplm.data import spool, stages
from mindplm.data.preprocess import preprocess
from mindplm.data.records import open_folder
from mindplm.data.row_writer import RowWriter
from mindplm.errors import DataError

TOKENIZER = small_tokenizer()
WORK = ".mindplm-work-train"


def shrink(patch):
    """Many chunks, buckets and files, each noted when it is done."""
    patch.setattr("mindplm.data.chunks.CHUNK_BYTES", 3000)
    patch.setattr("mindplm.data.row_writer._FILE_BYTES", 12_000)
    patch.setattr(module, "BUCKET_BYTES", 3000)
    patch.setattr(module, "_SAVE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    shrink(monkeypatch)


def write_sources(folder):
    texts = [{"text": POEM[i % 7 :] * (1 + i % 5)} for i in range(50)]
    records = [{"input": f"<mask_0>{i}", "<ans>": {"<mask_0>": POEM}} for i in range(30)]
    write_lines(folder / "a.jsonl", texts)
    write_lines(folder / "b1.jsonl", records[:15])
    write_lines(folder / "b2.jsonl", [*records[15:], {"input": "no answer"}])


def sources_in(folder):
    return [
        source(folder / "a.jsonl", weight=1.5, tasks={"lm": 1.0}),
        source(folder / "b*.jsonl", tasks={"record": 1.0}),
    ]


@pytest.fixture
def sources(tmp_path):
    write_sources(tmp_path)
    return sources_in(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Report and rows of one go."""
    folder = tmp_path_factory.mktemp("whole")
    write_sources(folder)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        report = run(sources_in(folder), folder / "train")
    assert len(open_folder(folder / "train").facts["records"]) > 3
    return plain(report), contents(folder / "train")


def plain(report):
    """A report without times and places."""
    counts = {reason: entry["count"] for reason, entry in report["invalid"].items()}
    return {**report, "seconds": 0, "invalid": counts}


def run(sources, folder, **keys):
    return preprocess(sources, TOKENIZER, settings(), folder, progress=False, **keys)


def contents(folder):
    rows = open_folder(folder)
    every = rows.read(np.arange(len(rows)))
    return [(row.tokens.tobytes(), row.task_ids.tobytes()) for row in every]


class Stop(BaseException):
    """Stands for whatever ends a process."""


def failing(monkeypatch, owner, name, after):
    """Lets a method work `after` times, then raises."""
    right, calls = getattr(owner, name), []

    def call(*args, **keys):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return right(*args, **keys)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(("owner", "name", "after"), [
    (stages.ChunkStage, "__call__", 3), (spool.Buckets, "flush", 2),
    (stages.BucketStage, "__call__", 0), (stages.BucketStage, "__call__", 5),
    (RowWriter, "end_file", 2), (RowWriter, "finish", 0),
], ids=lambda v: str(getattr(v, "__name__", v)))  # fmt: skip
def test_what_was_interrupted_goes_on(tmp_path, sources, whole, monkeypatch, owner, name, after):
    with monkeypatch.context() as patch:
        failing(patch, owner, name, after)
        with pytest.raises(Stop):
            run(sources, tmp_path / "train")
    assert not (tmp_path / "train").exists()
    with monkeypatch.context() as patch:
        if owner in (stages.BucketStage, RowWriter):  # all instances are made already
            failing(patch, stages.ChunkStage, "__call__", 0)
        again = run(sources, tmp_path / "train")
    assert contents(tmp_path / "train") == whole[1]
    assert plain(again) == whole[0]
    assert not (tmp_path / WORK).exists()


def test_work_on_something_else_is_thrown_away(tmp_path, sources, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, stages.BucketStage, "__call__", 5)
        with pytest.raises(Stop):
            run(sources, tmp_path / "train")
    report = run(sources[:1], tmp_path / "train")
    assert list(report["sources"]) == ["a"]
    assert report["documents"] == 50


def test_a_full_disk_can_be_gone_on_from(tmp_path, sources, monkeypatch, whole):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool.Buckets, "_write", full)
        with pytest.raises(DataError, match="no space left .*the same command then goes on"):
            run(sources, tmp_path / "train")
    assert (tmp_path / WORK).is_dir()
    run(sources, tmp_path / "train")
    assert contents(tmp_path / "train") == whole[1]
    assert not (tmp_path / WORK).exists()


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/unit"]
import pytest
from test_data_resume import module, run, shrink, sources_in
if __name__ == "__main__":
    shrink(pytest.MonkeyPatch())
    module._SMALL_BYTES = 0
    run(sources_in(Path({folder!r})), Path({folder!r}) / "train", workers=2)
"""


def test_kill_at_any_moment(tmp_path, sources, whole):
    """kill -9 of the process and its workers, in each of the two parts of the work."""
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(root=str(ROOT), folder=str(tmp_path)))
    state = tmp_path / WORK / "state.json"
    for stage in ("draw", "pack"):
        child = subprocess.Popen([sys.executable, script], start_new_session=True)
        deadline = time.time() + 60
        while child.poll() is None and time.time() < deadline:
            if state.is_file() and f'"{stage}"' in state.read_text():
                break
            time.sleep(0.005)
        assert child.poll() is None, "ended before it was killed"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "train").exists()
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-800:]
    assert contents(tmp_path / "train") == whole[1]
