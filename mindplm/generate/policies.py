"""From settings to policies: which one, with which rules, and a seed for every prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mindplm.config import GenerateConfig
from mindplm.errors import ConfigError
from mindplm.generate.copying import Copied, texts_of
from mindplm.generate.engine import PolicyMaker
from mindplm.generate.layout import Prompt
from mindplm.generate.rows import Extras
from mindplm.generate.sampling import Sampler
from mindplm.generate.search import BeamSearch
from mindplm.strict import suggest

_TEXTS = ("stop", "bad_words")


def with_changes(settings: GenerateConfig | None, changes: Mapping[str, Any]) -> GenerateConfig:
    """Settings with some fields changed.

    Raises:
        ConfigError: A field does not exist, or its value cannot be used.
    """
    known = [field.name for field in dataclasses.fields(GenerateConfig)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"generate has no setting {name}{suggest(name, known)}")
    texts = {n: tuple(v) for n, v in changes.items() if n in _TEXTS and isinstance(v, list)}
    changes = {**changes, **texts}
    return dataclasses.replace(settings or GenerateConfig(), **changes)


def policy_maker(
    config: GenerateConfig, seeds: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> PolicyMaker:
    """Makes the policies of batches; seeds and records are by the prompt's number in the call."""
    rules = Extras(
        per_blank=config.per_blank,
        min_new_tokens=config.min_new_tokens,
        penalize_written=config.repetition_form == "written",
        stop=config.stop,
        min_p=config.min_p,
        filter_first=config.filter_first,
        no_repeat_ngram=config.no_repeat_ngram,
        early_stopping=config.early_stopping,
        bad_words=config.bad_words,
    )
    texts = [texts_of(record) for record in records] if config.copy_only else []

    def extras(numbers: Sequence[int]) -> Extras:
        if not config.copy_only:
            return rules
        copied = Copied([texts[i] for i in numbers], config.copy_joiner)
        return dataclasses.replace(rules, copied=copied)

    if config.beams > 1:
        return lambda plan, numbers: BeamSearch(
            plan,
            beams=config.beams,
            max_new_tokens=config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
            repetition_window=config.repetition_window,
            length_penalty=config.length_penalty,
            extras=extras(numbers),
        )
    return lambda plan, numbers: Sampler(
        plan,
        [seeds[i] for i in numbers],
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        repetition_penalty=config.repetition_penalty,
        repetition_window=config.repetition_window,
        extras=extras(numbers),
    )


def most_tokens(config: GenerateConfig, prompts: Sequence[Prompt]) -> int:
    """Most tokens that a prompt of a call can be given."""
    blanks = max((len(prompt.blanks) for prompt in prompts), default=1)
    return config.max_new_tokens * (blanks if config.per_blank else 1)


def seeds_of(seed: int | Sequence[int], num: int) -> list[int]:
    """The random stream of each prompt: those given, or those that `stream_of` derives."""
    given = list(seed) if isinstance(seed, Sequence) else [int(seed)]
    if min(given, default=0) < 0:
        raise ConfigError(f"seed={min(given)}, expected at least 0")
    if not isinstance(seed, Sequence):
        return [stream_of(seed, number) for number in range(num)]
    if len(given) != num:
        raise ConfigError(f"{len(given)} seeds for {num} prompts; expected one for each")
    return given


def stream_of(seed: int, number: int) -> int:
    """The random stream of a call's prompt, so that two seeds have no stream in common.

    Source: numpy.random.SeedSequence, which mixes the two numbers.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
