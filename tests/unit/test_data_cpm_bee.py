"""Records to arrays: the tree, context and answers, indexed tokens, errors with their place."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from data_samples import small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from mindplm.data.answers import piece
from mindplm.data.cpm_bee import RecordError, relations, to_arrays
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

TOKENIZER = small_tokenizer()
TEXTS = st.text(alphabet="abc明月XY。\n", max_size=8)
TREES = st.recursive(TEXTS, lambda t: st.dictionaries(TEXTS, t, max_size=3), max_leaves=8)
RECORDS = st.fixed_dictionaries({"input": TREES, "<ans>": TREES})


def paths_and_depths(value: Any, path: tuple[int, ...] = (0,)) -> list[tuple[int, ...]]:
    """The path of each segment below a node, numbered by brothers."""
    if isinstance(value, str):
        return [(*path, 0)]
    found = []
    for i, child in enumerate(value.values()):
        found += [(*path, i), *paths_and_depths(child, (*path, i))]
    return found


@given(RECORDS, st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_relations_count_the_steps_to_the_common_ancestor(record, max_depth):
    paths = [(0,), *paths_and_depths(record)]
    depths = tuple(len(path) - 1 for path in paths)
    rel = relations(depths, max_depth).reshape(len(paths), -1)
    for i, a in enumerate(paths):
        for j, b in enumerate(paths):
            common = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            up, down = (min(len(p) - common, max_depth - 1) for p in (a, b))
            assert rel[i, j] == (0 if i == j else up * max_depth + down + 1)


@given(RECORDS)
@settings(max_examples=60, deadline=None)
def test_segments_hold_their_texts_and_only_answers_are_predicted(record):
    sample = to_arrays(record, TOKENIZER)
    assert sample.num_segments == sample.segs[-1] + 1
    starts = sample.ids[np.flatnonzero(np.diff(sample.segs, prepend=-1))]
    assert (starts == TOKENIZER.bos_id).all()
    predicted = {leaf.segment for leaf in sample.leaves if leaf.predicted}
    assert set(sample.segs[sample.context == 0]) == predicted
    for leaf in sample.leaves:
        assert leaf.predicted == (leaf.path[0] == "<ans>")
        ids = sample.ids[sample.segs == leaf.segment]
        assert (ids[-1] == TOKENIZER.eos_id) != leaf.predicted


def test_one_relation_matrix_per_shape_whatever_its_size():
    record = {str(i): "a" for i in range(100)}
    sample = to_arrays({**record, "<ans>": "b"}, TOKENIZER)
    assert sample.rel.shape == (sample.num_segments**2,)
    assert sample.rel.reshape(sample.num_segments, -1)[1, 3] == 10  # brother keys: 1 up, 1 down


def test_sub_index_counts_different_tokens_of_a_base_from_zero():
    record = {"input": "<mask_7>X<mask_2><mask_7>Y", "<ans>": {"<mask_2>": "XY", "<mask_7>": "Y"}}
    sample = to_arrays(record, TOKENIZER)
    masks = sample.subs[sample.ids == TOKENIZER.mask_id]
    assert masks.tolist() == [0, 1, 0, 1, 0]
    unknown = sample.subs[sample.ids == TOKENIZER.unk_id]
    assert unknown.tolist() == [0, 1, 2, 1]  # X, Y, the run XY, Y


def test_state_of_one_sample_goes_on_in_the_next_and_is_not_changed():
    first = to_arrays({"input": "<mask_0>X", "<ans>": "a"}, TOKENIZER)
    before = dict(first.state.table)
    second = to_arrays({"input": "<mask_1>Y", "<ans>": "X"}, TOKENIZER, state=first.state)
    assert first.state.table == before
    assert second.subs[second.ids == TOKENIZER.mask_id].tolist() == [1]
    assert second.subs[second.ids == TOKENIZER.unk_id].tolist() == [1, 0]


def test_shuffle_permutes_answers_and_nothing_else():
    answers = {f"<mask_{i}>": "abc"[i] for i in range(3)}
    record = {"input": "".join(answers), "<ans>": answers}
    plain = to_arrays(record, TOKENIZER)
    seen = set()
    for seed in range(20):
        sample = to_arrays(record, TOKENIZER, shuffle=np.random.default_rng(seed))
        assert sorted(sample.ids) == sorted(plain.ids)
        first_answer = sample.segs >= 3
        np.testing.assert_array_equal(sample.ids[~first_answer], plain.ids[~first_answer])
        seen.add(tuple(leaf.path[-1] for leaf in sample.leaves[1:]))
    assert len(seen) == 6


def test_characters_of_answers_are_counted_and_tags_once():
    record = {"input": "abc", "<ans>": {"x": "a<<b", "y": "<option_1>月", "z": ""}}
    assert to_arrays(record, TOKENIZER).num_chars == 3 + 2


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        ({"input": ["a"], "<ans>": "x"}, "wrong type", "record.input is a list"),
        ({"input": {"k": {"n": None}}}, "wrong type", "record.input.k.n is null"),
        ({"input": 3}, "wrong type", "record.input is a number"),
        ({"input": True}, "wrong type", "true or false"),
        ({1: "a"}, "wrong type", "record has the key 1"),
        ([], "wrong type", "record is a list"),
        ({"options": {"<option_1>": "a < b"}}, "invalid text", "record.options.<option_1>: "),
        ({"a<b": "x"}, "invalid text", "the key 'a<b' of record"),
        ({"input": "<用户>"}, "unknown tag", "record.input: unknown tag <用户>"),
        ({"input": {"<foo_1>": "x"}}, "unknown tag", "the key '<foo_1>' of record.input"),
    ],
)
def test_errors_name_the_place_in_the_record(record, reason, words):
    with pytest.raises(RecordError, match=re.escape(words)) as caught:
        to_arrays(record, TOKENIZER)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["<", ">", "<>", "<>x"])
def test_an_escaped_text_is_no_tag_whatever_the_vocabulary_lacks(gone: str) -> None:
    lines = [line for line in TOKENIZER.lines if line not in gone]
    tokenizer = CpmBeeTokenizer(lines)
    for text in ("<<x>", "a<<x>b", "<<mask>", "<<mask_0><mask_0>", "<<", "<<<<x>"):
        sample = to_arrays({"input": text, "<ans>": text}, tokenizer)
        tags = text.count("<mask_0>") - text.count("<<mask_0>")
        assert (sample.ids == tokenizer.mask_id).sum() == 2 * tags
        ids, table = tokenizer.encode(text)
        assert tokenizer.decode(ids, table) == text
        for token, shown in table.items():
            assert piece(token, table, tokenizer) == shown.replace("<<", "<")
