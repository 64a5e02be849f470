"""Published numbers of parameters of the causal models and T5, and their settings both ways."""

from __future__ import annotations

import importlib
import json

import pytest

PUBLISHED = [
    ("gpt1", "117m", 116_534_784),
    ("cpm1", "small", 108_882_432),
    ("t5", "small_v10", 60_506_624),
    ("t5", "base_v10", 222_903_552),
    ("t5", "large_v10", 737_668_096),
    ("t5", "3b", 2_851_598_336),
    ("t5", "11b", 11_307_321_344),
    ("t5", "small_v11", 76_961_152),
    ("t5", "base_v11", 247_577_856),
    ("t5", "large_v11", 783_150_080),
    ("t5", "xl_v11", 2_849_757_184),
    ("t5", "xxl_v11", 11_135_332_352),
]
GPT2_FORM = [("medium", 1024, 24), ("large", 2560, 32)]


def part(family: str):
    return importlib.import_module(f"mindplm.models.{family}.config")


@pytest.mark.parametrize(("family", "preset", "count"), PUBLISHED)
def test_published_sizes_are_met_exactly(family, preset, count):
    module = part(family)
    assert module.num_parameters(module.PRESETS[preset]) == count


@pytest.mark.parametrize(("preset", "hidden", "layers"), GPT2_FORM)
def test_larger_cpm1_follow_the_formula_of_gpt2(preset, hidden, layers):
    module = part("cpm1")
    block = 12 * hidden**2 + 13 * hidden
    wanted = (30000 + 1024) * hidden + layers * block + 2 * hidden
    assert module.num_parameters(module.PRESETS[preset]) == wanted


@pytest.mark.parametrize(("family", "preset", "count"), PUBLISHED)
def test_settings_come_back_from_the_originals_form(family, preset, count):
    module = part(family)
    config = module.PRESETS[preset]
    theirs = json.loads(json.dumps(module.to_original(config, "hf")))
    assert module.from_original(theirs) == config
