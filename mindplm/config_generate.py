"""The settings of writing: the section `generate` of a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindplm.strict import at_least, require


@dataclass(frozen=True)
class GenerateConfig:
    """How text is written."""

    max_new_tokens: int = 100
    """Most tokens written for a record, over all blanks."""
    per_blank: bool = False
    """max_new_tokens counts for each blank by itself."""
    min_new_tokens: int = 0
    """A blank is not ended before it has so many tokens."""
    stop: tuple[str, ...] = ()
    """A blank ends before the first of these texts."""
    bad_words: tuple[str, ...] = ()
    """No blank holds one of these texts, spaces aside, nor as a part of a longer word."""
    copy_only: bool = False
    """A blank holds only stretches of the texts that the record shows, as extraction wants."""
    copy_joiner: str = "；"
    """With copy_only, the character that may stand between two stretches; empty: there is one."""
    beams: int = 1
    """Beams of the search; 1 with temperature 0: greedy."""
    num_best: int = 1
    """How many of the beams to return."""
    temperature: float = 0.0
    """Divisor of the logits when tokens are sampled; 0: no sampling."""
    top_k: int = 0
    """Sample among the k best tokens only; 0: all."""
    top_p: float = 1.0
    """Sample among the best tokens that together reach this probability."""
    min_p: float = 0.0
    """Sample among the tokens of at least this share of the best one's probability."""
    filter_first: bool = False
    """Cut by top_k and top_p before the temperature, as CPM-1's own program does."""
    no_repeat_ngram: int = 0
    """No run of so many tokens is written twice; 0: no such rule."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of written tokens."""
    repetition_window: int = 0
    """How many last tokens the penalty looks at; 0: all."""
    repetition_form: Literal["original", "written"] = "original"
    """Penalise the ids that were fed, begin marks too; or the tokens that were written."""
    length_penalty: float = 1.0
    """Exponent of the length that a beam's score is divided by."""
    early_stopping: bool = False
    """End the search with as many finished beams as there are beams (not of cpm_bee)."""
    strict: bool = False
    """Refuse a '<' that opens no known tag, as the original does, instead of escaping it."""
    buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Lengths that prompts are padded to; one graph is compiled for each that occurs."""

    def __post_init__(self) -> None:
        at_least("generate", self, max_new_tokens=1, beams=1, temperature=0, top_k=0)
        at_least("generate", self, min_new_tokens=0, num_best=1, no_repeat_ngram=0)
        at_least("generate", self, repetition_penalty=1, repetition_window=0)
        require(0 < self.top_p <= 1, f"generate.top_p={self.top_p}, expected 0 < value <= 1")
        require(
            self.temperature == 0 or self.beams == 1,
            f"generate.temperature={self.temperature} samples, it needs generate.beams=1, "
            f"got {self.beams}",
        )
        require(0 <= self.min_p <= 1, f"generate.min_p={self.min_p}, expected 0 <= value <= 1")
        require(
            self.min_new_tokens <= self.max_new_tokens,
            f"generate.min_new_tokens={self.min_new_tokens} is more than "
            f"generate.max_new_tokens={self.max_new_tokens}",
        )
        require(
            len(self.copy_joiner) < 2 and not self.copy_joiner.isspace(),
            f"generate.copy_joiner={self.copy_joiner!r}, expected one character, no space, or none",
        )
        require(
            not (self.copy_only and self.min_new_tokens),
            f"generate.min_new_tokens={self.min_new_tokens} may ask for more than there is to "
            "copy; with generate.copy_only it must be 0",
        )
        for name in ("stop", "bad_words"):
            texts = getattr(self, name)
            require(
                not isinstance(texts, str) and all(texts),
                f"generate.{name}={texts!r}, expected a list of texts that are not empty",
            )
        require(
            self.num_best <= self.beams,
            f"generate.num_best={self.num_best}, expected at most generate.beams={self.beams}",
        )
        rising = all(a < b for a, b in zip((0, *self.buckets), self.buckets))
        require(
            bool(self.buckets) and rising,
            f"generate.buckets={list(self.buckets)}, expected rising lengths > 0",
        )
