"""Makes SentencePiece models of the kinds of CPM-1 and T5, so that nobody needs published ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from mindplm.errors import VocabError
from mindplm.tokenizers.sentencepieces import (
    NEWLINE,
    SPACE,
    Cpm1Tokenizer,
    PieceModel,
    T5Tokenizer,
    marked,
)

_CONTROLS = ("<sep>", "<cls>", "<mask>", "<eod>", "<pad>")
_LONGEST = 1000
"""Characters of a piece of text; SentencePiece leaves long ones out."""
_COMMON = {"model_type": "unigram", "character_coverage": 0.9995, "num_threads": 1,
           "minloglevel": 2}  # fmt: skip
_CPM1 = {"control_symbols": list(_CONTROLS), "user_defined_symbols": [SPACE, NEWLINE]}
_T5 = {
    **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "byte_fallback": True},
    **{"normalization_rule_name": "identity", "user_defined_symbols": ["\n"]},
}
"""Unlike the published model, texts come back as they were: their signs, line breaks and rare
characters."""


def build(texts: Iterable[str], size: int) -> Cpm1Tokenizer:
    """Learns pieces of words that jieba cut, as CPM-1 has them.

    Args:
        texts: What to learn from; the same texts give the same bytes.
        size: Pieces, the special ones included.

    Raises:
        VocabError: The texts do not give so many pieces, or there are none.
    """
    return Cpm1Tokenizer(_learned(map(marked, _cut(texts)), size, _CPM1))


def build_t5(texts: Iterable[str], size: int) -> T5Tokenizer:
    """Learns pieces as T5 has them; the sentinels come on top of `size`. See `build`."""
    return T5Tokenizer(_learned(_cut(texts), size, _T5))


def _learned(texts: Iterator[str], size: int, options: dict[str, Any]) -> PieceModel:
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    wanted: dict[str, Any] = {"vocab_size": size, **_COMMON, **options}
    try:
        SentencePieceTrainer.train(sentence_iterator=texts, model_writer=made, **wanted)
    except (RuntimeError, StopIteration) as error:
        raise VocabError(f"no model of {size} pieces: {str(error)[:250]}") from None
    return PieceModel(made.getvalue())


def _cut(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _LONGEST):
            yield text[start : start + _LONGEST]
