"""Packing: limits hold, nothing is lost, targets and extension classes are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from data_samples import SHAPE, instance_of, random_instances, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.data.cpm_bee import to_arrays
from mindplm.data.instances import append_incontext
from mindplm.data.packing import (
    COLUMNS,
    IGNORE,
    Packer,
    RowShape,
    collate,
    ext_table,
    row_targets,
)
from mindplm.errors import DataError

TOKENIZER = small_tokenizer()


def pack(instances, num_rows, shape):
    packer = Packer(num_rows, shape)
    batches = [rows for instance in instances if (rows := packer.add(instance))]
    assert all(len(rows) == num_rows for rows in batches)
    return [row for rows in batches for row in rows] + packer.flush()


def expected_targets(row, ext):
    """Spec 6.3, position by position."""
    table = list(zip(*(part.tolist() for part in ext)))
    length = len(row)
    target = [IGNORE] * length
    for j in range(2, length):
        if row.context[j - 1] == 0:
            pair = int(row.ids[j]), int(row.subs[j])
            extra = TOKENIZER.vocab_size + table.index(pair) if pair[1] else pair[0]
            target[j - 1] = TOKENIZER.eos_id if pair[0] == TOKENIZER.bos_id else extra
    if row.context[-1] == 0:
        target[-1] = TOKENIZER.eos_id
    return target


@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.sampled_from([0, 300]),
    st.sampled_from([0, 5]),
    st.sampled_from([0, 40]),
)
@settings(max_examples=40, deadline=None)
def test_rows_keep_their_limits_and_nothing_is_lost(seed, num_rows, rel, ext, targets):
    shape = RowShape(100, rel, ext, targets)
    instances = []
    for instance in random_instances(np.random.default_rng(seed), TOKENIZER, 40):
        try:
            Packer(1, shape).add(instance)
        except DataError:
            continue
        instances.append(instance)
    rows = pack(instances, num_rows, shape)
    assert sorted(raw for row in rows for raw in row.raw) == [i.raw for i in instances]
    by_raw = {instance.raw: instance for instance in instances}
    for row in rows:
        assert len(row) <= 100
        assert len(row.segment_rel) <= (rel or len(row.segment_rel))
        assert row.num_targets <= (targets or row.num_targets)
        assert len(ext_table([row])[0]) <= (ext or 10**6)
        for span, raw in enumerate(row.raw):
            part, instance = row.spans == span, by_raw[raw]
            np.testing.assert_array_equal(row.ids[part], instance.tokens[0])
            start = row.rel_offset[part][0]
            size = len(instance.segment_rel)
            np.testing.assert_array_equal(
                row.segment_rel[start : start + size], instance.segment_rel
            )
        assert row.num_chars == sum(by_raw[raw].num_chars for raw in row.raw)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_targets_follow_the_definition(seed):
    rows = pack(random_instances(np.random.default_rng(seed), TOKENIZER, 15), 3, SHAPE)
    ext = ext_table(rows)
    for row in rows:
        got = row_targets(row, ext, TOKENIZER)
        assert got.tolist() == expected_targets(row, ext)
        assert np.count_nonzero(got != IGNORE) == row.num_targets
    columns = collate(rows, num_rows=len(rows) + 2, shape=SHAPE, marks=TOKENIZER)
    for i, row in enumerate(rows):
        count = row.num_targets
        places = columns["target_pos"][i, :count]
        np.testing.assert_array_equal(
            columns["targets"][i, :count], row_targets(row, ext, TOKENIZER)[places]
        )
        assert (np.diff(places) > 0).all()
        assert (columns["targets"][i, count:] == IGNORE).all()


def test_unused_rows_are_empty_and_shapes_are_fixed():
    rows = pack(random_instances(np.random.default_rng(1), TOKENIZER, 5), 8, SHAPE)[:1]
    columns = collate(rows, num_rows=3, shape=SHAPE, marks=TOKENIZER)
    assert tuple(columns) == COLUMNS
    assert columns["ids"].shape == (3, SHAPE.seq_len)
    assert columns["segment_rel"].shape == (3, SHAPE.max_rel)
    assert columns["ext_ids"].shape == (SHAPE.max_ext,)
    assert all(values.dtype == np.int32 for values in columns.values())
    assert columns["length"].tolist() == [len(rows[0]), 0, 0]
    assert not columns["ids"][1:].any()
    assert (columns["targets"][1:] == IGNORE).all()


def test_a_batch_without_indexed_tokens_has_the_placeholder():
    row = pack([instance_of({"input": "a", "<ans>": "b"}, TOKENIZER)], 1, SHAPE)
    columns = collate(row, num_rows=1, shape=SHAPE, marks=TOKENIZER)
    assert columns["num_ext"] == [1]
    assert (columns["ext_ids"][0], columns["ext_sub"][0]) == (0, 1)


def test_cutting_a_batch_changes_no_class():
    rows = pack(random_instances(np.random.default_rng(3), TOKENIZER, 60), 4, SHAPE)
    ext = ext_table(rows)
    assert len(ext[0]) > 1
    whole = collate(rows, num_rows=len(rows), shape=SHAPE, marks=TOKENIZER, ext=ext)
    half = len(rows) // 2
    parts = [
        collate(part, num_rows=len(part), shape=SHAPE, marks=TOKENIZER, ext=ext)
        for part in (rows[:half], rows[half:])
    ]
    for name in COLUMNS:
        if name.startswith("ext") or name == "num_ext":
            for part in parts:
                np.testing.assert_array_equal(part[name], whole[name])
        else:
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[name])


def test_an_example_stands_behind_the_record_as_context():
    first = to_arrays({"input": "a<mask_0>", "<ans>": {"<mask_0>": "b"}}, TOKENIZER)
    instance = instance_of({"input": "a<mask_0>", "<ans>": {"<mask_0>": "b"}}, TOKENIZER)
    example = to_arrays({"input": "c", "<ans>": "明月"}, TOKENIZER, state=first.state)
    for number in (1, 2):
        size, room = len(instance), len(instance.segment_rel)
        instance = append_incontext(instance, example)
        row = pack([instance], 1, SHAPE)[0]
        assert row.context[size:].all()
        assert set(row.sample_ids[size:]) == {number}
        assert set(row.rel_offset[size:]) == {room}
    assert (row_targets(row, ext_table([row]), TOKENIZER)[len(first) :] == IGNORE).all()


@pytest.mark.parametrize("limit", RowShape._fields)
def test_what_fits_no_row_is_refused_with_the_limit(limit):
    record = {"input": "<mask_0><mask_1><mask_2>", "<ans>": {"<mask_2>": "a", "<mask_0>": "bb"}}
    instance = instance_of(record, TOKENIZER)
    shape = RowShape(500, 0, 0, 0)._replace(**{limit: 1})
    with pytest.raises(DataError, match=f"{limit} is 1"):
        Packer(1, shape).add(instance)


def test_a_batch_that_does_not_fit_the_columns_is_refused():
    rows = pack(random_instances(np.random.default_rng(3), TOKENIZER, 60), 4, SHAPE)
    for limit in RowShape._fields:
        small = replace_limit(limit)
        with pytest.raises(DataError, match=limit):
            collate(rows, num_rows=len(rows), shape=small, marks=TOKENIZER)
    with pytest.raises(DataError, match="rows"):
        collate(rows, num_rows=1, shape=SHAPE, marks=TOKENIZER)


def replace_limit(limit):
    return SHAPE._replace(**{limit: 2})


def test_the_number_of_largest_subs_is_the_number_of_pairs():
    for instance in random_instances(np.random.default_rng(5), TOKENIZER, 30):
        row = pack([replace(instance, raw=0)], 1, SHAPE)
        pairs = ext_table(row)
        want = instance.num_ext or 1  # the placeholder
        assert len(pairs[0]) == want
