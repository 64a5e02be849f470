"""Makes a SentencePiece model of CPM-1's kind from texts, so that nobody needs a published one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from mindplm.errors import VocabError
from mindplm.tokenizers.sentencepieces import NEWLINE, SPACE, Cpm1Tokenizer, PieceModel, marked

_CONTROLS = ("<sep>", "<cls>", "<mask>", "<eod>", "<pad>")
_LONGEST = 1000
"""Characters of a piece of text; SentencePiece leaves long ones out."""


def build(texts: Iterable[str], size: int) -> Cpm1Tokenizer:
    """Learns pieces of words that jieba cut.

    Args:
        texts: What to learn from; the same texts give the same bytes.
        size: Pieces, the special ones included.

    Raises:
        VocabError: The texts do not give so many pieces, or there are none.
    """
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_marked(texts),
            model_writer=made,
            vocab_size=size,
            model_type="unigram",
            character_coverage=0.9995,
            control_symbols=list(_CONTROLS),
            user_defined_symbols=[SPACE, NEWLINE],
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, StopIteration) as error:
        raise VocabError(f"no model of {size} pieces: {str(error)[:150]}") from None
    return Cpm1Tokenizer(PieceModel(made.getvalue()))


def _marked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _LONGEST):
            yield marked(text[start : start + _LONGEST])
