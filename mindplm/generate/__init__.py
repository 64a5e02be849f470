"""Writing with a trained model: `load` a checkpoint, `generate` or `stream` answers for prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from tqdm import tqdm

from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.data import prompts as prompting
from mindplm.errors import DataError
from mindplm.generate.engine import Engine, Written
from mindplm.generate.layout import Layout
from mindplm.generate.policies import most_tokens, policy_maker, seeds_of, with_changes
from mindplm.generate.streaming import Piece, pieces

if TYPE_CHECKING:
    from mindplm.generate.model import Model

Prompt = Union[str, Mapping[str, Any]]
"""A record with empty texts below `<ans>`; a plain text stands for a record to be continued."""


def load(
    folder: str | Path,
    settings: RuntimeConfig | None = None,
    *,
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    int8: bool = False,
) -> tuple[Model, Any]:
    """Reads a checkpoint; see `mindplm.generate.model.load`."""
    from mindplm.generate import model

    return model.load(folder, settings, adapter=adapter, int8=int8)


def generate(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: GenerateConfig | None = None,
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    **changes: Any,
) -> list[Any]:
    """Fills the blanks of records.

    Args:
        model: From `load`.
        tokenizer: From `load`.
        prompts: Records with empty texts below the key `<ans>`, or plain texts to be continued,
            which stand for {"input": text, "<ans>": ""}. They are not changed.
        settings: How to write; None: the defaults, which take the best token each time.
        examples: Records with answers that each prompt is shown.
        seed: Of the drawing: one per prompt, or a number s that stands for s, s + 1, ...
        batch_size: Most prompts that are written at once; it does not change what is written.
        **changes: Fields of `mindplm.config.GenerateConfig` that win over `settings`, such as
            max_new_tokens, per_blank, beams, temperature, top_k, top_p, min_p, stop, strict.

    Returns:
        Copies of the records with the texts at their places: a literal `<` is doubled, a blank
        that was not reached because of max_new_tokens is None. With num_best above 1 a list of
        such copies for each record, the best first.

    Raises:
        DataError: A prompt cannot be used; it is named by its number from 1.
        ConfigError: A setting cannot be used.
    """
    config = with_changes(settings, changes)
    return write(
        model, tokenizer, prompts, config, examples=examples, seed=seed, batch_size=batch_size
    )


def stream(
    model: Model,
    tokenizer: Any,
    prompt: Prompt,
    settings: GenerateConfig | None = None,
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    **changes: Any,
) -> Iterator[Piece]:
    """Fills the blanks of one record, giving out text as soon as it is certain.

    Arguments are those of `generate`. The pieces are texts with an attribute `path`, the keys of
    their blank below `<ans>`; joined for each blank they are what `generate` writes with the same
    seed. Bad prompts and settings are refused here, before the first piece is asked for.
    """
    config = with_changes(settings, changes)
    layout = model.layout(tokenizer)
    record = prompting.as_record(prompt)
    ready = layout.prepare(record, strict=config.strict, examples=examples)
    engine = Engine(model.network, layout, buckets=config.buckets, batch_size=1)
    engine.check(ready, most_tokens(config, [ready]))
    policies = policy_maker(config, seeds_of(seed, 1), [record])
    return pieces(engine, ready, layout, config, policies)


def write(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: GenerateConfig,
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Any]:
    """`generate` with its settings as a config, and a progress bar if wished."""
    if isinstance(prompts, (str, Mapping)):
        raise DataError(f"expected a list of prompts, got one {type(prompts).__name__}")
    layout = model.layout(tokenizer)
    records, ready = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            records.append(prompting.as_record(prompt))
            ready.append(layout.prepare(records[-1], strict=config.strict, examples=examples))
        except DataError as error:
            raise DataError(f"prompt {number}: {error}") from None
    engine = Engine(model.network, layout, buckets=config.buckets, batch_size=batch_size)
    done = engine.run(
        ready,
        policy_maker(config, seeds_of(seed, len(records)), records),
        rows_per_prompt=config.beams,
        max_new_tokens=most_tokens(config, ready),
    )
    filled: list[Any] = [{}] * len(records)
    bar = tqdm(done, total=len(records), desc="generate", unit="prompt", disable=not progress)
    for i, written in bar:
        filled[i] = fill(records[i], ready[i], written, layout, config)
    return filled


def write_each(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: GenerateConfig,
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    batch_size: int = 8,
    progress: bool = False,
) -> list[Any]:
    """Like `write`, but a prompt that cannot be used has its DataError in its place."""
    layout = model.layout(tokenizer)
    engine = Engine(model.network, layout, buckets=config.buckets, batch_size=batch_size)
    found: list[Any] = []
    for prompt in prompts:
        try:
            record = prompting.as_record(prompt)
            ready = layout.prepare(record, strict=config.strict, examples=examples)
            engine.check(ready, most_tokens(config, [ready]))
            found.append(record)
        except DataError as error:
            found.append(error)
    good = [i for i, item in enumerate(found) if not isinstance(item, DataError)]
    filled = write(
        model,
        tokenizer,
        [found[i] for i in good],
        config,
        examples=examples,
        batch_size=batch_size,
        progress=progress,
    )
    for i, record in zip(good, filled):
        found[i] = record
    return found


def fill(
    record: Mapping[str, Any],
    prompt: Any,
    written: Written,
    layout: Layout,
    config: GenerateConfig,
) -> Any:
    """What is returned for a record: a filled copy, or with num_best above 1 a list of them."""
    copies = []
    for pairs in written.ranked[: config.num_best] if config.num_best > 1 else [written.pairs]:
        texts = layout.answers(pairs, prompt, written.table, config.stop)
        copies.append(prompting.write_back(record, prompt, texts))
    return copies if config.num_best > 1 else copies[0]
