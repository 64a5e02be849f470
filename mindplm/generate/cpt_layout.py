"""CPT's prompts for the engine: texts that are read once, and a decoder that begins with [SEP]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindplm.data.cpt_rows import read_ids
from mindplm.generate.pair_layout import PairLayout


class Words:
    """A WordPiece tokenizer as the engine sees it: [SEP] ends, special pieces are no text."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.vocab_size, self.unk_id = tokenizer.vocab_size, tokenizer.unk_id
        self.eos_id = tokenizer.sep_id
        self.silent_ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without spaces between characters."""
        return self._tokenizer.decode(ids, skip_special=True, joined=True)

    def text_of(self, token: int) -> str:
        """The text of one piece."""
        return self.decode([token]).replace("##", "")


def cpt_layout(tokenizer: Any, config: Any) -> PairLayout:
    """CPT's layout; what is written ends with [SEP] at the latest with the last token."""
    return PairLayout(
        Words(tokenizer),
        lambda record: read_ids(record, tokenizer),
        start_id=tokenizer.sep_id,
        max_len=config.max_len,
        forced_end=True,
    )
