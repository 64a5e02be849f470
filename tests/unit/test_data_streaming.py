"""Rows drawn while training: every document once a pass, exact resume, changes of the mixture."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections import Counter

import numpy as np
import pytest
from data_samples import POEM, SHAPE, settings, small_tokenizer, source, write_lines

from mindplm.data import segments
from mindplm.data.bee_rows import ROWS
from mindplm.data.mixture import MixtureFile
from mindplm.data.packing import COLUMNS
from mindplm.data.prepare import source_of
from mindplm.data.records import open_folder
from mindplm.data.segments import JOURNAL, SegmentMaker, StreamPlan, read_journal
from mindplm.data.streaming import StreamedRows, StreamRows
from mindplm.errors import CheckpointError, ConfigError, DataError

TOKENIZER = small_tokenizer()
SIZES = {"A": 90, "B": 60}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two data sets, and segments of about a third of them."""
    monkeypatch.setattr("mindplm.data.chunks.CHUNK_BYTES", 900)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4000)
    for name, size in SIZES.items():
        records = [{"input": name.lower(), "<ans>": f"{i} {POEM[: i % 9]}"} for i in range(size)]
        write_lines(tmp_path / f"{name}.jsonl", records)
    write_mixture(tmp_path, A=1.0, B=2.0)
    return tmp_path


def write_mixture(folder, time=0, **weights):
    entries = [{"dataset_name": name, "task_name": f"task {name}", "path": f"{name}.jsonl",
                "weight": weight} for name, weight in weights.items()]  # fmt: skip
    path = folder / "mixture.json"
    path.write_text(json.dumps(entries))
    os.utime(path, ns=(time * 10**9 + 1, time * 10**9 + 1))


def plan_of(folder, **keys):
    mixture = MixtureFile(folder / "mixture.json")

    def sources():
        mixture.refresh()
        return ROWS.sources([source_of(entry) for entry in mixture.entries])

    return StreamPlan(folder / "stream", sources, TOKENIZER, settings(**keys), workers=1)


def take(folder, count, start=0, plan=None, **keys):
    rows = StreamRows(plan or plan_of(folder))
    keys = {"seed": 1, "batch_size": 4, "start_step": start, **keys}
    with StreamedRows(rows, **keys) as stream:
        return list(itertools.islice(stream, count))


def same(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(one[0][name], other[0][name], err_msg=name)
    assert one[1]["tasks"] == other[1]["tasks"]
    for name in ("step", "tokens", "targets", "chars"):
        assert one[1][name] == other[1][name]
    np.testing.assert_array_equal(one[1]["rows"], other[1]["rows"])


def test_each_document_is_drawn_once_a_pass_and_heavy_sources_more_often(folder):
    maker = SegmentMaker(plan_of(folder))
    seen: dict[str, Counter[int]] = {"A": Counter(), "B": Counter()}
    last = {}
    for number in range(12):
        rows = maker.make(number)
        for row in rows.read(np.arange(len(rows))):
            for span in range(row.spans[-1] + 1):
                ids = row.ids[row.spans == span].tolist()
                name = TOKENIZER.id_to_token[ids[7]].upper()
                answer = row.ids[(row.spans == span) & (row.context == 0)]
                text = TOKENIZER.decode(answer[1:].tolist(), {})
                seen[name][int(text.split()[0])] += 1
        last = maker.journal[-1]["end"]
    for name, counts in seen.items():
        draw, at, num = last[f"task {name}.{name}"]
        assert 0 <= at < num * segments._UNIT
        assert set(counts) == set(range(SIZES[name]))
        assert set(counts.values()) <= {draw, draw + 1}
        wanted = SIZES[name] * (draw + at / num / segments._UNIT)
        assert abs(sum(counts.values()) - wanted) < 0.05 * wanted
    ratio = sum(seen["B"].values()) / sum(seen["A"].values())
    assert ratio == pytest.approx(2 * SIZES["B"] / SIZES["A"], rel=0.1)


@pytest.mark.parametrize("start", [1, 6, 17])
def test_resuming_is_going_on(folder, start):
    whole = take(folder, start + 4)[start:]
    for one, other in zip(whole, take(folder, 4, start)):
        same(one, other)
    assert len(read_journal(folder / "stream")) > 2


def test_segments_that_are_gone_are_made_again(folder):
    whole = take(folder, 12)
    for path in (folder / "stream").iterdir():
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    for one, other in zip(whole, take(folder, 12)):
        same(one, other)


def test_a_damaged_segment_is_made_again(folder):
    whole = take(folder, 12)
    path = folder / "stream" / "1" / "train.mindrecord0"
    assert path.is_file() and read_journal(folder / "stream")[1]["first_row"] < 4 * 12
    path.write_bytes(path.read_bytes()[:-1])
    for one, other in zip(whole, take(folder, 12)):
        same(one, other)
    open_folder(folder / "stream" / "1")


def test_a_segment_that_cannot_be_drawn_again_is_refused(folder):
    whole = take(folder, 9)
    assert whole[0][1]["rows"][0] == 0
    shutil.rmtree(folder / "stream" / "0", ignore_errors=True)
    path = folder / "A.jsonl"
    path.write_text(path.read_text() * 3)
    with pytest.raises(DataError, match="segment 0 is gone and cannot be drawn again .*A.jsonl ch"):
        take(folder, 1)


def test_two_runs_do_not_draw_into_one_folder(folder):
    plan = plan_of(folder)
    with StreamedRows(StreamRows(plan), seed=1, batch_size=4) as stream:
        next(stream)
        with pytest.raises(CheckpointError, match="stream is in use by another process"):
            take(folder, 1)
    take(folder, 1)


def test_a_stream_that_was_lost_is_drawn_again(folder):
    whole = take(folder, 12)
    (folder / "stream" / JOURNAL).unlink()
    for one, other in zip(whole[9:], take(folder, 3, 9)):
        same(one, other)


def test_two_ranks_have_the_batch_of_one(folder):
    whole = take(folder, 10)
    rows = StreamRows(plan_of(folder))
    parts = [StreamedRows(rows, seed=1, batch_size=4, rank=rank, world=2) for rank in (1, 0)]
    try:
        for (columns, info), (b, b_info), (a, a_info) in zip(whole, *parts):
            for name in COLUMNS:
                pieces = [a[name], b[name]]
                if name in ("ext_ids", "ext_sub", "num_ext"):
                    np.testing.assert_array_equal(pieces[0], columns[name])
                    np.testing.assert_array_equal(pieces[1], columns[name])
                else:
                    np.testing.assert_array_equal(np.concatenate(pieces), columns[name])
            assert a_info["targets"] == b_info["targets"] == info["targets"]
            assert a_info["tasks"] + b_info["tasks"] == info["tasks"]
    finally:
        for part in parts:
            part.close()


def test_changes_of_the_mixture_take_effect_and_can_be_repeated(folder):
    plan = plan_of(folder)
    maker = SegmentMaker(plan)
    for number in range(2):
        maker.make(number)
    write_lines(folder / "C.jsonl", [{"input": "c", "<ans>": f"{i}"} for i in range(40)])
    write_mixture(folder, time=1, A=1.0, C=3.0)
    for number in range(2, 5):
        maker.make(number)
    lines = read_journal(folder / "stream")
    assert [sorted(line["begin"]) for line in lines] == (
        [["task A.A", "task B.B"]] * 2 + [["task A.A", "task C.C"]] * 3
    )
    assert lines[2]["begin"]["task A.A"] == lines[1]["end"]["task A.A"]
    whole = take(folder, 14, plan=plan)
    names = StreamRows(plan).task_names
    assert names == ["task A", "task B", "later tasks"]
    seen = [{n for row in info["tasks"] for n in row} for _, info in whole]
    assert 1 in set().union(*seen[:3]) and 2 in set().union(*seen[-3:])
    write_mixture(folder, time=2, B=1.0)  # what was drawn is not changed by that
    for one, other in zip(whole, take(folder, 14)):
        same(one, other)


def test_a_line_that_was_not_finished_does_not_count(folder):
    whole = take(folder, 8)
    with open(folder / "stream" / JOURNAL, "ab") as file:
        file.write(b'{"number": 99, "first_row"')
    for one, other in zip(whole, take(folder, 8)):
        same(one, other)


def test_other_settings_begin_anew(folder):
    first = take(folder, 3)
    other = take(folder, 3, plan=plan_of(folder, seed=5))
    assert any((a["ids"] != b["ids"]).any() for (a, _), (b, _) in zip(first, other))
    for one, again in zip(first, take(folder, 3)):
        same(one, again)


def test_files_that_change_begin_a_pass_anew(folder, caplog):
    maker = SegmentMaker(plan_of(folder))
    maker.make(0)
    path = folder / "B.jsonl"
    path.write_text(path.read_text() * 2)
    maker.make(1)
    assert maker.journal[1]["begin"]["task B.B"][:2] == [
        maker.journal[0]["end"]["task B.B"][0] + 1, 0,
    ]  # fmt: skip


def test_errors_reach_who_waits_for_rows(folder):
    path = folder / "B.jsonl"
    path.write_text("")
    (folder / "A.jsonl").write_text('{"input": "a"}\n')
    with pytest.raises(DataError, match="nothing can be used; .*record without <ans>"):
        take(folder, 1)
    assert not any(thread.name == "segments" for thread in threading.enumerate())


def test_a_stream_has_no_epochs(folder):
    with pytest.raises(ConfigError, match="give train.steps"):
        len(StreamRows(plan_of(folder)))


def test_large_packed_files_are_refused(folder, monkeypatch):
    monkeypatch.setattr(segments, "_LARGEST_PACKED", 10)
    plan = StreamPlan(folder / "stream", lambda: ROWS.sources([source("embedded:poems_valid")]),
                      TOKENIZER, settings(shape=SHAPE), workers=1)  # fmt: skip
    with pytest.raises(ConfigError, match="unpack it, or prepare its rows"):
        SegmentMaker(plan).make(0)
