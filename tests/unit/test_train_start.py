"""Starting a run from the weights of another: what is taken, what stays new, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindplm import checkpoint, families
from mindplm.config import RuntimeConfig
from mindplm.errors import CheckpointError, ConfigError
from mindplm.models.bert.cell import Bert
from mindplm.models.bert.config import BertConfig
from mindplm.models.cpt.cell import Cpt
from mindplm.models.cpt.config import CptConfig
from mindplm.nn.init import initialise
from mindplm.nn.values import to_arrays
from mindplm.runtime import setup
from mindplm.strict import to_plain
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from mindplm.train.begin import load_common

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcd"])
SIZES = {"vocab_size": 9, "hidden_size": 8, "num_heads": 2, "ffn_size": 12, "max_len": 16}
BERT = BertConfig(**SIZES, num_layers=2)
CPT = CptConfig(**SIZES, num_layers=2, num_decoder_layers=1)


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in to_arrays(model.get_parameters()).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    setup(RuntimeConfig(device="cpu"))
    path = tmp_path_factory.mktemp("start") / "bert"
    model = Bert(BERT)
    initialise(model, 1)
    checkpoint.write(
        path,
        family="bert",
        model_config=to_plain(BERT),
        weights=weights_of(model),
        tokenizer_files=TOKENIZER.files(),
    )
    return path


def test_the_same_model_takes_all(folder):
    model = Bert(BERT)
    initialise(model, 2)
    load_common(model, str(folder))
    saved = checkpoint.read(folder).weights()
    assert all((array == saved[name]).all() for name, array in weights_of(model).items())


def test_another_family_takes_its_encoder(folder):
    model = Cpt(CPT)
    initialise(model, 2)
    before, saved = weights_of(model), checkpoint.read(folder).weights()
    load_common(model, str(folder))
    for name, array in weights_of(model).items():
        wanted = saved if name.startswith("encoder.") else before
        assert (array == wanted[name]).all(), name


def test_other_sizes_are_refused(folder):
    model = Bert(replace(BERT, hidden_size=16))
    initialise(model, 2)
    with pytest.raises(CheckpointError, match="has shape"):
        load_common(model, str(folder))


def test_settings_without_sizes_are_those_of_the_checkpoint(folder, tmp_path):
    path = tmp_path / "run.yaml"
    text = "family: bert\nmodel: {}\n"
    text += "data: {folder: d, seq_len: 16, train: [{path: 'embedded:poems'}]}\n"
    path.write_text(text + f"train: {{steps: 1, output: o, start: {folder}}}\n")
    config = families.load_config(path)
    assert config.model == BERT
    assert config.tokenizer.path == str(folder / "vocab.txt")
    with pytest.raises(ConfigError, match="train.start=.*nowhere: no checkpoint there"):
        families.load_config(path, [f"train.start={tmp_path}/nowhere"])
