"""A tiny T5 for the contract, in the form of v1.1."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from mindspore import Tensor
from tiny_bee import Dictated
from tiny_family import Columns, Tiny
from tiny_run import VERSES

from mindplm.config import GenerateConfig
from mindplm.data.kinds import Draws
from mindplm.data.packing import PLACEHOLDER, RowShape
from mindplm.data.pair_rows import ROWS, pair_piece, text_piece
from mindplm.data.pair_text import Source
from mindplm.generate import write
from mindplm.generate.model import Model, from_cell
from mindplm.models.t5.config import FLAVOURS, T5Config
from mindplm.tokenizers.pieces_vocab import build_t5
from mindplm.tokenizers.sentencepieces import T5Tokenizer

SHAPE = RowShape(seq_len=40, max_rel=0, max_ext=0, max_targets=12)
SIZES = {"hidden_size": 32, "num_heads": 2, "head_dim": 16, "ffn_size": 48}


@cache
def tokenizer() -> T5Tokenizer:
    return build_t5(VERSES * 9, 340)


def rows() -> list[Any]:
    """Texts and pairs, one a row; some are long, so that all distances between tokens occur."""
    packer = ROWS.packer(8, SHAPE)
    found: list[Any] = []
    for i in range(8):
        verse = VERSES[i % len(VERSES)]
        if i % 2:
            pair = Source(verse * 2, "abc"[: i % 3]), verse[i:]
            piece, _ = pair_piece(*pair, tokenizer(), SHAPE)
        else:
            piece = text_piece((verse * 4)[i : i + 30], tokenizer(), 44)
        found += packer.add(piece)
    return found


def cached_and_full(model: Any, config: T5Config) -> tuple[Any, Any]:
    """The logits of a text that is written behind another, and those while it is written."""
    made = tokenizer()
    read, ids = [*made.encode(VERSES[1]), made.eos_id], made.encode(VERSES[0][:20])
    columns = (read, [1] * len(read), [0, *ids[:-1]])
    hidden = model(*(Tensor(np.array([column], np.int32)) for column in columns))[0]
    full = model.project(hidden).asnumpy()
    dictated = Dictated(from_cell(model, config, "t5").network, list(ids))
    settings = GenerateConfig(max_new_tokens=len(ids), buckets=(64,))
    written = write(Model("t5", config, dictated), made, [VERSES[1]], settings)
    assert written[0]["<ans>"] == made.decode(ids)
    return np.stack(dictated.logits), full


def t5() -> Tiny:
    made = tokenizer()
    config = T5Config(
        made.vocab_size,
        **SIZES,
        num_layers=2,
        num_decoder_layers=2,
        num_buckets=8,
        max_distance=24,
        gated=True,
        tied=False,
        head_init_std=0.03,
    )
    ext = tuple(np.array([number], np.int32) for number in PLACEHOLDER)
    draws = Draws(ext, 5, [(0, i) for i in range(8)])

    def columns(empty_rows: int = 0, **sizes: int) -> Columns:
        shape = SHAPE._replace(**{n: getattr(SHAPE, n) + more for n, more in sizes.items()})
        return ROWS.collate(rows(), num_rows=8 + empty_rows, shape=shape, marks=made, draws=draws)

    def prompts(model: Model, texts: list[str], most: int, buckets: tuple[int, ...]) -> Any:
        settings = GenerateConfig(max_new_tokens=most, buckets=buckets)
        return write(model, made, texts, settings, batch_size=2)

    return Tiny(
        name="t5",
        config=config,
        classes=made.vocab_size,
        flavours=FLAVOURS,
        columns=columns,
        bigger={"seq_len": 16, "max_targets": 9, "empty_rows": 3},
        files=made.files(),
        cached_and_full=lambda model: cached_and_full(model, config),
        prompts=prompts,
        fast=1e-2,  # scores of attention are not scaled down, so they are saturated sooner
    )
