"""What every way of writing shares: the batch's plan, where its rows stand, what they may write.

A *policy* decides which tokens a running batch is fed. It has two calls, `feed()` (what goes into
the network next) and `advance(logits)` (what came out), and `results()` when `advance` has said
None. Rows are sentence by sentence, row by row. The network appends classes to its vocabulary
for the indexed tokens of the batch, so a *class* is a base id or vocab_size + place in that table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Protocol

import numpy as np

from mindplm.errors import ConfigError
from mindplm.generate.bad_words import bad_words_of, without_spaces
from mindplm.generate.copying import Copied, Copying

FORBIDDEN = np.float32(-10000.0)
Pairs = list[tuple[int, int]]
"""What a sentence is given: classes, each with the number of its blank."""


@dataclass(frozen=True)
class Plan:
    """What a policy must know of the batch it writes for.

    Attributes:
        blanks: For each sentence its blanks in order: (segment id, number).
        vocab_size: Classes before the appended ones.
        bos_id: Opens a blank.
        eos_id: Closes a blank; -1: nothing does.
        unk_id: Forbidden unless `allowed_unk`.
        newline_id: A line break; -1: there is none.
        ext_ids: int32 [E], base id of each appended class.
        ext_sub: int32 [E], sub index of each appended class.
        allowed_ext: bool [sentences, E].
        allowed_unk: bool [sentences].
        piece: (sentence, class) -> its text, needed for rules about texts only.
        unwritten: Special entries that stand for no text; sampling never draws them.
        begins: For each sentence the token that opens its first blank; none: bos_id.
        before: For each sentence the tokens before that one, which rules on repetition count.
        hf_search: Beams end as those of HF Transformers do, not as CPM-Bee's.
        forced_end: The last token that the limit allows is the end mark, whatever its score.
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
    piece: Callable[[int, int], str] | None = None
    unwritten: Sequence[int] = ()
    begins: Sequence[int] = ()
    before: Sequence[Sequence[int]] = ()
    hf_search: bool = False
    forced_end: bool = False


@dataclass(frozen=True)
class Extras:
    """Rules beyond the original's; the defaults change nothing.

    Attributes:
        per_blank: The limit of new tokens counts for each blank by itself, so that a long answer
            leaves the later blanks their room. The token that reaches it closes its blank.
        min_new_tokens: A blank is not closed by its end mark before it has so many tokens.
        penalize_written: The repetition penalty falls on the classes that were written, instead
            of on the base ids that were fed, among which is the begin mark.
        stop: A blank is closed when its text holds one of these.
        min_p: Sampling keeps the classes of at least this share of the best one's probability.
        filter_first: Sampling is cut by top_k and top_p before the temperature shapes what is left.
        no_repeat_ngram: No run of so many tokens is written twice; 0: no such rule.
        early_stopping: A search of HF's kind ends with as many finished beams as there are beams.
        bad_words: No blank holds one of these, spaces aside.
        copied: A blank holds nothing but stretches of these texts.
    """

    per_blank: bool = False
    min_new_tokens: int = 0
    penalize_written: bool = False
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    filter_first: bool = False
    no_repeat_ngram: int = 0
    early_stopping: bool = False
    bad_words: tuple[str, ...] = ()
    copied: Copied | None = None

    def __post_init__(self) -> None:
        if self.min_new_tokens < 0:
            raise ConfigError(f"min_new_tokens={self.min_new_tokens}, expected at least 0")
        if self.no_repeat_ngram < 0:
            raise ConfigError(f"no_repeat_ngram={self.no_repeat_ngram}, expected at least 0")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p}, expected 0 <= min_p <= 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop={self.stop!r}, expected a list of texts that are not empty")


PLAIN = Extras()


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

    def certain(self, sentence: int) -> Pairs:
        """What the sentence has so far for sure; `results` begins with it."""

    def results(self) -> list[Pairs]:
        """For each sentence what was written."""

    def ranked(self, sentence: int) -> list[Pairs]:
        """All that is kept of a sentence at the end, the best first."""


class Rows:
    """The rows of a batch as all policies need them: where they stand and what they were fed."""

    def __init__(
        self, plan: Plan, rows_per_sentence: int, max_new_tokens: int, extras: Extras = PLAIN
    ):
        self._plan, self._extras = plan, extras
        self.sentence = np.repeat(np.arange(len(plan.blanks)), rows_per_sentence)
        num = len(self.sentence)
        most = max(len(blanks) for blanks in plan.blanks) if extras.per_blank else 1
        self.limit = max_new_tokens * most
        self._blank_limit = max_new_tokens if extras.per_blank else 0
        self.blank = np.zeros(num, np.int32)
        first = [plan.blanks[s][0][0] for s in self.sentence.tolist()]
        begins = np.array(plan.begins or [plan.bos_id] * len(plan.blanks), np.int32)
        self.next = Feed(
            begins[self.sentence],
            np.zeros(num, np.int32),
            np.array(first, np.int32),
            np.zeros(num, np.int32),
        )
        # What the penalty counts: ids as fed, or classes as written with -1 for a begin mark.
        self.classes = np.full(num, -1, np.int32)
        self._num_before = max(map(len, plan.before), default=0)
        self.fed = np.full((num, self._num_before + self.limit), -1, np.int32)
        for row, sentence in enumerate(self.sentence.tolist() if self._num_before else ()):
            ids = plan.before[sentence]
            self.fed[row, self._num_before - len(ids) : self._num_before] = ids
        self.num_fed = self._num_before
        self._bad = bad_words_of(extras.bad_words, plan.vocab_size, plan.piece)
        self._copying = None if extras.copied is None else Copying(plan, extras.copied)
        self._listens = bool(extras.stop or extras.bad_words or extras.copied)
        self._said = [""] * num
        self._no_unk = np.flatnonzero(~plan.allowed_unk[self.sentence])
        self._no_ext = ~plan.allowed_ext[self.sentence]

    def reorder(self, parents: np.ndarray) -> None:
        """Makes row i continue what row parents[i] was."""
        self.blank = self.blank[parents]
        self.fed = self.fed[parents]
        self.classes = self.classes[parents]
        self.next = Feed(*(values[parents] for values in self.next))
        self._said = [self._said[parent] for parent in parents.tolist()]

    def write(self, row: int, token: int) -> None:
        """Lets a row continue with a class; one that closes a blank opens the next."""
        blanks = self._plan.blanks[self.sentence[row]]
        if self._closes(row, token):
            self.blank[row] += 1
            values = (self._plan.bos_id, 0, blanks[self.blank[row]][0], 0)
            self._said[row] = ""
            token = -1
        else:
            place = token - self._plan.vocab_size
            base, sub = (
                (token, 0) if place < 0 else (self._plan.ext_ids[place], self._plan.ext_sub[place])
            )
            values = (base, sub, self.next.segments[row], self.next.positions[row] + 1)
            if self._listens:
                self._said[row] += self._text(row, token)
        self.classes[row] = token
        for column, value in zip(self.next, values):
            column[row] = value

    def number(self, row: int) -> int:
        """The number of the blank that a row writes."""
        return self._plan.blanks[self.sentence[row]][self.blank[row]][1]

    def ends(self, row: int, token: int) -> bool:
        """Whether a class ends the row's last blank."""
        last = self.blank[row] == len(self._plan.blanks[self.sentence[row]]) - 1
        return bool(last) and self._closes(row, token)

    def scores(
        self, logits: np.ndarray, penalty: float, window: int, *, normalised: bool = False
    ) -> np.ndarray:
        """Logits of the real classes after the bans and the repetition penalty, a copy, fp32.

        With `normalised` they are log-probabilities before that, as in HF's beam search.
        """
        written = self._extras.penalize_written
        self.fed[:, self.num_fed] = self.classes if written else self.next.ids
        self.num_fed += 1
        vocab_size = self._plan.vocab_size
        num_classes = vocab_size + self._no_ext.shape[1]
        values = np.array(logits[: len(self.sentence), :num_classes], np.float32)
        if np.isnan(values).any():
            raise FloatingPointError("the network returned NaN; its weights are not usable")
        if normalised:
            log_softmax(values)
        values[self._no_unk, self._plan.unk_id] = FORBIDDEN
        values[:, vocab_size:][self._no_ext] = FORBIDDEN
        if penalty != 1.0:
            first = self._num_before if written else 0
            first = max(first, self.num_fed - window) if window else first
            _penalize(values, self.fed[:, first : self.num_fed], penalty)
        if self._extras.no_repeat_ngram:
            for row, fed in enumerate(self.fed[:, : self.num_fed]):
                values[row, _repeats(fed[fed >= 0], self._extras.no_repeat_ngram)] = FORBIDDEN
        if self._bad is not None:
            self._forbid_words(values)
        if self._copying is not None:
            for row, said in enumerate(self._said):
                allowed = self._copying.allowed(int(self.sentence[row]), said)
                kept = values[row, allowed]
                values[row] = FORBIDDEN
                values[row, allowed] = kept
        if self._plan.eos_id >= 0:
            short = self.next.positions < self._extras.min_new_tokens
            values[short, self._plan.eos_id] = FORBIDDEN
        if self._plan.forced_end:
            last = self.next.positions == self.limit - 1
            values[last] = FORBIDDEN
            values[last, self._plan.eos_id] = 0
        return values

    def _forbid_words(self, values: np.ndarray) -> None:
        assert self._bad is not None
        own = ~self._no_ext
        for row, text in enumerate(self._said):
            said = without_spaces(text)
            values[row, self._bad.after(said)] = FORBIDDEN
            for token in (self._plan.vocab_size + np.flatnonzero(own[row])).tolist():
                if self._bad.completes(said, self._text(row, token)):
                    values[row, token] = FORBIDDEN

    def _closes(self, row: int, token: int) -> bool:
        """Whether a class closes the row's blank: end mark, limit of the blank, stop string."""
        if token == self._plan.eos_id:
            return True
        if self._blank_limit and self.next.positions[row] + 1 >= self._blank_limit:
            return True
        if not self._extras.stop:
            return False
        text = self._said[row] + self._text(row, token)
        return any(stop in text for stop in self._extras.stop)

    def _text(self, row: int, token: int) -> str:
        assert self._plan.piece is not None
        return self._plan.piece(int(self.sentence[row]), token)


def _penalize(values: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Divides the positive and multiplies the negative scores of the classes seen, in place."""
    real = seen >= 0
    seen = np.where(real, seen, seen.max(axis=1, keepdims=True))
    seen = np.maximum(seen, 0)
    old = np.take_along_axis(values, seen, axis=1)
    factor = np.where(real.any(axis=1, keepdims=True), np.float32(penalty), np.float32(1))
    np.put_along_axis(values, seen, np.where(old < 0, old * factor, old / factor), axis=1)


def _repeats(ids: np.ndarray, size: int) -> np.ndarray:
    """The ids that would end a run of `size` tokens that is there already."""
    if len(ids) < size:
        return ids[:0]
    runs = np.lib.stride_tricks.sliding_window_view(ids, size)
    last = ids[len(ids) - size + 1 :]
    return runs[(runs[:, :-1] == last).all(axis=1), -1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, computed in place in fp32."""
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def check_limits(max_new_tokens: int, repetition_penalty: float, repetition_window: int) -> None:
    """Raises ConfigError for limits that no policy can work with."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}, expected at least 1")
    if repetition_penalty < 1:
        raise ConfigError(f"repetition_penalty={repetition_penalty}, expected at least 1")
    if repetition_window < 0:
        raise ConfigError(f"repetition_window={repetition_window}, expected at least 0 (0: all)")
