"""Beam search over records with several blanks, on the host; knows token ids and scores only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mindplm.errors import ConfigError
from mindplm.generate.rows import PLAIN, Extras, Feed, Pairs, Plan, Rows, check_limits
from mindplm.generate.rows import log_softmax as log_softmax

_LATER_BEAM = np.float32(-1e9)
_BLOCK = 128


class _Written(NamedTuple):
    """The last token of a beam and a link to what stands before it."""

    before: _Written | None
    token: int
    number: int
    length: int


class _Hypotheses:
    """The best finished beams of one sentence."""

    def __init__(self, size: int, length_penalty: float):
        self._size, self._exponent = size, length_penalty
        self._kept: list[tuple[float, _Written]] = []
        self._worst = 1e9

    def add(self, written: _Written, total: float) -> None:
        score = total / written.length**self._exponent
        if len(self._kept) == self._size and score <= self._worst:
            return
        self._kept.append((score, written))
        if len(self._kept) > self._size:
            scores = [kept for kept, _ in self._kept]
            del self._kept[scores.index(min(scores))]
        self._worst = min(kept for kept, _ in self._kept)

    def is_done(self, best_total: float, step: int) -> bool:
        """Whether no running beam can still enter, by the original's test.

        It divides by the number of the step, not by the length that a hypothesis would have.
        """
        full = len(self._kept) >= self._size
        return full and self._worst >= best_total / step**self._exponent

    def is_over(self, best_total: float, length: int, early: bool) -> bool:
        """The same by the test of HF Transformers, with the length that the next would have."""
        full = len(self._kept) >= self._size
        return full and (early or self._worst >= best_total / length**self._exponent)

    def ranked(self) -> list[Pairs]:
        """What is kept, the best first, the earlier one on ties."""
        ranked = sorted(self._kept, key=lambda kept: -kept[0])
        # Beams that were no beams yet (see _LATER_BEAM) are not worth showing.
        real = [
            kept
            for score, kept in ranked
            if score * kept.length**self._exponent > 0.5 * float(_LATER_BEAM)
        ]
        return [_pairs(kept) for kept in real or [kept for _, kept in ranked[:1]]]


def _pairs(written: _Written | None) -> Pairs:
    pairs = []
    while written is not None:
        pairs.append((written.token, written.number))
        written = written.before
    return pairs[::-1]


class BeamSearch:
    """The beam search of CPM-Bee, or if the plan says so that of HF Transformers.

    HF's does not count an end mark among the worse half of the candidates as an end, and tests
    after each step whether a sentence is done.

    `done` tells which sentences are finished. After each `advance`, `candidate_scores` and
    `candidates` hold the 2 x beams best continuations of every sentence, best first (of no meaning
    for finished ones); a candidate is beam * number of classes + class.

    Args:
        plan: The batch.
        beams: Running beams, and hypotheses kept, per sentence.
        max_new_tokens: Most classes written for a sentence, over all blanks, end marks included.
        repetition_penalty: At least 1; see `Rows.scores`.
        repetition_window: How many of the last fed tokens it looks at; 0: all.
        length_penalty: A hypothesis' score is its sum / length ** length_penalty.
        extras: Rules beyond the original's.

    Source: the beam searches of OpenBMB CPM-Bee and of HF Transformers, in our own form.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        beams: int = 3,
        max_new_tokens: int = 100,
        repetition_penalty: float = 1.0,
        repetition_window: int = 0,
        length_penalty: float = 1.0,
        extras: Extras = PLAIN,
    ):
        check_limits(max_new_tokens, repetition_penalty, repetition_window)
        if beams < 1:
            raise ConfigError(f"beams={beams}, expected at least 1")
        self._beams = beams
        self._penalty, self._window = repetition_penalty, repetition_window
        self._hf, self._early = plan.hf_search, extras.early_stopping
        self._rows = Rows(plan, beams, max_new_tokens, extras)
        self._last_step = self._rows.limit - 1
        num = len(plan.blanks)
        self._totals = np.full((num, beams), _LATER_BEAM, np.float32)
        self._totals[:, 0] = 0
        self._written: list[_Written | None] = [None] * (num * beams)
        self._finished = [_Hypotheses(beams, length_penalty) for _ in range(num)]
        self.done = [False] * num
        self._step = 0
        self.candidate_scores = np.zeros((num, 0), np.float32)
        self.candidates = np.zeros((num, 0), np.int64)

    def feed(self) -> Feed:
        """The tokens that go into the network next."""
        return self._rows.next

    def advance(self, logits: np.ndarray) -> np.ndarray | None:
        """Takes logits [rows, classes or more]; the row each new row continues, None at the end."""
        scores = self._rows.scores(logits, self._penalty, self._window, normalised=self._hf)
        if not self._hf:
            log_softmax(scores)
        num_classes = scores.shape[1]
        scores += self._totals.reshape(-1, 1)
        flat = scores.reshape(len(self.done), -1)
        self.candidate_scores, self.candidates = best_of(flat, 2 * self._beams)
        parents = np.arange(len(scores))
        chosen: list[tuple[int, int]] = []
        written = list(self._written)
        for sentence, finished in enumerate(self._finished):
            best = float(self.candidate_scores[sentence][0])
            done = self.done[sentence] or (not self._hf and finished.is_done(best, self._step))
            self.done[sentence] = done
            if done:
                continue
            running = self._walk(sentence, num_classes)
            over = self._hf and finished.is_over(best, self._step + 1, self._early)
            if over or (not running and self._step < self._last_step):
                self.done[sentence] = True
                continue
            if self._hf and self._step == self._last_step:
                for total, row, token in running:
                    finished.add(self._extend(row, token), float(total))
            for beam, (total, row, token) in enumerate(running):
                target = sentence * self._beams + beam
                parents[target] = row
                self._totals[sentence, beam] = total
                written[target] = self._extend(row, token)
                chosen.append((target, token))
        if self._step == self._last_step or all(self.done):
            return None
        self._rows.reorder(parents)
        for target, token in chosen:
            self._rows.write(target, token)
        self._written = written
        self._step += 1
        return parents

    def certain(self, sentence: int) -> Pairs:
        """What all beams that can still win begin with."""
        begins = [kept[1] for kept in self._finished[sentence]._kept]
        if not self.done[sentence]:
            first = sentence * self._beams
            begins += [link for link in self._written[first : first + self._beams] if link]
        return _common([_pairs(link) for link in begins])

    def results(self) -> list[Pairs]:
        """For each sentence the classes written, each with the number of its blank."""
        return [finished.ranked()[0] for finished in self._finished]

    def ranked(self, sentence: int) -> list[Pairs]:
        """The hypotheses of a sentence, the best first."""
        return self._finished[sentence].ranked()

    def _walk(self, sentence: int, num_classes: int) -> list[tuple[np.float32, int, int]]:
        """Stores finished candidates; returns those that continue: (score, row, class)."""
        running: list[tuple[np.float32, int, int]] = []
        pairs = zip(self.candidate_scores[sentence], self.candidates[sentence].tolist())
        last = self._step == self._last_step and not self._hf
        for rank, (total, candidate) in enumerate(pairs):
            beam, token = divmod(candidate, num_classes)
            row = sentence * self._beams + beam
            if last or self._rows.ends(row, token):
                if rank < self._beams or not self._hf:
                    self._finished[sentence].add(self._extend(row, token), float(total))
            else:
                running.append((total, row, token))
                if len(running) == self._beams:
                    break
        # Rules beyond the original's can end so many candidates that beams are left over.
        spare = [(_LATER_BEAM, *going[1:]) for going in running[:1]]
        return running + spare * (self._beams - len(running))

    def _extend(self, row: int, token: int) -> _Written:
        before = self._written[row]
        length = 1 if before is None else before.length + 1
        return _Written(before, token, self._rows.number(row), length)


def _common(pairs: list[Pairs]) -> Pairs:
    """The longest common beginning."""
    shortest = min(pairs, key=len, default=[])
    for i, pair in enumerate(shortest):
        if any(other[i] != pair for other in pairs):
            return shortest[:i]
    return shortest


def best_of(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest values of each row, largest first, the lower index first on ties.

    Only the blocks' maxima are sorted: the count-th largest of them bounds the values wanted.

    Returns:
        (values, indices), each [rows, count].
    """
    num, width = scores.shape
    blocks = width // _BLOCK
    if blocks < 2 * count:
        bound = np.partition(scores, width - count, axis=1)[:, width - count]
    else:
        maxima = scores[:, : blocks * _BLOCK].reshape(num, blocks, _BLOCK).max(axis=2)
        bound = np.partition(maxima, blocks - count, axis=1)[:, blocks - count]
    indices = np.empty((num, count), np.int64)
    for i in range(num):
        found = np.flatnonzero(scores[i] >= bound[i])
        indices[i] = found[np.argsort(-scores[i, found], kind="stable")[:count]]
    return np.take_along_axis(scores, indices, axis=1), indices
