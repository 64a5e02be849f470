"""The compiled network: the same as the NumPy one, few graphs, read from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from reference_cpm_bee import Reference, ReferenceNetwork, random_weights
from test_generate_engine import CONFIG, PROMPTS, TOKENIZER

from mindplm import checkpoint
from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.errors import CheckpointError
from mindplm.generate import generate, load, write
from mindplm.generate.model import Model, from_cell
from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.models.cpm_bee.config import from_openbmb, parameter_shapes, rules
from mindplm.nn.lora import linears
from mindplm.nn.values import load_model
from mindplm.runtime import setup
from mindplm.weights.rules import to_ours

SIZES = from_openbmb(CONFIG)


def our_weights(seed: int) -> dict[str, np.ndarray]:
    return to_ours(rules(SIZES), random_weights(CONFIG, seed), parameter_shapes(SIZES))


@pytest.fixture(scope="module")
def model() -> Model:
    setup(RuntimeConfig(device="cpu"))
    cell = CpmBee(SIZES)
    load_model(cell, our_weights(0), "test")
    return from_cell(cell, SIZES)


def reference(seed: int) -> Model:
    network = ReferenceNetwork(Reference(CONFIG, random_weights(CONFIG, seed)))
    return Model("cpm_bee", SIZES, network)


@pytest.mark.parametrize(
    "options", [{"beams": 3, "repetition_penalty": 1.2}, {"temperature": 1.0, "top_k": 9}]
)
def test_it_writes_what_the_numpy_network_writes(model, options) -> None:
    config = GenerateConfig(max_new_tokens=10, buckets=(128,), **options)
    ours = write(model, TOKENIZER, PROMPTS[:5], config, batch_size=3)
    assert ours == write(reference(0), TOKENIZER, PROMPTS[:5], config, batch_size=3)


def test_many_rows_whose_products_are_turned_round_write_the_same(model) -> None:
    projections = linears(model.cell).values()
    assert all(part.may_turn for part in projections)
    assert not any(part.may_turn for part in linears(CpmBee(SIZES)).values())
    prompts, config = (PROMPTS[:5] * 3)[:13], GenerateConfig(max_new_tokens=6, buckets=(128,))
    ours = write(model, TOKENIZER, prompts, config, batch_size=13)
    assert ours == write(reference(0), TOKENIZER, prompts, config, batch_size=13)


def test_one_graph_per_bucket_and_one_step(model) -> None:
    fresh = from_cell(model.network._start.prefill.model, SIZES)
    config = GenerateConfig(max_new_tokens=9, beams=2, buckets=(32, 64, 128))
    prompts = [{"input": "a" * n, "<ans>": ""} for n in (1, 5, 40, 45)]
    write(fresh, TOKENIZER, prompts, config, batch_size=2)
    assert fresh.network.num_graphs == (2, 1)
    write(fresh, TOKENIZER, [*prompts[::-1], "bcd"], config, batch_size=2)
    assert fresh.network.num_graphs == (2, 1)
    assert sum(1 for _ in fresh.network._step.get_parameters()) == len(our_weights(0))


def test_a_checkpoint_writes_what_its_weights_write(tmp_path) -> None:
    arrays = our_weights(3)
    checkpoint.write(
        tmp_path / "model",
        family="cpm_bee",
        model_config=asdict(SIZES),
        weights=arrays,
        tokenizer_files=TOKENIZER.files(),
    )
    model, tokenizer = load(tmp_path / "model", RuntimeConfig(device="cpu"))
    assert str(model) == f"cpm_bee, {sum(a.size for a in arrays.values()):,} parameters"
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    ours = generate(model, tokenizer, PROMPTS[:2], max_new_tokens=6)
    assert ours == generate(reference(3), TOKENIZER, PROMPTS[:2], max_new_tokens=6)


def test_a_vocabulary_of_another_size_is_refused(tmp_path) -> None:
    lines = [*TOKENIZER.lines, "extra"]
    checkpoint.write(
        tmp_path / "model",
        family="cpm_bee",
        model_config=asdict(SIZES),
        weights=our_weights(0),
        tokenizer_files={"vocab.txt": "".join(f"{line}\n" for line in lines).encode()},
    )
    with pytest.raises(CheckpointError, match=f"vocab.txt has {len(lines)} entries"):
        load(tmp_path / "model", RuntimeConfig(device="cpu"))
