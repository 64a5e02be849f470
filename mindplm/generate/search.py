"""Beam search over records with several blanks, on the host; knows token ids and scores only.

A *policy* decides which tokens a running batch is fed. It has two calls, `feed()` (what goes into
the network next) and `advance(logits)` (what came out), and `results()` when `advance` has said
None. Rows are sentence by sentence, beam by beam. The network appends classes to its vocabulary
for the indexed tokens of the batch, so a *class* is a base id or vocab_size + place in that table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mindplm.errors import ConfigError

FORBIDDEN = np.float32(-10000.0)
_LATER_BEAM = np.float32(-1e9)
_BLOCK = 128


@dataclass(frozen=True)
class Plan:
    """What a policy must know of the batch it writes for.

    Attributes:
        blanks: For each sentence its blanks in order: (segment id, number).
        vocab_size: Classes before the appended ones.
        bos_id: Opens a blank.
        eos_id: Closes a blank.
        unk_id: Forbidden unless `allowed_unk`.
        newline_id: A line break.
        ext_ids: int32 [E], base id of each appended class.
        ext_sub: int32 [E], sub index of each appended class.
        allowed_ext: bool [sentences, E].
        allowed_unk: bool [sentences].
    """

    blanks: Sequence[Sequence[tuple[int, int]]]
    vocab_size: int
    bos_id: int
    eos_id: int
    unk_id: int
    newline_id: int
    ext_ids: np.ndarray
    ext_sub: np.ndarray
    allowed_ext: np.ndarray
    allowed_unk: np.ndarray


class Feed(NamedTuple):
    """The next token of every row; int32 [rows] each."""

    ids: np.ndarray
    subs: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


class Policy(Protocol):
    """Decides what is written; see the module's text."""

    def feed(self) -> Feed:
        """The tokens that go into the network next."""

    def advance(self, logits: np.ndarray) -> np.ndarray | None:
        """Takes the scores of those tokens; the row each new row continues, None at the end."""

    def results(self) -> list[list[tuple[int, int]]]:
        """For each sentence the classes written, each with the number of its blank."""


class Rows:
    """The rows of a batch as both policies need them: where they stand and what they were fed."""

    def __init__(self, plan: Plan, rows_per_sentence: int, max_new_tokens: int):
        self._plan = plan
        self.sentence = np.repeat(np.arange(len(plan.blanks)), rows_per_sentence)
        num = len(self.sentence)
        self.blank = np.zeros(num, np.int32)
        first = [plan.blanks[s][0][0] for s in self.sentence.tolist()]
        self.next = Feed(
            np.full(num, plan.bos_id, np.int32),
            np.zeros(num, np.int32),
            np.array(first, np.int32),
            np.zeros(num, np.int32),
        )
        self.fed = np.zeros((num, max_new_tokens), np.int32)
        self.num_fed = 0
        self._no_unk = np.flatnonzero(~plan.allowed_unk[self.sentence])
        self._no_ext = ~plan.allowed_ext[self.sentence]

    def reorder(self, parents: np.ndarray) -> None:
        """Makes row i continue what row parents[i] was."""
        self.blank = self.blank[parents]
        self.fed = self.fed[parents]
        self.next = Feed(*(values[parents] for values in self.next))

    def write(self, row: int, token: int) -> None:
        """Lets a row continue with a class; the end mark opens the sentence's next blank."""
        blanks = self._plan.blanks[self.sentence[row]]
        if token == self._plan.eos_id:
            self.blank[row] += 1
            values = (self._plan.bos_id, 0, blanks[self.blank[row]][0], 0)
        else:
            place = token - self._plan.vocab_size
            base, sub = (
                (token, 0) if place < 0 else (self._plan.ext_ids[place], self._plan.ext_sub[place])
            )
            values = (base, sub, self.next.segments[row], self.next.positions[row] + 1)
        for column, value in zip(self.next, values):
            column[row] = value

    def number(self, row: int) -> int:
        """The number of the blank that a row writes."""
        return self._plan.blanks[self.sentence[row]][self.blank[row]][1]

    def ends(self, row: int, token: int) -> bool:
        """Whether a class ends the row's last blank."""
        last = self.blank[row] == len(self._plan.blanks[self.sentence[row]]) - 1
        return token == self._plan.eos_id and bool(last)

    def scores(self, logits: np.ndarray, penalty: float, window: int) -> np.ndarray:
        """Logits of the real classes after the bans and the repetition penalty, a copy, fp32.

        The penalty counts what was fed, so an appended class is penalised as its base id.
        """
        self.fed[:, self.num_fed] = self.next.ids
        self.num_fed += 1
        vocab_size = self._plan.vocab_size
        num_classes = vocab_size + self._no_ext.shape[1]
        values = np.array(logits[: len(self.sentence), :num_classes], np.float32)
        if np.isnan(values).any():
            raise FloatingPointError("the network returned NaN; its weights are not usable")
        values[self._no_unk, self._plan.unk_id] = FORBIDDEN
        values[:, vocab_size:][self._no_ext] = FORBIDDEN
        if penalty != 1.0:
            first = max(0, self.num_fed - window) if window else 0
            seen = self.fed[:, first : self.num_fed]
            old = np.take_along_axis(values, seen, axis=1)
            factor = np.float32(penalty)
            np.put_along_axis(values, seen, np.where(old < 0, old * factor, old / factor), axis=1)
        return values


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

    def best(self) -> list[tuple[int, int]]:
        written: _Written | None = max(self._kept, key=lambda kept: kept[0])[1]
        pairs = []
        while written is not None:
            pairs.append((written.token, written.number))
            written = written.before
        return pairs[::-1]


class BeamSearch:
    """The beam search of CPM-Bee.

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

    Source: the beam search of OpenBMB CPM-Bee, in our own form.
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
    ):
        check_limits(max_new_tokens, repetition_penalty, repetition_window)
        if beams < 1:
            raise ConfigError(f"beams={beams}, expected at least 1")
        self._plan, self._beams, self._last_step = plan, beams, max_new_tokens - 1
        self._penalty, self._window = repetition_penalty, repetition_window
        self._rows = Rows(plan, beams, max_new_tokens)
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
        scores = log_softmax(self._rows.scores(logits, self._penalty, self._window))
        num_classes = scores.shape[1]
        scores += self._totals.reshape(-1, 1)
        flat = scores.reshape(len(self.done), -1)
        self.candidate_scores, self.candidates = best_of(flat, 2 * self._beams)
        parents = np.arange(len(scores))
        chosen: list[tuple[int, int]] = []
        written = list(self._written)
        for sentence, finished in enumerate(self._finished):
            totals = self.candidate_scores[sentence]
            done = self.done[sentence] or finished.is_done(float(totals[0]), self._step)
            self.done[sentence] = done
            if done:
                continue
            for beam, (total, row, token) in enumerate(self._walk(sentence, num_classes)):
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

    def results(self) -> list[list[tuple[int, int]]]:
        """For each sentence the classes written, each with the number of its blank."""
        return [finished.best() for finished in self._finished]

    def _walk(self, sentence: int, num_classes: int) -> list[tuple[np.float32, int, int]]:
        """Stores finished candidates; returns those that continue: (score, row, class)."""
        running: list[tuple[np.float32, int, int]] = []
        pairs = zip(self.candidate_scores[sentence], self.candidates[sentence].tolist())
        for total, candidate in pairs:
            beam, token = divmod(candidate, num_classes)
            row = sentence * self._beams + beam
            if self._step == self._last_step or self._rows.ends(row, token):
                self._finished[sentence].add(self._extend(row, token), float(total))
            else:
                running.append((total, row, token))
                if len(running) == self._beams:
                    break
        return running

    def _extend(self, row: int, token: int) -> _Written:
        before = self._written[row]
        length = 1 if before is None else before.length + 1
        return _Written(before, token, self._rows.number(row), length)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, computed in place in fp32."""
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


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


def check_limits(max_new_tokens: int, repetition_penalty: float, repetition_window: int) -> None:
    """Raises ConfigError for limits that no policy can work with."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}, expected at least 1")
    if repetition_penalty < 1:
        raise ConfigError(f"repetition_penalty={repetition_penalty}, expected at least 1")
    if repetition_window < 0:
        raise ConfigError(f"repetition_window={repetition_window}, expected at least 0 (0: all)")
