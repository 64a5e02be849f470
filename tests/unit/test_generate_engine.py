"""The engine over the NumPy network: buckets, batches, limits, and what `generate` does with it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from reference_cpm_bee import Reference, ReferenceNetwork, random_weights

from mindplm.config import GenerateConfig
from mindplm.data import prompts as prompting
from mindplm.errors import ConfigError, DataError
from mindplm.generate import generate, write
from mindplm.generate.bee_layout import BeeLayout
from mindplm.generate.engine import Engine, rows_at_once
from mindplm.generate.model import Model
from mindplm.generate.policies import stream_of
from mindplm.generate.search import BeamSearch
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer

TOKENIZER = CpmBeeTokenizer([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz"])
CONFIG = {
    **{"vocab_size": TOKENIZER.vocab_size, "dim_model": 16, "num_heads": 2, "dim_head": 8},
    **{"dim_ff": 24, "num_layers": 3, "position_bias_num_buckets": 16},
    **{"position_bias_num_segment_buckets": 64, "position_bias_max_distance": 32},
    "mask_modules": [[False, False], [True, False], [False, True]],
}
PROMPTS = [
    {"input": "abc", "<ans>": ""},
    {"input": "abc<mask_0>def<mask_1>", "<ans>": {"<mask_0>": "", "<mask_1>": ""}},
    {"input": "hello" * 12, "question": "why", "<ans>": ""},
    {"<ans>": {"a": "", "b": {"c": ""}}},
    {"input": "x<option_3>\u30ab", "options": {"<option_3>": "a", "<option_1>": "b"}, "<ans>": ""},
    {"input": "hello" * 30, "<ans>": ""},
]


def model(seed: int = 0) -> Model:
    network = ReferenceNetwork(Reference(CONFIG, random_weights(CONFIG, seed)))
    return Model("cpm_bee", SimpleNamespace(max_depth=8), network)


SETTINGS = [
    {},
    {"beams": 3},
    {"beams": 2, "repetition_penalty": 1.3, "length_penalty": 0.5},
    {"temperature": 1.0, "top_p": 0.9, "seed": 11},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_batches_write_what_single_prompts_write(options) -> None:
    options = {**options, "max_new_tokens": 12}
    together = generate(model(), TOKENIZER, PROMPTS, **options)
    seed = options.pop("seed", 0)
    for i, prompt in enumerate(PROMPTS):
        alone = generate(model(), TOKENIZER, [prompt], seed=[stream_of(seed, i)], **options)
        assert alone == [together[i]]
    small = generate(model(), TOKENIZER, PROMPTS, batch_size=2, seed=seed, **options)
    assert small == together


@pytest.mark.parametrize("beams", [1, 2])
def test_the_cache_equals_reading_everything_again(beams) -> None:
    """Every step's logits equal those of one pass over prompt and all that was fed."""
    net = model().network
    engine = Engine(net, BeeLayout(TOKENIZER), buckets=[64], batch_size=2)
    ready = [prompting.prepare(p, TOKENIZER) for p in (PROMPTS[1], PROMPTS[4])]
    batch = prompting.batch(ready, TOKENIZER, bucket=64, max_rel=1024, max_ext=32)
    width = TOKENIZER.vocab_size + batch.num_ext
    steps = 0

    class Checked(BeamSearch):
        def __init__(self, plan, **options):
            super().__init__(plan, **options)
            self.history = [[] for _ in range(2 * beams)]

        def advance(self, logits):
            nonlocal steps
            steps += 1
            for row, values in enumerate(zip(*self.feed())):
                self.history[row] = [*self.history[row], values]
            for row, history in enumerate(self.history):
                wanted = read_again(net, batch, row // beams, history)[:width]
                np.testing.assert_allclose(logits[row, :width], wanted, atol=2e-5)
            parents = super().advance(logits)
            if parents is not None:
                self.history = [self.history[parent] for parent in parents]
            return parents

    options = {"beams": beams, "max_new_tokens": 7}
    written = engine.run(
        ready, lambda plan, _: Checked(plan, **options), rows_per_prompt=beams, max_new_tokens=7
    )
    assert len(list(written)) == 2
    assert steps > 3


def read_again(net, batch, i, history) -> np.ndarray:
    """Logits after the last token of a history, without a cache.

    As in the cache, the prompt does not see what is written, which sees everything before it.
    """
    columns = {n: batch.columns[n][i : i + 1] for n in prompting.COLUMNS[:9]}
    ids, subs, segments, positions = np.array(history, np.int32).T[:, None]
    more = {"ids": ids, "subs": subs, "segment_ids": segments}
    for name in prompting.COLUMNS[:8]:
        last = np.repeat(columns[name][:, -1:], len(history), 1)
        columns[name] = np.concatenate([columns[name][:, :-1], more.get(name, last)], 1)
    columns["positions"][:, -len(history) :] = positions
    ext = [batch.columns[name] for name in ("ext_ids", "ext_sub", "num_ext")]
    order = np.arange(columns["ids"].shape[1])
    written = order >= len(order) - len(history)
    keep = (columns["num_segments"] != 0)[:, None] & (
        ~written[None, None] | (written[:, None] & (order <= order[:, None]))[None]
    )
    where = {
        **{"position": columns["positions"], "sample": columns["sample_ids"]},
        **{"segment": columns["segment_ids"], "num_segments": columns["num_segments"]},
        **{"offset": columns["rel_offset"], "rel": columns["segment_rel"]},
        "span": np.zeros_like(columns["ids"]),
    }
    index = net.model.bias_index(where, where)
    states, _ = net.model.run(columns["ids"], columns["subs"], index, keep)
    return net.model.project(states[-1], *ext[:2])[0, -1]


def test_few_shapes_occur() -> None:
    """One prompt shape per bucket and one step shape, whatever the prompts' lengths."""
    wrapped = model()
    config = GenerateConfig(max_new_tokens=20, beams=2, buckets=(32, 64, 128, 256))
    prompts = [{"input": "a" * n, "<ans>": ""} for n in range(1, 100, 7)]
    write(wrapped, TOKENIZER, prompts, config, batch_size=4)
    shapes = wrapped.network.shapes
    assert len(shapes["start"]) == 3
    assert len(shapes["step"]) == 1
    write(wrapped, TOKENIZER, prompts[::-1], config, batch_size=4)
    assert len(shapes["start"]) == 3
    assert len(shapes["step"]) == 1


@pytest.mark.parametrize("beams", [1, 2])
def test_long_prompts_are_read_few_at_once(beams, monkeypatch) -> None:
    """Memory grows with the square of the length; what is written does not depend on that."""
    prompts = [{"input": "ab" * n, "<ans>": ""} for n in (9, 50, 2, 45, 3, 51, 4)]
    options = {"max_new_tokens": 5, "beams": beams, "buckets": (32, 64, 128)}
    free = generate(model(), TOKENIZER, prompts, batch_size=4, **options)
    monkeypatch.setattr("mindplm.generate.engine.MOST_PAIRS", 2 * 128**2)
    wrapped = model()
    assert generate(wrapped, TOKENIZER, prompts, batch_size=4, **options) == free
    assert {shapes[0] for shapes in wrapped.network.shapes["start"]} == {(2, 128), (4, 32)}
    assert [rows_at_once(8, length) for length in (32, 64, 128, 4096)] == [8, 8, 2, 1]


def test_prompts_with_many_segments_and_tags_get_more_room() -> None:
    wide = {f"k{i}": f"<mask_{i}>" for i in range(40)}
    filled = generate(model(), TOKENIZER, [{"input": wide, "<ans>": ""}], max_new_tokens=3)
    assert filled[0]["input"] == wide
    assert isinstance(filled[0]["<ans>"], str)


def test_seeds_belong_to_prompts() -> None:
    options = {"temperature": 1.5, "max_new_tokens": 10}
    same = generate(model(), TOKENIZER, ["abc"] * 3, seed=[4, 4, 5], **options)
    assert same[0] == same[1] != same[2]
    counted = generate(model(), TOKENIZER, ["abc"] * 2, seed=4, **options)
    streams = [stream_of(4, number) for number in range(2)]
    assert counted == generate(model(), TOKENIZER, ["abc"] * 2, seed=streams, **options)


def test_blanks_beyond_the_limit_are_none() -> None:
    record = {"<ans>": {str(i): "" for i in range(9)}}
    texts = generate(model(), TOKENIZER, [record], max_new_tokens=3)[0]["<ans>"]
    assert texts["8"] is None
    assert record == {"<ans>": {str(i): "" for i in range(9)}}


def test_nothing_asked_is_nothing_written() -> None:
    assert generate(model(), TOKENIZER, []) == []


def test_a_prompt_that_is_too_long_is_counted() -> None:
    config = GenerateConfig(buckets=(32, 64))
    with pytest.raises(DataError, match=r"prompt 2 has 1\d\d tokens.*\(64\) holds 63"):
        write(model(), TOKENIZER, ["abc", "abc" * 40], config)


def test_a_bad_prompt_is_named_by_its_number() -> None:
    with pytest.raises(DataError, match="prompt 2: record.input"):
        generate(model(), TOKENIZER, ["abc", "a < b"], strict=True)
    with pytest.raises(DataError, match="a list of prompts, got one str"):
        generate(model(), TOKENIZER, "abc")


@pytest.mark.parametrize(
    "options",
    [
        {"beams": 2, "temperature": 1.0},
        {"max_new_tokens": 0},
        {"seed": [1, 2]},
        {"seed": -1},
        {"batch_size": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        generate(model(), TOKENIZER, ["abc"], **options)
