"""CPT's greedy and beam search against the original's under HF Transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import golden_dirs
from test_causal_generation import NAMES, written_ids
from test_cpt_model import Case

from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.cpt_layout import cpt_layout
from mindplm.generate.text_layout import TextPrompt
from mindplm.models.cpt.decode import writing_cells
from mindplm.runtime import setup

OTHERS = {"do_sample", "max_length", "min_length", "token_type_ids", "bad_words_ids"}
SEP = 102


def settings(args: dict) -> GenerateConfig:
    assert set(args) <= {*NAMES, *OTHERS}
    chosen = {NAMES[name]: value for name, value in args.items() if name in NAMES}
    least = max(0, args.get("min_length", 0) - 1)  # theirs count the start token
    most = args["max_length"] - 1
    bad = tuple(map(text_of, args.get("bad_words_ids", ())))
    limits = {"max_new_tokens": most, "min_new_tokens": least, "buckets": (16,)}
    return GenerateConfig(**limits, bad_words=bad, **chosen)


def text_of(ids, **_) -> str:
    """A character for each id, so that texts are as certain as ids."""
    return "".join(chr(0x4E00 + token) for token in ids)


@pytest.mark.parametrize("path", golden_dirs("cpt", "generate_*.json"), ids=lambda p: p.stem)
@pytest.mark.parametrize("kind", [0, 1], ids=lambda kind: f"type{kind}")
def test_what_is_written_is_what_the_original_writes(path, kind):
    setup(RuntimeConfig(device="cpu"))
    case = Case(path.stem.split("_")[1])
    case.model.config = replace(case.config, write_type=kind)
    names = {"pad_id": 0, "unk_id": 100, "sep_id": SEP, "mask_id": 103}
    tokenizer = SimpleNamespace(vocab_size=case.config.vocab_size, decode=text_of, **names)
    layout = cpt_layout(tokenizer, case.config)
    network = CompiledNetwork(*writing_cells(case.model))
    rows = zip(case.arrays["input_ids"], case.arrays["attention_mask"])
    prompts = [TextPrompt(tuple(ids[mask != 0].tolist())) for ids, mask in rows]
    for run in json.loads(path.read_text()):
        if (run["args"].get("token_type_ids") == "ones") != bool(kind):
            continue
        chosen = settings(run["args"])
        found = written_ids(network, layout, prompts, chosen, [[SEP]] * len(prompts))
        length = run["args"]["max_length"]
        filled = [[*ids, *[0] * (length - len(ids))] for ids in found]
        assert filled == run["sequences"], run["name"]
