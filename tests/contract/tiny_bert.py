"""A tiny BERT for the contract."""

from __future__ import annotations

import numpy as np
from tiny_family import SMALL, Columns, Tiny, collated
from tiny_run import VERSES

from mindplm.data import masking, token_rows
from mindplm.data.masked_rows import collate
from mindplm.data.packing import RowShape
from mindplm.data.token_rows import Piece
from mindplm.models.bert.config import FLAVOURS, BertConfig
from mindplm.tokenizers.wordpiece import WordPieceTokenizer
from mindplm.tokenizers.wordpiece_vocab import ASCII

SHAPE = RowShape(seq_len=48, max_rel=0, max_ext=0, max_targets=10)


def bert() -> Tiny:
    letters = sorted({c for verse in VERSES for c in verse if not c.isascii()})
    joined = [f"##{c}" for c in ASCII if c.islower()]
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ASCII, *letters, *joined]
    tokenizer = WordPieceTokenizer(lines)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        **SMALL,
        max_len=96,
        init_std=0.06,
    )
    packer = token_rows.packer(8, SHAPE)
    rows = []
    for i in range(40):
        verse = VERSES[i % len(VERSES)]
        ids, pieces = tokenizer.encode_pieces(verse[i % 7 :][: 8 + i % 13])
        marks = masking.group_marks(masking.mark_words(pieces, masking.chinese_words(verse)))
        tokens = np.array([ids, marks], np.int32)
        rows += packer.add(Piece(tokens, num_targets=masking.budget(len(ids))))
    rows = [*rows, *packer.flush()][:8]
    plain = collated(rows, SHAPE, collate, tokenizer)

    def columns(**more: int) -> Columns:
        made = plain(**more)
        # Types are 0 in this training; here both occur, so that both rows of their table count.
        made["types"][:] = made["spans"] % 2
        return made

    return Tiny(
        name="bert",
        config=config,
        classes=tokenizer.vocab_size,
        flavours=FLAVOURS,
        columns=columns,
        bigger={"seq_len": 24, "max_targets": 9, "empty_rows": 3},
        files=tokenizer.files(),
    )
