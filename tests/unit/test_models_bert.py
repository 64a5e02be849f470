"""BERT's and CPT's settings: published sizes, and what is refused of foreign settings."""

from __future__ import annotations

from typing import Any

import pytest

from mindplm.errors import ConfigError
from mindplm.models.bert import config as bert
from mindplm.models.cpt import config as cpt
from mindplm.weights.rules import to_ours, to_theirs

# Of the masked-LM classes of the public library, which count the tied output matrix once.
PUBLISHED = {
    "chinese_base": 102_290_312,
    "english_base": 109_514_298,
    "english_large": 335_174_458,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    assert bert.num_parameters(bert.PRESETS[name]) == count


@pytest.mark.parametrize("family", [bert, cpt], ids=["bert", "cpt"])
def test_settings_survive_the_way_to_the_original_and_back(family: Any) -> None:
    for preset in family.PRESETS.values():
        assert family.from_original(family.to_original(preset)) == preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act=relu, expected gelu"),
        ({"num_hidden_layers": None}, "missing key.*num_hidden_layers"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key"),
        ({"num_attention_heads": 5}, "model.hidden_size=768, expected a multiple of"),
    ],
)
def test_a_bert_that_is_none_is_refused(change: Any, message: str) -> None:
    theirs = {**bert.to_original(bert.PRESETS["chinese_base"]), **change}
    theirs = {key: value for key, value in theirs.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        bert.from_original(theirs)


def test_cpt_needs_more_blocks_than_its_decoder() -> None:
    with pytest.raises(ConfigError, match="expected more than model.num_decoder_layers=2"):
        cpt.CptConfig(num_layers=2)


@pytest.mark.parametrize("flavour", cpt.FLAVOURS)
def test_rules_of_cpt_cover_every_parameter_both_ways(flavour: str) -> None:
    import numpy as np

    config = cpt.CptConfig(
        vocab_size=7, hidden_size=4, num_heads=2, ffn_size=6, num_layers=3, max_len=5
    )
    shapes = cpt.parameter_shapes(config)
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if flavour == "bare":  # such files have no output bias; it is zeros then
        ours["logits_bias"][:] = 0
    theirs = to_theirs(cpt.rules(config, flavour), ours)
    assert cpt.flavour_of(theirs) == flavour
    assert ("final_logits_bias" in theirs) == (flavour == "hf")
    again = to_ours(cpt.rules(config, flavour), theirs, shapes)
    assert all(again[name].tobytes() == array.tobytes() for name, array in ours.items())
