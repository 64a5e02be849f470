"""Tiny causal models for the contract: GPT-1 and CPM-1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from mindspore import Tensor
from tiny_bee import Dictated
from tiny_family import Tiny, collated
from tiny_run import VERSES

from mindplm.config import GenerateConfig
from mindplm.data.causal_rows import APART, RECORD, TASKS, CausalPacker, collate, record_piece
from mindplm.data.causal_rows import text_piece as make_text
from mindplm.data.packing import RowShape
from mindplm.generate import write
from mindplm.generate.model import Model, from_cell
from mindplm.models.cpm1.config import FLAVOURS as CPM1_FLAVOURS
from mindplm.models.cpm1.config import Cpm1Config
from mindplm.models.gpt1.config import FLAVOURS as GPT1_FLAVOURS
from mindplm.models.gpt1.config import Gpt1Config
from mindplm.tokenizers.bpe_vocab import build

SHAPE = RowShape(seq_len=48, max_rel=0, max_ext=0, max_targets=48)
TOKENIZER = build(VERSES * 3, 200, min_char_count=1)
MAX_LEN = 160


def rows() -> list[Any]:
    """Texts that are apart, and records, in eight rows; every position occurs."""
    packer = CausalPacker(8, SHAPE)
    found: list[Any] = []
    for i in range(40):
        verse = VERSES[i % len(VERSES)]
        piece = make_text(verse[i % 7 :][: 8 + i % 13], TOKENIZER)
        piece.task = TASKS.index(APART)
        if i % 3 == 0:
            piece = record_piece({"input": verse[:6], "<ans>": verse[6:12]}, TOKENIZER)
            piece.task = TASKS.index(RECORD)
        found += packer.add(piece)
    return [*found, *packer.flush()][:8]


def cached_and_full(model: Any, family: str, config: Any) -> tuple[Any, Any]:
    """The logits of a text, and those while the same text is written."""
    ids = TOKENIZER.encode(VERSES[0][:20])
    order = np.arange(len(ids))
    columns = (ids, order, np.ones_like(order))
    hidden = model(*(Tensor(np.array([column], np.int32)) for column in columns))[0]
    full = model.project(hidden).asnumpy()
    num_read = 6
    dictated = Dictated(from_cell(model, config, family).network, ids[num_read:])
    settings = GenerateConfig(max_new_tokens=len(ids) - num_read, buckets=(32,))
    prompt = TOKENIZER.decode(ids[:num_read])
    assert TOKENIZER.encode(prompt) == ids[:num_read]
    written = write(Model(family, config, dictated), TOKENIZER, [prompt], settings)
    assert written[0]["<ans>"] == TOKENIZER.decode(ids[num_read:])
    return np.stack(dictated.logits), full[num_read - 1 : -1]


def causal(family: str, config: Any, flavours: tuple[str, ...]) -> Tiny:
    def prompts(model: Model, texts: list[str], most: int, buckets: tuple[int, ...]) -> Any:
        settings = GenerateConfig(max_new_tokens=most, buckets=buckets)
        return write(model, TOKENIZER, texts, settings, batch_size=2)

    return Tiny(
        name=family,
        config=config,
        classes=TOKENIZER.vocab_size,
        flavours=flavours,
        columns=collated(rows(), SHAPE, collate, None),
        bigger={"seq_len": 24, "max_targets": 9, "empty_rows": 3},
        files=TOKENIZER.files(),
        cached_and_full=lambda model: cached_and_full(model, family, config),
        prompts=prompts,
    )


SIZES = SimpleNamespace(
    vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_heads=2, ffn_size=128, num_layers=2
)


def gpt1() -> Tiny:
    return causal("gpt1", Gpt1Config(**vars(SIZES), max_len=MAX_LEN), GPT1_FLAVOURS)


def cpm1() -> Tiny:
    return causal("cpm1", Cpm1Config(**vars(SIZES), max_len=MAX_LEN), CPM1_FLAVOURS)
