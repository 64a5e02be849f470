"""A tiny CPT for the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, ops
from tiny_bee import Dictated
from tiny_family import SMALL, Tiny, collated
from tiny_run import VERSES

from mindplm.config import GenerateConfig
from mindplm.data.cpt_rows import ROWS, read_ids
from mindplm.data.packing import RowShape
from mindplm.data.token_rows import Piece
from mindplm.generate import write
from mindplm.generate.model import Model, from_cell
from mindplm.models.cpt.config import FLAVOURS, CptConfig
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

SHAPE = RowShape(seq_len=40, max_rel=0, max_ext=0, max_targets=40)


def cached_and_full(model: Any, tokenizer: WordPieceTokenizer) -> tuple[Any, Any]:
    """The logits of a written verse, and those while the same verse is written."""
    read = read_ids({"input": VERSES[0][:9]}, tokenizer)
    ids = [*tokenizer.encode(VERSES[1][:8])[0]]
    previous = [tokenizer.sep_id, *ids[:-1]]
    rows = (Tensor(np.array([row], np.int32)) for row in (read, previous))
    source, decoder = rows
    types = ops.zeros_like(source) + model.config.write_type
    hidden = model(source, types, ops.ones_like(source), decoder)[1]
    full = model.project(hidden[0]).asnumpy()
    dictated = Dictated(from_cell(model, model.config, "cpt").network, ids)
    settings = GenerateConfig(max_new_tokens=len(ids) + 4, buckets=(32,))
    network = Model("cpt", model.config, dictated)
    (written,) = write(network, tokenizer, [VERSES[0][:9]], settings)
    assert written["<ans>"] == VERSES[1][:8]
    return np.stack(dictated.logits), full


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

    def prompts(model: Model, texts: list[str], most: int, buckets: tuple[int, ...]) -> Any:
        # Without training the end mark, which is also the start, is the likeliest.
        settings = GenerateConfig(max_new_tokens=most, min_new_tokens=2, buckets=buckets)
        apart = [" ".join(text) for text in texts]  # so that every sign is a token
        return write(model, tokenizer, apart, settings, batch_size=2)

    return Tiny(
        name="cpt",
        config=config,
        classes=tokenizer.vocab_size,
        flavours=FLAVOURS,
        columns=collated(rows, SHAPE, ROWS.collate, tokenizer),
        bigger={"seq_len": 16, "max_targets": 9, "empty_rows": 3},
        files=tokenizer.files(),
        cached_and_full=lambda model: cached_and_full(model, tokenizer),
        prompts=prompts,
    )
