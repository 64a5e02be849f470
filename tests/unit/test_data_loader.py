"""Batches: exact resume, any number of ranks, nothing dropped, errors reach the consumer."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from data_samples import SHAPE, small_tokenizer, write_rows

from mindplm.data.loader import RowStream, eval_batches, stream_rows
from mindplm.data.packing import COLUMNS, IGNORE
from mindplm.data.records import RowFolder, open_folder
from mindplm.errors import ConfigError, DataError

TOKENIZER = small_tokenizer()
SHARED = ("ext_ids", "ext_sub", "num_ext")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RowFolder:
    path = tmp_path_factory.mktemp("rows") / "train"
    write_rows(path, TOKENIZER, count=73)
    return open_folder(path)


def take(folder, count, **keys):
    with RowStream(folder, **{"seed": 1, "batch_size": 4, **keys}) as stream:
        return list(itertools.islice(stream, count))


def same(a, b):
    assert tuple(a) == tuple(b) == COLUMNS
    for name in COLUMNS:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_every_epoch_has_every_row_once(folder):
    count = len(folder)
    assert count % 4  # steps across the border of two epochs
    batches = take(folder, 3 * count // 4)
    rows = np.concatenate([info["rows"] for _, info in batches])
    for epoch in range(2):
        part = rows[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
    assert (rows[:count] != rows[count : 2 * count]).any()
    assert [info["epoch"] for _, info in batches] == [4 * t // count for t in range(len(batches))]


def test_batches_larger_than_the_folder(folder):
    (columns, info), _ = take(folder, 2, batch_size=3 * len(folder) + 1)
    assert sorted(info["rows"][: len(folder)]) == list(range(len(folder)))
    assert columns["ids"].shape == (3 * len(folder) + 1, SHAPE.seq_len)


@pytest.mark.parametrize("start", [1, 5, 40])
def test_resuming_is_going_on(folder, start):
    whole = take(folder, start + 3)[start:]
    for (a, info), (b, again) in zip(whole, take(folder, 3, start_step=start)):
        same(a, b)
        assert info["step"] == again["step"]
        np.testing.assert_array_equal(info["rows"], again["rows"])


def test_two_ranks_have_the_batch_of_one(folder):
    whole = take(folder, 12)
    parts = [take(folder, 12, rank=rank, world=2) for rank in range(2)]
    for (columns, info), *halves in zip(whole, *parts):
        for name in COLUMNS:
            pieces = [half[name] for half, _ in halves]
            if name in SHARED:
                for piece in pieces:
                    np.testing.assert_array_equal(piece, columns[name])
            else:
                np.testing.assert_array_equal(np.concatenate(pieces), columns[name])
        assert all(half["targets"] == info["targets"] for _, half in halves)
        assert sum((half["tasks"] for _, half in halves), []) == info["tasks"]


def test_info_counts_the_global_batch(folder):
    for columns, info in take(folder, 6):
        assert info["tokens"] == columns["length"].sum()
        assert info["targets"] == np.count_nonzero(columns["targets"] != IGNORE)
        assert info["chars"] == folder.index.num_chars[info["rows"]].sum()


def test_order_depends_on_the_seed_and_epochs_are_unlike():
    first = stream_rows(500, 1, 0, 1500)
    np.testing.assert_array_equal(first, stream_rows(500, 1, 0, 1500))
    epochs = [*first.reshape(3, 500), stream_rows(500, 2, 0, 500)]
    for a, b in itertools.combinations(epochs, 2):
        assert (a == b).sum() < 10
        assert (a[1:] == b[:-1]).sum() < 10
    np.testing.assert_array_equal(stream_rows(500, 1, 777, 400), first[777:1177])


def test_evaluation_has_every_row_once_and_fills_up(folder):
    size = 8
    assert len(folder) % size
    batches = list(eval_batches(folder, batch_size=size))
    assert np.concatenate([i["rows"] for _, i in batches]).tolist() == list(range(len(folder)))
    last = batches[-1][0]
    assert last["ids"].shape == (size, SHAPE.seq_len)
    assert np.count_nonzero(last["length"]) == len(folder) % size
    assert (last["targets"][len(folder) % size :] == IGNORE).all()
    total = sum(np.count_nonzero(columns["targets"] != IGNORE) for columns, _ in batches)
    assert total == folder.index.num_targets.sum()


def test_evaluation_on_two_ranks_and_of_a_part(folder):
    halves = [list(eval_batches(folder, batch_size=8, rank=r, world=2)) for r in range(2)]
    whole = list(eval_batches(folder, batch_size=8))
    assert len(halves[0]) == len(halves[1]) == len(whole)
    for (columns, _), (a, _), (b, _) in zip(whole, *halves):
        np.testing.assert_array_equal(np.concatenate([a["ids"], b["ids"]]), columns["ids"])
        np.testing.assert_array_equal(a["ext_ids"], columns["ext_ids"])
    part = list(eval_batches(folder, batch_size=4, max_rows=6))
    assert sum(len(info["rows"]) for _, info in part) == 6


def test_an_error_in_the_thread_is_raised_where_batches_are_used(folder, monkeypatch):
    def fail(*_, **__):
        raise DataError("row 3 is gone")

    monkeypatch.setattr(RowFolder, "read", fail)
    stream = RowStream(folder, seed=1, batch_size=4)
    with pytest.raises(DataError, match="row 3 is gone"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_closing_ends_the_thread(folder):
    stream = RowStream(folder, seed=1, batch_size=4, prefetch=2)
    next(stream)
    stream.close()
    assert not any(thread.name == "rows" for thread in threading.enumerate())
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_settings_that_do_not_fit_are_refused(folder):
    with pytest.raises(ConfigError, match="batch_size=3, expected a multiple of the 2 processes"):
        RowStream(folder, seed=1, batch_size=3, world=2)
    with pytest.raises(ConfigError, match="rank=2"):
        RowStream(folder, seed=1, batch_size=4, world=2, rank=2)
    small = SHAPE._replace(seq_len=8)
    with pytest.raises(ConfigError, match="seq_len=8, expected at least 96"):
        RowStream(folder, seed=1, batch_size=4, shape=small)
    with pytest.raises(DataError, match="no such folder"):
        RowStream(folder.path / "none", seed=1, batch_size=4)


def test_batches_can_be_larger_than_the_folder_says(folder):
    large = SHAPE._replace(seq_len=128, max_ext=40)
    with RowStream(folder, seed=1, batch_size=4, shape=large) as stream:
        columns, _ = next(stream)
    assert columns["ids"].shape == (4, 128)
    assert columns["ext_ids"].shape == (40,)
