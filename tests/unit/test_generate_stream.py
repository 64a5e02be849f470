"""Streaming, stop strings, examples, several results: what the engine's users see."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
from test_generate_engine import CONFIG, PROMPTS, SETTINGS, TOKENIZER, model

import mindplm
from mindplm.config import GenerateConfig
from mindplm.data import prompts as prompting
from mindplm.data.answers import answer
from mindplm.data.cpm_bee import to_arrays
from mindplm.data.instances import append_incontext, make_instance
from mindplm.data.packing import Packer, RowShape, collate
from mindplm.errors import ConfigError, DataError, UserError
from mindplm.generate import generate, stream, write
from mindplm.generate.copying import texts_of
from mindplm.generate.policies import stream_of
from mindplm.text import unescape

MORE = [
    *SETTINGS,
    {"per_blank": True, "temperature": 1.2},
    {"stop": ["e", "ab", "zq"], "temperature": 1.5},
    {"stop": ["ef", "<", "_"], "temperature": 3.0, "per_blank": True, "min_new_tokens": 2},
    {"beams": 3, "stop": ("a", "cd"), "per_blank": True},
    {"temperature": 1.0, "repetition_penalty": 1.5, "repetition_form": "written", "min_p": 0.05},
    {"bad_words": ["a", "xy"], "temperature": 1.5},
    {"copy_only": True, "temperature": 1.5},
    {"copy_only": True, "beams": 3, "per_blank": True},
]
EXAMPLES = [
    {"input": "xy<option_3>", "<ans>": {"k": "z<option_7>", "l": "\u30ab"}},
    {"question": "ab", "<ans>": "cd"},
]


def leaves(value, path=()) -> dict:
    if isinstance(value, dict):
        found: dict = {}
        for key, item in value.items():
            found |= leaves(item, (*path, key))
        return found
    return {path: value}


@pytest.mark.parametrize("options", MORE)
def test_the_pieces_of_a_stream_are_what_is_written(options) -> None:
    made = model()
    options = {**options, "max_new_tokens": 12}
    several = 0
    for number, prompt in enumerate(PROMPTS):
        options["seed"] = number
        whole = generate(made, TOKENIZER, [prompt], **options)[0]
        texts: dict[tuple[str, ...], str] = {}
        for piece in stream(made, TOKENIZER, prompt, **options):
            assert piece
            assert unescape(piece).count("<") * 2 >= piece.count("<<")
            several += piece.path in texts
            texts[piece.path] = texts.get(piece.path, "") + piece
        assert texts == {path: text for path, text in leaves(whole["<ans>"]).items() if text}
    assert several > 5 or "beams" in options


@pytest.mark.parametrize("options", MORE)
def test_neither_batch_nor_bucket_nor_padding_changes_what_is_written(options) -> None:
    options = {"max_new_tokens": 9, **options, "examples": EXAMPLES}
    seed = options.pop("seed", 3)
    together = generate(model(), TOKENIZER, PROMPTS, seed=seed, **options)
    other = generate(
        model(), TOKENIZER, PROMPTS, seed=seed, buckets=(300,), batch_size=4, **options
    )
    assert together == other
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model(), TOKENIZER, [prompt], seed=[stream_of(seed, i)], **options)
        assert alone == [together[i]]


@pytest.mark.parametrize("options", [{"temperature": 1.5}, {"beams": 3}])
def test_copied_answers_stand_in_their_records(options) -> None:
    found, strange = 0, 0
    for copy_only in (False, True):
        written = generate(
            model(),
            TOKENIZER,
            PROMPTS,
            copy_only=copy_only,
            per_blank=True,
            max_new_tokens=4,
            **options,
        )
        for prompt, record in zip(PROMPTS, written):
            texts = texts_of({"input": prompt} if isinstance(prompt, str) else prompt)
            shown = ["".join(text.split()) for text in texts]
            for text in leaves(record["<ans>"]).values():
                for part in unescape(text).split("；"):
                    found += bool(part)
                    stands = not part or any("".join(part.split()) in own for own in shown)
                    strange += not stands
                    assert stands or not copy_only
    assert strange > 5 and found > strange + 5


def test_stop_strings_cut_exactly() -> None:
    """What is written is the free text up to the first stop string, whatever the tokens."""
    free = generate(model(), TOKENIZER, ["abc"] * 30, temperature=1.5, max_new_tokens=25)
    stop = ("ab", "d", "vz", "kg")
    kept = generate(model(), TOKENIZER, ["abc"] * 30, temperature=1.5, max_new_tokens=25, stop=stop)
    cut = 0
    for long, short in zip(free, kept):
        text = unescape(long["<ans>"])
        places = [text.find(word) for word in stop if word in text]
        assert unescape(short["<ans>"]) == text[: min(places, default=len(text))]
        cut += bool(places)
    assert cut > 10


def test_stop_strings_may_lie_inside_tags_and_doubled_characters() -> None:
    table = {2: "<mask_3>"}
    lines = TOKENIZER.id_to_token
    classes = [lines.index("a"), 2, lines.index("b"), TOKENIZER.eos_id]
    for stop, wanted in [
        ((), "a<mask_3>b"),
        (("mask",), "a<<"),
        (("<mask",), "a"),
        ((">b",), "a<<mask_3"),
        (("b",), "a<mask_3>"),
        (("c",), "a<mask_3>b"),
        (("a",), ""),
    ]:
        assert answer(classes, table, TOKENIZER, stop) == wanted


def test_several_results_are_ranked() -> None:
    options = {"beams": 4, "max_new_tokens": 6}
    best = generate(model(), TOKENIZER, PROMPTS[:3], **options)
    ranked = generate(model(), TOKENIZER, PROMPTS[:3], num_best=3, **options)
    for one, several in zip(best, ranked):
        assert several[0] == one
        assert len(several) == 3


def test_records_are_never_changed() -> None:
    records = [*PROMPTS, {"input": "a < b", "x<y": "c", "<ans>": {"p<q": "old", "r": None}}]
    examples = [{"input": "1 < 2", "<ans>": {"<mask_0>": "x"}}]
    before = copy.deepcopy((records, examples))
    filled = generate(model(), TOKENIZER, records, examples=examples, max_new_tokens=4)
    list(stream(model(), TOKENIZER, records[-1], examples=examples, max_new_tokens=4))
    assert (records, examples) == before
    assert filled[-1]["input"] == "a < b"
    assert set(filled[-1]["<ans>"]) == {"p<q", "r"}


def test_strict_gives_the_errors_of_the_original() -> None:
    for prompt in ("a < b", "<b>x</b>", "<用户>a<AI>", {"a<b": "", "<ans>": ""}):
        assert generate(model(), TOKENIZER, [prompt], max_new_tokens=2)
        with pytest.raises(DataError):
            generate(model(), TOKENIZER, [prompt], max_new_tokens=2, strict=True)
        with pytest.raises(DataError):
            stream(model(), TOKENIZER, prompt, strict=True)


def test_dialogue_markers_are_laid_out() -> None:
    laid = prompting.prepare(
        {"input": "用户： ab\n<sep>AI： c\n<sep>用户： d\n<sep>AI：", "<ans>": ""}, TOKENIZER
    )
    marked = {"input": "<用户>ab<AI>c<用户>d<AI>", "<ans>": ""}
    ready = prompting.prepare(marked, TOKENIZER, strict=False)
    np.testing.assert_array_equal(ready.tokens, laid.tokens)


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_examples_are_seen_as_in_training(number) -> None:
    """First scores of a prompt with examples = those of training on the same instance."""
    net = model().network
    record = copy.deepcopy(PROMPTS[number])
    ready = prompting.prepare(record, TOKENIZER, examples=EXAMPLES)
    batch = prompting.batch([ready], TOKENIZER, bucket=256, max_rel=2048, max_ext=32)
    columns = [batch.columns[name] for name in prompting.COLUMNS]
    lengths = np.zeros(256, np.int32), np.zeros(44, np.int32)
    logits, _ = net.start(columns, np.zeros(1, np.int32), *lengths)

    paths: list = []
    record["<ans>"] = prompting._placeholders(record["<ans>"], (), paths)
    sample = to_arrays(record, TOKENIZER)
    instance, state = make_instance(sample), sample.state
    for example in EXAMPLES:
        shown = to_arrays(example, TOKENIZER, state=state)
        instance, state = append_incontext(instance, shown), shown.state
    packer = Packer(1, RowShape(512, 0, 0, 0))
    packer.add(instance)
    row = packer.flush()[0]
    rows = collate([row], num_rows=1, shape=RowShape(len(row), 2048, 32, 512), marks=TOKENIZER)
    states, _ = net.model.training(
        {
            **{"inputs": rows["ids"], "inputs_sub": rows["subs"], "length": rows["length"]},
            **{"segment_rel_offset": rows["rel_offset"], "segment_rel": rows["segment_rel"]},
            **{n: rows[n] for n in ("sample_ids", "segment_ids", "spans", "num_segments")},
            **{"context": rows["context"] != 0},
            **{n: batch.columns[n][: batch.num_ext] for n in ("ext_ids", "ext_sub")},
        }
    )
    opening = int(rows["target_pos"][0, 0])
    ext = [batch.columns[name][: batch.num_ext] for name in ("ext_ids", "ext_sub")]
    wanted = net.model.project(states[-1], *ext)[0, opening]
    np.testing.assert_allclose(logits[0, : len(wanted)], wanted, atol=5e-5)


def test_bad_examples_are_named() -> None:
    for example, word in [
        ("text", "example 2: expected a record"),
        ({"input": "a"}, "example 2: the record has no answers"),
        ({"<ans>": {"a": None}}, r"example 2: record.<ans>.a is null"),
    ]:
        with pytest.raises(DataError, match=word):
            generate(model(), TOKENIZER, ["a"], examples=[EXAMPLES[0], example])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"beems": 2}, "no setting beems.*beams"),
        ({"stop": ("",)}, "generate.stop"),
        ({"stop": "ab"}, "generate.stop"),
        ({"num_best": 2}, "generate.num_best=2"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "generate.min_new_tokens=9"),
        ({"min_new_tokens": 2, "copy_only": True}, "generate.copy_only"),
        ({"copy_joiner": ", "}, "generate.copy_joiner=', '"),
        ({"min_p": 2.0}, "generate.min_p=2.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, word) -> None:
    with pytest.raises(ConfigError, match=word):
        generate(model(), TOKENIZER, ["abc"], **options)


ATOMS = [
    *["<", "<<", ">", "<mask_0>", "<ans>", "<ans_1>", "<option_2>", "<sep>", "</s>", "<s>", "<b>"],
    *["<用户>", "<AI>", "\ud800", "\x00", "a", "hello ", "\u30ab", "\n", "_", "<unk_0>", "<root>"],
]


def fuzzed(rng: random.Random, depth: int = 0):
    kind = rng.random()
    if depth > 3 or kind < 0.55:
        return "".join(rng.choices(ATOMS, k=rng.randrange(6)))
    if kind < 0.65:
        return rng.choice([None, 3, 1.5, True, [], ["a"], {}, b"x", float("nan"), ("a",)])
    keys = [*ATOMS, "input", "options", "<ans>", 3, None]
    return {rng.choice(keys): fuzzed(rng, depth + 1) for _ in range(rng.randrange(5))}


def test_no_record_crashes() -> None:
    rng = random.Random(5)
    used, refused = [], 0
    for number in range(10_000):
        record = fuzzed(rng)
        if isinstance(record, dict) and rng.random() < 0.8:
            record["<ans>"] = fuzzed(rng) if rng.random() < 0.5 else ""
        try:
            ready = prompting.as_record(record)
            prompting.prepare(ready, TOKENIZER, strict=number % 2 == 0)
            if number % 2:
                used.append(record)
        except UserError as error:
            assert str(error)
            refused += 1
    assert len(used) > 1000
    assert refused > 1000
    write(model(), TOKENIZER, used[:40], GenerateConfig(max_new_tokens=2))


def test_records_of_absurd_size_are_refused() -> None:
    deep: dict = {"<ans>": ""}
    for _ in range(3000):
        deep = {"a": deep}
    wide = {str(i): "" for i in range(5000)}
    for record, word in [
        ({"x": deep, "<ans>": ""}, "nested too deeply"),
        ({"<ans>": deep}, "nested too deeply"),
        ({**wide, "<ans>": ""}, "10002 keys and texts, at most 4096"),
    ]:
        for strict in (True, False):
            with pytest.raises(DataError, match=word):
                prompting.prepare(record, TOKENIZER, strict=strict)


def test_public_names() -> None:
    assert mindplm.stream is stream
    assert mindplm.text.escape("<") == "<<"
    assert CONFIG["num_layers"] == 3
