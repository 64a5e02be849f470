"""A public T5 folder into ours and back; its form is what its tensors have, whatever it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindplm import assets, checkpoint
from mindplm.convert import convert
from mindplm.models.t5.config import T5Config, parameter_shapes, rules, to_original
from mindplm.tokenizers.sentencepieces import T5Tokenizer
from mindplm.weights.rules import to_theirs

VOCAB = assets.path("pieces_t5.model")
TALL = T5Config(
    T5Tokenizer.from_file(VOCAB).vocab_size, 8, 2, 12, 2, num_decoder_layers=2, head_dim=4
)


def public_folder(folder: Path, config: T5Config, told: T5Config) -> dict[str, np.ndarray]:
    """Writes what the HF library would write, with settings that may tell of another form."""
    rng = np.random.default_rng(1)
    shapes = parameter_shapes(config)
    ours = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    theirs = to_theirs(rules(config), ours)
    folder.mkdir()
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_original(told)))
    (folder / "spiece.model").write_bytes(VOCAB.read_bytes())
    return ours


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back(tmp_path: Path, gated: bool, tied: bool) -> None:
    config = dataclasses.replace(TALL, gated=gated, tied=tied)
    ours = public_folder(tmp_path / "theirs", config, TALL)
    report = convert(tmp_path / "theirs", tmp_path / "ours", family="t5", verify=True)
    assert report.verified
    saved = checkpoint.read(tmp_path / "ours")
    assert saved.model() == config
    for name, array in saved.weights().items():
        assert array.tobytes() == ours[name].tobytes(), name
    convert(tmp_path / "ours", tmp_path / "back", back="hf", verify=True)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in after.items()}
    told = json.loads((tmp_path / "back" / "config.json").read_text())
    assert told["tie_word_embeddings"] == tied
    assert told["feed_forward_proj"] == ("gated-gelu" if gated else "relu")
    assert (tmp_path / "back" / "spiece.model").read_bytes() == VOCAB.read_bytes()
