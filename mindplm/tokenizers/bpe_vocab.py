"""Building a byte-pair vocabulary from a corpus: characters, then the most frequent pairs.

The steps are deterministic: the same texts in the same order give the same file.
Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

from mindplm.errors import DataError, VocabError
from mindplm.tokenizers.bpe import DOCUMENT_END, SPECIALS, UNKNOWN, BpeTokenizer, merged
from mindplm.tokenizers.words import split

HEAD = (UNKNOWN, DOCUMENT_END, *SPECIALS)
_ALWAYS = ("\n", *map(chr, range(32, 127)))

Pair = tuple[str, str]


def build(
    texts: Iterable[str], size: int, *, min_char_count: int = 2, form: str = "exact"
) -> BpeTokenizer:
    """Builds a vocabulary.

    Args:
        texts: The corpus.
        size: Most entries.
        min_char_count: Rarer characters are left out, unless they are ASCII.
        form: How words are found, see `mindplm.tokenizers.words.FORMS`; with `exact` a text can be
            had back from its ids.

    Raises:
        VocabError: The size does not hold the characters.
        DataError: There is no text.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text + "\n", form))
    chars: Counter[str] = Counter()
    for word, count in counts.items():
        for char in word:
            chars[char] += count
    if not any(char.strip() for char in chars):
        raise DataError("the corpus holds no text")
    frequent = sorted(c for c, n in chars.items() if n >= min_char_count and c not in _ALWAYS)
    units = [*_ALWAYS, *frequent]
    if form != "exact":
        units += [f"{char}</w>" for char in units if not char.isspace()]
    pieces = [*HEAD, *units]
    if len(pieces) > size:
        raise VocabError(
            f"size={size} is too small: the characters of the texts need {len(pieces)}"
        )
    known = set(units)
    start = BpeTokenizer({piece: i for i, piece in enumerate(pieces)}, [], form)
    words = {word: list(start.cut(word)) for word in counts}
    words = {word: parts for word, parts in words.items() if known.issuperset(parts)}
    merges: list[Pair] = []
    for left, right in _merges(words, counts, size - len(pieces)):
        merges.append((left, right))
        pieces.append(left + right)
    return BpeTokenizer({piece: i for i, piece in enumerate(pieces)}, merges, form)


def _merges(words: dict[str, list[str]], counts: Counter[str], number: int) -> list[Pair]:
    """The best pairs one after the other; only words that hold a pair are looked at again."""
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, parts in words.items():
        for pair in zip(parts, parts[1:]):
            totals[pair] += counts[word]
            places[pair].add(word)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    chosen: list[Pair] = []
    made = {part for parts in words.values() for part in parts}
    while heap and len(chosen) < number:
        total, pair = heapq.heappop(heap)
        if -total != totals[pair] or -total < 2:
            continue  # an old count; the present one is in the heap too
        if pair[0] + pair[1] in made:  # another pair gave this piece already
            totals[pair] = 0
            continue
        chosen.append(pair)
        made.add(pair[0] + pair[1])
        changed: Counter[Pair] = Counter()
        for word in sorted(places.pop(pair)):
            before, after = words[word], merged(words[word], pair)
            for old in zip(before, before[1:]):
                changed[old] -= counts[word]
            for new in zip(after, after[1:]):
                changed[new] += counts[word]
                places[new].add(word)
            words[word] = after
        for other, change in changed.items():
            if change:
                totals[other] += change
                heapq.heappush(heap, (-totals[other], other))
    return chosen
