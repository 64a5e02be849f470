"""A tiny CPT for the contract."""

from __future__ import annotations

import numpy as np
from tiny_family import SMALL, Tiny, collated
from tiny_run import VERSES

from mindplm.data.cpt_rows import ROWS
from mindplm.data.packing import RowShape
from mindplm.data.token_rows import Piece
from mindplm.models.cpt.config import FLAVOURS, CptConfig
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

SHAPE = RowShape(seq_len=40, max_rel=0, max_ext=0, max_targets=40)


def cpt() -> Tiny:
    letters = sorted({c for verse in VERSES[:3] for c in verse})
    tokenizer = WordPieceTokenizer([*SPECIALS, *letters])
    config = CptConfig(
        vocab_size=tokenizer.vocab_size,
        **SMALL,
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
    return Tiny(
        name="cpt",
        config=config,
        classes=tokenizer.vocab_size,
        flavours=FLAVOURS,
        columns=collated(rows, SHAPE, ROWS.collate, tokenizer),
        bigger={"seq_len": 16, "max_targets": 9, "empty_rows": 3},
        files=tokenizer.files(),
    )
