"""Greedy and beam search of the causal families and of T5 against those of HF Transformers."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from conftest import golden_dirs
from test_cpm1 import config_of, model_of
from test_gpt1 import hf_model
from test_t5 import golden as t5_golden
from test_t5 import model_of as t5_model

from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.engine import Engine
from mindplm.generate.pair_layout import t5_layout
from mindplm.generate.policies import most_tokens, policy_maker
from mindplm.generate.text_layout import TextLayout, TextPrompt
from mindplm.models.t5.cell import writing_cells as t5_writing_cells
from mindplm.nn.causal import writing_cells
from mindplm.runtime import setup

FAMILIES = ("gpt1", "cpm1")
NAMES = {
    "num_beams": "beams",
    "num_return_sequences": "num_best",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
}


def models(family: str, tag: str):
    """(network, config, end mark) of a golden set."""
    if family == "gpt1":
        return *hf_model(tag), -1
    return model_of(tag), config_of(tag), 7


def settings(args: dict, most: int) -> GenerateConfig:
    chosen = {NAMES[name]: value for name, value in args.items() if name in NAMES}
    assert set(args) <= {*NAMES, "do_sample", "max_length", "min_length"}
    return GenerateConfig(max_new_tokens=most, buckets=(16,), **chosen)


FILES = [(family, path) for family in FAMILIES for path in golden_dirs(family, "generate_*.json")]


@pytest.mark.parametrize(("family", "path"), FILES, ids=lambda v: getattr(v, "stem", v))
def test_what_is_written_is_what_transformers_write(family, path):
    setup(RuntimeConfig(device="cpu"))
    model, config, end = models(family, path.stem.split("_")[1])
    tokenizer = SimpleNamespace(
        vocab_size=config.vocab_size, eos_id=end, unk_id=0, silent_ids=[], text_of=str
    )
    network = CompiledNetwork(*writing_cells(model))
    layout = TextLayout(tokenizer, config, lambda record, _: record["input"])
    for run in json.loads(path.read_text()):
        prompts = [TextPrompt(tuple(ids)) for ids in run["prompt"]]
        length = run.get("max_length") or run["args"]["max_length"]
        chosen = settings(run["args"], length - len(prompts[0]))
        begins = [prompt.ids for prompt in prompts]
        found = written_ids(network, layout, prompts, chosen, begins)
        assert padded(found, length) == padded(run["sequences"], length), run["name"]


def written_ids(network, layout, prompts, chosen: GenerateConfig, begins) -> list[list[int]]:
    """What is written for the prompts, behind their beginnings; the best ones of each."""
    engine = Engine(network, layout, buckets=chosen.buckets, batch_size=3, fill=True)
    written = dict(
        engine.run(
            prompts,
            policy_maker(chosen, [0] * len(prompts), [{}] * len(prompts)),
            rows_per_prompt=chosen.beams,
            max_new_tokens=most_tokens(chosen, prompts),
        )
    )
    return [
        [*begin, *(token for token, _ in pairs)]
        for i, begin in enumerate(begins)
        for pairs in written[i].ranked[: chosen.num_best]
    ]


def padded(rows, length: int) -> list[list[int]]:
    return [[*ids, *[5] * (length - len(ids))] for ids in rows]


@pytest.mark.parametrize("path", golden_dirs("t5", "generate_*.json"), ids=lambda p: p.stem)
def test_what_t5_writes_is_what_transformers_write(path):
    setup(RuntimeConfig(device="cpu"))
    tag = path.stem.split("_")[1]
    model, config = t5_model(tag)
    tokenizer = SimpleNamespace(
        vocab_size=config.vocab_size, eos_id=1, unk_id=2, silent_ids=[], text_of=str
    )
    network = CompiledNetwork(*t5_writing_cells(model))
    layout = t5_layout(tokenizer, config)
    inputs = t5_golden(f"forward_{tag}.npz")
    prompts = [
        TextPrompt(tuple(ids[real.astype(bool)].tolist()))
        for ids, real in zip(inputs["input_ids"], inputs["attention_mask"])
    ]
    for run in json.loads(path.read_text()):
        length = run["args"]["max_length"]
        chosen = dataclasses.replace(settings(run["args"], length - 1), buckets=(64,))
        found = written_ids(network, layout, prompts, chosen, [[0]] * len(prompts))
        end = [[token for token in ids if token] for ids in run["sequences"]]
        assert [[token for token in ids if token] for ids in found] == end, run["name"]
