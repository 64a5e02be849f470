"""Sampling, and with temperature 0 the greedy choice; one row per sentence, several blanks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindplm.errors import ConfigError
from mindplm.generate.rows import FORBIDDEN, PLAIN, Extras, Feed, Pairs, Plan, Rows, check_limits

_FIRST_LOOK = 1024


class Sampler:
    """Draws each token from the network's distribution.

    Logits are cut and shaped in this order: bans, repetition penalty, temperature, top_k, top_p,
    min_p.
    With temperature 0 the best class is taken, which writes what a beam search with one beam does.

    Args:
        plan: The batch.
        seeds: One per sentence. Each sentence has its own random stream, so what is drawn does not
            depend on the sentences beside it.
        temperature: Divisor of the logits; 0: no sampling.
        top_k: Draw among the k best classes only; 0: all.
        top_p: Draw among the best classes that together exceed this probability; 1: all.
        max_new_tokens: Most classes written for a sentence, over all blanks, end marks included.
        repetition_penalty: At least 1; see `Rows.scores`.
        repetition_window: How many of the last fed tokens it looks at; 0: all.
        nonempty: When sampling, a blank does not begin with its end or with a line break.
        extras: Rules beyond the original's.
    """

    def __init__(
        self,
        plan: Plan,
        seeds: Sequence[int] = (),
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_new_tokens: int = 100,
        repetition_penalty: float = 1.0,
        repetition_window: int = 0,
        nonempty: bool = True,
        extras: Extras = PLAIN,
    ):
        check_limits(max_new_tokens, repetition_penalty, repetition_window)
        if temperature < 0:
            raise ConfigError(f"temperature={temperature}, expected at least 0 (0: no sampling)")
        if top_k < 0:
            raise ConfigError(f"top_k={top_k}, expected at least 0 (0: all)")
        if not 0 < top_p <= 1:
            raise ConfigError(f"top_p={top_p}, expected 0 < top_p <= 1")
        num = len(plan.blanks)
        if temperature and len(seeds) != num:
            raise ConfigError(f"{len(seeds)} seeds for {num} prompts; expected one for each")
        self._plan, self._temperature = plan, temperature
        self._cuts = (top_k, top_p, extras.min_p)
        self._filter_first = extras.filter_first
        self._penalty, self._window = repetition_penalty, repetition_window
        # There may be nothing to copy.
        self._nonempty = nonempty and temperature > 0 and extras.copied is None
        # The order of the appended classes depends on the prompts beside; what is drawn must not.
        appended = np.lexsort((plan.ext_sub, plan.ext_ids)) + plan.vocab_size
        self._order = np.concatenate([np.arange(plan.vocab_size), appended])
        self._rows = Rows(plan, 1, max_new_tokens, extras)
        self._left = self._rows.limit
        self._streams = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
        self._pairs: list[Pairs] = [[] for _ in range(num)]
        self._done = [False] * num

    def feed(self) -> Feed:
        """The tokens that go into the network next."""
        return self._rows.next

    def advance(self, logits: np.ndarray) -> np.ndarray | None:
        """Takes logits [rows, classes or more]; the row each new row continues, None at the end."""
        scores = self._rows.scores(logits, self._penalty, self._window)
        if self._nonempty:
            opening = self._rows.next.positions == 0
            banned = [i for i in (self._plan.eos_id, self._plan.newline_id) if i >= 0]
            scores[np.ix_(opening, banned)] = FORBIDDEN
        if self._temperature and self._plan.unwritten:
            scores[:, self._plan.unwritten] = FORBIDDEN
        self._left -= 1
        for row in np.flatnonzero(~np.array(self._done)).tolist():
            token = self._draw(scores[row], row)
            self._pairs[row].append((token, self._rows.number(row)))
            if self._left == 0 or self._rows.ends(row, token):
                self._done[row] = True
            else:
                self._rows.write(row, token)
        return None if all(self._done) else np.arange(len(scores))

    def certain(self, sentence: int) -> Pairs:
        """What the sentence has so far."""
        return self._pairs[sentence]

    def results(self) -> list[Pairs]:
        """For each sentence the classes written, each with the number of its blank."""
        return self._pairs

    def ranked(self, sentence: int) -> list[Pairs]:
        """The one result of a sentence."""
        return [self._pairs[sentence]]

    def _draw(self, scores: np.ndarray, row: int) -> int:
        if self._temperature == 0:
            return int(scores.argmax())
        scores, heat = scores[self._order], self._temperature
        if self._filter_first:
            classes, weights = nucleus(scores, *self._cuts)
            weights = weights ** (1.0 / heat)
        else:
            classes, weights = nucleus(scores / heat, *self._cuts)
        edges = np.cumsum(weights)
        point = self._streams[row].random() * edges[-1]
        drawn = min(int(np.searchsorted(edges, point, side="right")), len(classes) - 1)
        return int(self._order[classes[drawn]])


def nucleus(
    scores: np.ndarray, top_k: int, top_p: float, min_p: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that may be drawn, best first, and their unnormalised probabilities (fp64).

    Of the top_k best classes (0: all) the smallest set whose share exceeds top_p, at least one; of
    it those that are at least min_p times as likely as the best.
    """
    classes, weights = _nucleus(scores, top_k, top_p)
    if min_p:
        likely = weights >= min_p * weights.max()
        classes, weights = classes[likely], weights[likely]
    return classes, weights


def _nucleus(scores: np.ndarray, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    if top_k == 0 and top_p == 1:
        return np.arange(len(weights)), weights
    limit = min(top_k or len(weights), len(weights))
    total = _best(weights, limit)[1].sum() if top_k else weights.sum()
    count = min(limit, _FIRST_LOOK)
    while True:
        classes, kept = _best(weights, count)
        inside = np.searchsorted(np.cumsum(kept), top_p * total, side="right") + 1
        if inside <= count or count == limit:
            return classes[:inside], kept[:inside]
        count = min(limit, 8 * count)


def _best(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest weights, largest first."""
    classes = np.arange(len(weights))
    if count < len(weights):
        classes = np.sort(np.argpartition(weights, len(weights) - count)[-count:])
    classes = classes[np.argsort(-weights[classes], kind="stable")]
    return classes, weights[classes]
