"""Which tokens a masked language model has to guess, and what stands in their place.

Whole words in Chinese: jieba finds the words, the tokens (single characters) are aligned with
them, and the tokens of a word are masked together. In English the pieces of a word go together.
Tokens of a text are [CLS] ... [SEP].

Source: Cui et al. 2019, "Pre-Training with Whole Word Masking for Chinese BERT", section 2; Devlin
et al. 2018, "BERT", section 3.1; the masking program of google-research/bert.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from mindplm.tokenizers.words import is_cjk

RATE = 0.15
"""Part of the tokens that are guessed."""
MOST = 512
"""Most guessed tokens of a text."""
MASKED, RANDOM = 0.8, 0.1
"""Part of the guessed tokens that are masked, and that are replaced by a random one."""
NEVER, BEGINS, GOES_ON = 0, 1, 2
"""Marks of tokens: never masked, first of a group, further one of a group."""
_UNITED = "##"


def budget(num_tokens: int) -> int:
    """Tokens to guess among so many, the special ones included."""
    return min(MOST, max(1, round(num_tokens * RATE)))


def chinese_words(text: str) -> set[str]:
    """The words of a text that have several characters, all of them Chinese, found by jieba."""
    return {word for word in jieba_words(text) if len(word) > 1 and all(map(is_cjk, word))}


def jieba_words(text: str) -> list[str]:
    """The words of a text."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba.lcut(text)


def mark_words(tokens: Sequence[str], words: set[str]) -> list[str]:
    """Puts ## before every character of a word but its first.

    The longest run of tokens that is a word wins; the place of the word in the text is not looked
    at, so a word may be found where the segmenter had others.
    """
    marked = list(tokens)
    longest = max(map(len, words), default=0)
    place = 0
    while place < len(tokens):
        size = 1
        if is_cjk(tokens[place][0]):
            most = min(longest, len(tokens) - place)
            runs = (n for n in range(most, 1, -1) if "".join(tokens[place : place + n]) in words)
            size = next(runs, 1)
        for i in range(place + 1, place + size):
            marked[i] = _UNITED + marked[i]
        place += size
    return marked


def reference(marked: Sequence[str]) -> list[int]:
    """Positions of the Chinese characters that were marked as going on with a word."""
    return [i for i, t in enumerate(marked) if len(t) == 3 and t[:2] == _UNITED and is_cjk(t[2])]


def group_marks(marked: Sequence[str], special: Sequence[str] = ("[CLS]", "[SEP]")) -> np.ndarray:
    """NEVER, BEGINS or GOES_ON for each token, int32; a piece with ## goes with the one before."""
    marks = []
    begun = False
    for token in marked:
        if token in special:
            marks.append(NEVER)
            continue
        marks.append(GOES_ON if begun and token.startswith(_UNITED) else BEGINS)
        begun = True
    return np.array(marks, np.int32)


def groups_of(marks: np.ndarray) -> list[list[int]]:
    """Positions of the tokens of each group."""
    groups: list[list[int]] = []
    for i, mark in enumerate(marks.tolist()):
        if mark == BEGINS:
            groups.append([i])
        elif mark == GOES_ON:
            groups[-1].append(i)
    return groups


def select(groups: Sequence[Sequence[int]], order: Sequence[int], room: int) -> list[int]:
    """Positions to guess: groups in the given order, each taken if it fits into what is left."""
    chosen: list[int] = []
    for number in order:
        if len(chosen) >= room:
            break
        if len(chosen) + len(groups[number]) <= room:
            chosen += groups[number]
    return sorted(chosen)


def replace(
    ids: np.ndarray,
    chosen: Sequence[int],
    rng: np.random.Generator,
    mask_id: int,
    usual: np.ndarray,
) -> np.ndarray:
    """A copy of ids with [MASK] or a random id at most of the chosen places.

    Args:
        ids: int32.
        chosen: Positions.
        rng: Two draws a position.
        mask_id: Id of [MASK].
        usual: Ids that a random one is drawn from.
    """
    kind, which = rng.random(len(chosen)), rng.integers(0, len(usual), len(chosen))
    at = np.asarray(chosen, np.int64)
    new = np.where(kind < MASKED + RANDOM, usual[which], ids[at])
    changed = ids.copy()
    changed[at] = np.where(kind < MASKED, mask_id, new)
    return changed


# --- the two ways of wzzzd/Pretrain_Bert_with_MaskLM, for comparison with its numbers ------------


def mask_tokens_once(
    ids: Sequence[int],
    special: Sequence[int],
    mask_id: int,
    uniform: Callable[[], float],
    any_id: Callable[[], int],
) -> list[int]:
    """Every token by itself: masked, replaced or kept, with the draws in the original's order."""
    result = list(ids)
    for i, token in enumerate(ids):
        if token in special or uniform() > RATE:
            continue
        kind = uniform()
        if kind <= MASKED:
            result[i] = mask_id
        elif kind <= MASKED + RANDOM:
            result[i] = _not_special(any_id, special)
    return result


def mask_words_once(
    ids: Sequence[int],
    goes_on: Sequence[bool],
    special: Sequence[int],
    mask_id: int,
    uniform: Callable[[], float],
    any_id: Callable[[], int],
) -> list[int]:
    """Words of pieces: a token that is drawn takes all pieces of its word along.

    As in the original a token is drawn with 0.1, the random id is drawn but never used, and rows
    of at most 5 ids stay as they are.

    Args:
        goes_on: Whether the piece of an id begins with ##.
    """
    result = list(ids)
    if len(result) <= 5:
        return result
    for i, token in enumerate(ids):
        if token in special or uniform() > 0.1:
            continue
        kind = uniform()
        if kind <= MASKED:
            first, last = i, i + 1
            while first > 0 and goes_on[first]:
                first -= 1
            while last < len(ids) and goes_on[last]:
                last += 1
            result[first:last] = [mask_id] * (last - first)
        elif kind <= MASKED + RANDOM:
            _not_special(any_id, special)
    return result


def _not_special(any_id: Callable[[], int], special: Sequence[int]) -> int:
    while (found := any_id()) in special:
        pass
    return found
