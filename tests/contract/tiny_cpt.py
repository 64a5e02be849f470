"""A tiny CPT for the contract."""

from __future__ import annotations

import numpy as np
from tiny_family import Columns, Tiny
from tiny_run import VERSES

from mindplm.data.cpt_rows import ROWS
from mindplm.data.kinds import Draws
from mindplm.data.packing import PLACEHOLDER, RowShape
from mindplm.data.token_rows import Piece
from mindplm.models.cpt.config import FLAVOURS, CptConfig
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

SHAPE = RowShape(seq_len=40, max_rel=0, max_ext=0, max_targets=40)


def cpt() -> Tiny:
    letters = sorted({c for verse in VERSES[:3] for c in verse})
    tokenizer = WordPieceTokenizer([*SPECIALS, *letters])
    config = CptConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_heads=2,
        ffn_size=48,
        num_layers=2,
        num_decoder_layers=1,
        max_len=64,
        init_std=0.04,
    )
    packer = ROWS.packer(8, SHAPE)
    rows = []
    for i in range(8):
        ids = tokenizer.ids_of(tokenizer.tokenize(VERSES[i % 3][i % 5 :]))
        flags = [int(k % 6 == 0) for k in range(len(ids))]
        rows += packer.add(Piece(np.array([ids, flags], np.int32)))
    ext = tuple(np.array([number], np.int32) for number in PLACEHOLDER)
    draws = Draws(ext, 5, [(0, i) for i in range(8)])

    def columns(empty_rows: int = 0, **sizes: int) -> Columns:
        shape = SHAPE._replace(**{n: getattr(SHAPE, n) + more for n, more in sizes.items()})
        return ROWS.collate(
            rows, num_rows=8 + empty_rows, shape=shape, marks=tokenizer, draws=draws
        )

    return Tiny(
        name="cpt",
        config=config,
        classes=tokenizer.vocab_size,
        flavours=FLAVOURS,
        columns=columns,
        bigger={"seq_len": 16, "max_targets": 9, "empty_rows": 3},
        files=tokenizer.files(),
    )
