"""Tasks and draws: records hold the text, pieces fit, draws can be repeated."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from data_samples import POEM, settings, small_tokenizer, source
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from mindplm.data import tasks
from mindplm.data.draw import Drawer, Work, halve, split_text
from mindplm.data.packing import RowShape
from mindplm.data.sources import Document
from mindplm.errors import ConfigError
from mindplm.tokenizers.cpm_bee import escape, unescape

TOKENIZER = small_tokenizer()
TEXTS = st.text(alphabet="ab明月XY。.< \n，_>", min_size=1, max_size=120)
FIELDS = {"title": "静夜思", "author": "李白", "form": "5x4"}


def text_of(record: dict) -> str:
    """The text that a record was made of."""
    answer = record["<ans>"]
    given_text = next((v for k, v in record.items() if k in all_names("text")), "")
    if isinstance(answer, str):
        return unescape(given_text) + unescape(answer)
    for name, piece in answer.items():
        assert given_text.count(name) == 1
        given_text = given_text.replace(name, piece)
    return unescape(given_text)


def all_names(field: str) -> set[str]:
    return {name for names in tasks._NAMES.values() for name in names[field]}


@given(st.sampled_from(["lm", "write", "infill"]), TEXTS, st.integers(0, 99))
@limits(max_examples=200, deadline=None)
def test_no_text_is_lost_or_changed(task, text, seed):
    record = tasks.make_record(task, text, FIELDS, tasks.generator(seed, "s", 0, 0))
    assert text_of(record) == text
    assert list(record)[-1] == "<ans>"


def test_blanks_are_several_and_lie_apart():
    counts = set()
    for number in range(200):
        rng = tasks.generator(1, "s", number, 0)
        record = tasks.make_record("infill", POEM * 2, {}, rng, max_blanks=4)
        answers = record["<ans>"]
        counts.add(len(answers))
        assert list(answers) == [f"<mask_{k}>" for k in range(len(answers))]
        assert all(piece.strip() for piece in answers.values())
        text = next(v for k, v in record.items() if k in all_names("text"))
        assert not re.search(r"><mask", text)
    assert counts == {1, 2, 3, 4}


def test_words_are_not_cut():
    text = "the quick brown fox jumps over the lazy dog and runs away"
    for number in range(100):
        for task in ("lm", "infill"):
            record = tasks.make_record(task, text, {}, tasks.generator(0, "s", number, 0))
            answer = record["<ans>"]
            for piece in [answer] if isinstance(answer, str) else answer.values():
                assert set(piece.split()) <= set(text.split()), piece


def test_records_by_hand_occur():
    """Bare forms that people type are among the drawn ones, often."""
    bare = first_line = 0
    for number in range(400):
        rng = tasks.generator(0, "poems", number, 0)
        record = tasks.make_record("write", POEM, FIELDS, rng)
        bare += record == {"input": "", "<ans>": POEM}
        rng = tasks.generator(1, "poems", number, 0)
        record = tasks.make_record("lm", POEM, FIELDS, rng)
        first_line += record.get("input") == POEM.split("\n")[0]
    assert bare > 40
    assert first_line > 40


def test_language_and_verse_choose_the_wording():
    assert tasks.language_of("明月光 moon") == "zh"
    assert tasks.language_of("the moon 月 is bright over the sea tonight") == "en"
    assert tasks.is_verse(POEM)
    assert not tasks.is_verse("一行")
    assert not tasks.is_verse("short\n" + "long " * 20)


def test_draws_depend_on_seed_source_document_and_number_only():
    first = tasks.generator(1, "poems", 2, 3).random(4)
    assert (tasks.generator(1, "poems", 2, 3).random(4) == first).all()
    for other in [(0, "poems", 2, 3), (1, "prose", 2, 3), (1, "poems", 3, 3), (1, "poems", 2, 4)]:
        assert not (tasks.generator(*other).random(4) == first).any()


def test_streams_are_those_of_the_generator():
    streams = pickle.loads(pickle.dumps(tasks.Streams()))  # as processes get it
    for place in [(1, "poems", 2, 3), (1, "poems", 3, 3), (1, "poems", 2, 3), (0, "x", 0, 0)]:
        stream, wanted = streams(*place), tasks.generator(*place)
        assert stream.random() == wanted.random()
        assert (
            stream.integers(1 << 30, size=3).tolist() == wanted.integers(1 << 30, size=3).tolist()
        )
        assert (stream.permutation(9) == wanted.permutation(9)).all()


def test_tasks_are_chosen_by_weight():
    weights = {"lm": 3.0, "infill": 1.0, "write": 0.0, "record": 5.0}
    rng = tasks.generator(0, "", 0, 0)
    chosen = [tasks.choose_task(weights, rng) for _ in range(2000)]
    assert set(chosen) == {"lm", "infill"}
    assert 0.7 < chosen.count("lm") / len(chosen) < 0.8


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="'mlm' is not known; accepted: lm, write"):
        tasks.check_tasks({"mlm": 1}, "poems.jsonl")


@given(st.text(alphabet="ab明X。.! \n<", max_size=300), st.integers(4, 40), st.booleans())
@limits(max_examples=150, deadline=None)
def test_pieces_join_to_the_text_and_are_small(text, room, draw_first):
    rng = np.random.default_rng(len(text)) if draw_first else None
    pieces = split_text(text, TOKENIZER, room, rng)
    assert "".join(pieces) == text
    assert all(pieces) or not text
    for piece in pieces:
        size = len(TOKENIZER.encode(escape(piece))[0])
        assert size <= room + 2  # a cut between two tokens may cost one


@given(st.text(alphabet="ab明X。 \n", min_size=2, max_size=80))
@limits(max_examples=60, deadline=None)
def test_halving_gets_smaller(text):
    pieces = halve(text, TOKENIZER)
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert all(0 < len(piece) < len(text) for piece in pieces)


def drawer(shape, **weights):
    made = [source("x.txt", tasks=weights)]
    return Drawer(made, ["x"], TOKENIZER, settings(shape=shape))


@given(st.text(alphabet="ab明月。XYZ \n<", min_size=1, max_size=400), st.integers(0, 3))
@limits(max_examples=60, deadline=None)
def test_long_texts_become_instances_that_fit(text, draw):
    if not text.strip():
        return
    shape = RowShape(64, 700, 8, 40)
    document = Document("x.txt:1", {"text": text})
    drawn = drawer(shape, write=1.0)(Work(0, 7, draw, document))
    assert not drawn.problems
    answers = ""
    for instance in drawn.instances:
        assert len(instance) <= 64
        assert instance.num_targets <= 40
        assert instance.num_ext <= 4
    answers = sum(instance.num_chars for instance in drawn.instances)
    assert answers == len(text)


def test_a_draw_does_not_depend_on_other_draws():
    draw = drawer(RowShape(64, 700, 8, 64), lm=1.0, infill=1.0)
    works = [Work(0, i, k, Document(f"x:{i}", {"text": POEM * (i + 1)})) for i in range(4)
             for k in range(2)]  # fmt: skip
    alone = [draw.many([work])[0] for work in works]
    for one, other in zip(draw.many(works[::-1])[::-1], alone):
        for a, b in zip(one.instances, other.instances):
            np.testing.assert_array_equal(a.tokens, b.tokens)
    again = {tuple(alone[2 * i].instances[0].tokens.ravel()) for i in range(4)}
    assert len(again | {tuple(alone[1].instances[0].tokens.ravel())}) == 5
