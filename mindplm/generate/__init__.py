"""Writing with a trained model: `load` a checkpoint, `generate` answers for prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from tqdm import tqdm

from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.data import prompts as prompting
from mindplm.errors import ConfigError, DataError
from mindplm.generate.engine import Engine, PolicyMaker
from mindplm.generate.sampling import Sampler
from mindplm.generate.search import BeamSearch

if TYPE_CHECKING:
    from mindplm.generate.model import Model

Prompt = Union[str, Mapping[str, Any]]
"""A record with empty texts below `<ans>`; a plain text stands for a record to be continued."""


def load(folder: str | Path, settings: RuntimeConfig | None = None) -> tuple[Model, Any]:
    """Reads a checkpoint; see `mindplm.generate.model.load`."""
    from mindplm.generate import model

    return model.load(folder, settings)


def generate(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 100,
    beams: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    repetition_window: int = 0,
    length_penalty: float = 1.0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """Fills the blanks of records.

    Args:
        model: From `load`.
        tokenizer: From `load`.
        prompts: Records with empty texts below the key `<ans>`, or plain texts to be continued,
            which stand for {"input": text, "<ans>": ""}. They are not changed.
        max_new_tokens: Most tokens written for a record, over all its blanks, end marks included.
        beams: Beams of the search; 1 with temperature 0 takes the best token each time.
        temperature: Divisor of the logits; above 0 tokens are drawn at random.
        top_k: Draw among the k best tokens only; 0: all.
        top_p: Draw among the best tokens that together exceed this probability.
        repetition_penalty: Divides the positive and multiplies the negative logits of tokens
            that were written before; at least 1.
        repetition_window: How many of the last tokens the penalty looks at; 0: all.
        length_penalty: A beam's score is divided by its length to this power.
        seed: Of the drawing: one per prompt, or a number s that stands for s, s + 1, ...
        batch_size: Most prompts that are written at once; it does not change what is written.

    Returns:
        Copies of the records with the texts at their places: a literal `<` is doubled, a blank
        that was not reached because of max_new_tokens is None.

    Raises:
        DataError: A prompt cannot be used; it is named by its number from 1.
        ConfigError: A setting cannot be used.
    """
    config = GenerateConfig(
        max_new_tokens=max_new_tokens,
        beams=beams,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
        length_penalty=length_penalty,
    )
    return write(model, tokenizer, prompts, config, seed=seed, batch_size=batch_size)


def write(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: GenerateConfig,
    *,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """`generate` with its settings as a config, and a progress bar if wished."""
    if isinstance(prompts, (str, Mapping)):
        raise DataError(f"expected a list of prompts, got one {type(prompts).__name__}")
    records, ready = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            records.append(prompting.as_record(prompt))
            ready.append(prompting.prepare(records[-1], tokenizer, model.config.max_depth))
        except DataError as error:
            raise DataError(f"prompt {number}: {error}") from None
    engine = Engine(model.network, tokenizer, buckets=config.buckets, batch_size=batch_size)
    done = engine.run(
        ready,
        _policy_maker(config, _seeds(seed, len(records))),
        rows_per_prompt=config.beams,
        max_new_tokens=config.max_new_tokens,
    )
    filled: list[dict[str, Any]] = [{}] * len(records)
    bar = tqdm(done, total=len(records), desc="generate", unit="prompt", disable=not progress)
    for i, written in bar:
        texts = prompting.answers(written.pairs, ready[i], written.table, tokenizer)
        filled[i] = prompting.write_back(records[i], ready[i], texts)
    return filled


def _policy_maker(config: GenerateConfig, seeds: Sequence[int]) -> PolicyMaker:
    if config.beams > 1:
        return lambda plan, _: BeamSearch(
            plan,
            beams=config.beams,
            max_new_tokens=config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
            repetition_window=config.repetition_window,
            length_penalty=config.length_penalty,
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
    )


def _seeds(seed: int | Sequence[int], num: int) -> list[int]:
    """One seed per prompt."""
    seeds = list(seed) if isinstance(seed, Sequence) else [int(seed) + i for i in range(num)]
    if len(seeds) != num:
        raise ConfigError(f"{len(seeds)} seeds for {num} prompts; expected one for each")
    if min(seeds, default=0) < 0:
        raise ConfigError(f"seed={min(seeds)}, expected at least 0")
    return seeds
