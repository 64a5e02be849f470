"""Rows as one array: what comes back is what went in."""

from __future__ import annotations

import pickle

import numpy as np
from data_samples import SHAPE, random_instances, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.data.bee_rows import ROWS
from mindplm.data.cpm_bee import to_arrays
from mindplm.data.instances import append_incontext, make_instance
from mindplm.data.packing import Packer, Row

TOKENIZER = small_tokenizer()


def same(row: Row, other: Row) -> None:
    np.testing.assert_array_equal(row.tokens, other.tokens)
    np.testing.assert_array_equal(row.segment_rel, other.segment_rel)
    np.testing.assert_array_equal(row.task_ids, other.task_ids)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_rows_come_back(seed):
    packer = Packer(3, SHAPE)
    rows = []
    for number, instance in enumerate(random_instances(np.random.default_rng(seed), TOKENIZER, 12)):
        instance.task = number % 5
        rows += packer.add(instance)
    for row in rows + packer.flush():
        stored = row.arrays()
        assert all(values.dtype == np.int32 for values in stored.values())
        assert sum(values.size for values in stored.values()) <= ROWS.numbers(SHAPE)
        same(ROWS.row(stored), row)


def test_examples_and_single_segments_come_back():
    first = to_arrays({"input": "<mask_0>X", "<ans>": {"<mask_0>": "a"}}, TOKENIZER)
    instance = make_instance(first)
    for record in ({"<ans>": "YX"}, {}, {"a": {"b": {"c": "d"}}}, {}):
        sample = to_arrays(record, TOKENIZER, state=first.state)
        instance = append_incontext(instance, sample)
    packer = Packer(1, SHAPE)
    packer.add(instance)
    packer.add(make_instance(to_arrays({}, TOKENIZER)))
    (row,) = packer.flush()
    assert row.spans[-1] == 1
    assert row.sample_ids.max() == 4
    same(ROWS.row(row.arrays()), row)


def test_instances_come_back_from_another_process():
    for instance in random_instances(np.random.default_rng(0), TOKENIZER, 10):
        again = pickle.loads(pickle.dumps(instance))
        np.testing.assert_array_equal(again.tokens, instance.tokens)
        np.testing.assert_array_equal(again.segment_rel, instance.segment_rel)
        assert again.raw == instance.raw
        assert (again.task, again.num_chars) == (instance.task, instance.num_chars)
