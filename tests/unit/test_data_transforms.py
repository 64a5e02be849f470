"""Transforms: scripts with their mistakes named, declarations, examples beside records."""

from __future__ import annotations

import os
import pickle
import random
import re
import time

import numpy as np
import pytest
from data_samples import POEM, SHAPE, settings, small_tokenizer, source

from mindplm.data.cpm_bee import RecordError
from mindplm.data.draw import Drawer, Work
from mindplm.data.plans import RecordPlan
from mindplm.data.sources import Document
from mindplm.data.transforms import Script, apply
from mindplm.errors import ConfigError

TOKENIZER = small_tokenizer()
SCRIPT = """
def transform(data, num_sample, r):
    if data["text"] == "skip":
        return None
    key = r.choice(["input", "text", "ab", "cd", "ef"])
    return {key: data["text"], "n": str(num_sample), "<ans>": data["text"][::-1]}
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "t.py").write_text(SCRIPT)
    return tmp_path / "t.py"


def test_a_script_is_read_again_when_it_changes(script):
    own = Script(script)
    assert own({"text": "ab"}, 2, random.Random(0))["n"] == "2"
    assert not own.refresh()
    script.write_text("def transform(data, num_sample, r):\n    return {'<ans>': 'new'}\n")
    os.utime(script, (time.time() + 5, time.time() + 5))
    assert own.refresh()
    assert own({}, 0, random.Random(0)) == {"<ans>": "new"}


@pytest.mark.parametrize(("text", "words"), [
    ("def transform(:\n", r"t.py:1: SyntaxError"),
    ("x = 1\ny = x / 0\n", r"t.py:2: ZeroDivisionError: division by zero"),
    ("x = 1\n", r"t.py: defines no function transform"),
])  # fmt: skip
def test_scripts_that_cannot_be_used(script, text, words):
    script.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Script(script)
    with pytest.raises(ConfigError, match="no such transform script"):
        Script(script.parent / "none.py")


def test_a_script_that_fails_on_an_object_names_its_line(script):
    with pytest.raises(RecordError, match=r"t.py:3: KeyError: 'text'") as caught:
        Script(script)({}, 0, random.Random(0))
    assert caught.value.reason == "failed transform"


def test_nested_targets_are_made():
    data = {"q": {"1": {"t": "a"}, "2": {"t": "c"}}, "w": "z"}
    declared = {"r": {"*": {"v": "$q.*.t", "w": {"x": "k"}}}}
    with pytest.raises(RecordError, match=re.escape("has a * but its value is constant")):
        apply(declared, data)
    assert apply({"r": {"*": {"v": "$q.*.t"}}, "r.a.b": "$w", "k": "k"}, data) == {
        "r": {"1": {"v": "a"}, "2": {"v": "c"}, "a": {"b": "z"}},
        "k": "k",
    }
    with pytest.raises(RecordError, match="another target puts a text at 'x'"):
        apply({"x": "$w", "x.y": "$w"}, data)


def drawer(**keys):
    made = [source("x.jsonl", **{"tasks": {"record": 1.0}, **keys})]
    own = Drawer(made, ["x"], TOKENIZER, settings(shape=SHAPE))
    return pickle.loads(pickle.dumps(own))  # as processes get it


def documents(count=12):
    return [Document(f"x:{i}", {"text": f"{POEM[i : i + 4]}<"}) for i in range(count)]


def works(own):
    return [Work(0, i, 0, document, own) for i, document in enumerate(own)]


def test_examples_stand_behind_the_record_and_share_its_draw(script):
    draws = drawer(transforms=str(script), incontext_weight=(0.2, 0.4, 0.4)).many(
        works(documents())
    )
    shown = []
    for drawn in draws:
        (instance,) = drawn.instances
        samples = instance.tokens[3]
        count = samples.max()
        shown.append(count)
        assert drawn.counts["examples shown"] == count
        assert instance.num_targets == np.count_nonzero((samples == 0) & (instance.tokens[2] == 0))
        assert instance.tokens[2][samples > 0].all()
        # The key that the script drew, behind the root, is that of the record in all examples.
        for number in range(1, count + 1):
            first = instance.tokens[0][samples == number]
            assert first[4] == instance.tokens[0][4]
    assert set(shown) == {0, 1, 2}


def test_examples_that_do_not_fit_are_counted(script):
    own = [Document(f"x:{i}", {"text": "a" * 22}) for i in range(8)]
    draws = drawer(transforms=str(script), incontext_weight=(0, 0, 0, 1)).many(works(own))
    assert all(drawn.counts["examples not shown"] == 1 for drawn in draws)
    assert all(len(instance) <= SHAPE.seq_len for d in draws for instance in d.instances)


def test_declarations_are_drawn_from_and_failures_counted():
    declared = [{"input": "$text", "<ans>": "a"}, {"q": {"r": "$text"}, "<ans>": "b"}]
    draws = drawer(transforms=declared).many(works(documents()))
    lengths = {len(set(d.instances[0].tokens[4].tolist())) for d in draws}
    assert lengths == {5, 6}  # segments of either form
    (drawn,) = drawer(transforms=[{"<ans>": "$body"}]).many(works(documents(1)))
    assert [p.reason for p in drawn.problems] == ["no field"]
    assert "keys: text" in drawn.problems[0].message


def test_none_leaves_a_document_out_and_is_counted(script):
    work = Work(0, 0, 0, Document("x:1", {"text": "skip"}))
    (drawn,) = drawer(transforms=str(script)).many([work])
    assert not drawn.instances
    assert not drawn.problems
    assert drawn.counts["left out by the transform"] == 1


def test_what_a_transform_gives_is_checked(tmp_path):
    (tmp_path / "t.py").write_text("def transform(d, n, r):\n    return [d]\n")
    work = Work(0, 0, 0, Document("x:1", {"text": "a"}))
    (drawn,) = drawer(transforms=str(tmp_path / "t.py")).many([work])
    assert "gives a value of type list" in drawn.problems[0].message


def test_examples_need_records():
    with pytest.raises(ConfigError, match="incontext_weight=.* needs records"):
        RecordPlan(source("x.txt", tasks={"lm": 1.0}, incontext_weight=(1.0, 1.0)))


def test_a_transform_may_give_texts():
    draws = drawer(tasks={"lm": 1.0}, transforms=[{"text": "$body"}])
    (drawn,) = draws.many([Work(0, 0, 0, Document("x:1", {"body": POEM}))])
    assert drawn.num_chars == len(POEM)
    assert drawn.instances
