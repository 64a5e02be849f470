"""The teacher of a run that distils: read, frozen, and put into the training cell."""

from __future__ import annotations

from typing import Any

from mindplm import checkpoint, runtime
from mindplm.config import ConfigError, RunConfig
from mindplm.families import FAMILIES, family
from mindplm.nn.values import load_model
from mindplm.runtime import log
from mindplm.train.begin import whole

_PREFIX = "teacher."


def distilled(model: Any, config: RunConfig, tokenizer: Any) -> Any:
    """The training cell with the teacher in it; None if the run has no teacher.

    The teacher is run in the same compiled step; it gets no gradient and is in no checkpoint.

    Raises:
        UserError: The family cannot be distilled, or the teacher does not fit the run.
    """
    if config.distill is None:
        return None
    wish, folder = config.distill, config.distill.teacher
    parts = family(config.family)
    if not parts.distill_ref:
        able = ", ".join(name for name, entry in FAMILIES.items() if entry.distill_ref)
        raise ConfigError(f"distill: {config.family} cannot be distilled; accepted: {able}")
    saved = whole(checkpoint.read(folder), "distill.teacher")
    if family(saved.family).distill_ref != parts.distill_ref:
        raise ConfigError(
            f"distill.teacher={folder} is of family {saved.family}, which a {config.family} "
            "cannot follow"
        )
    for name, data in tokenizer.files().items():
        own = saved.folder / name
        if not own.is_file() or own.read_bytes() != data:
            raise ConfigError(f"distill.teacher={folder}: {name} is another vocabulary")
    sizes = saved.model()
    if sizes.max_len < config.data.seq_len:
        raise ConfigError(
            f"distill.teacher={folder} reads {sizes.max_len} tokens at most, "
            f"data.seq_len={config.data.seq_len}"
        )
    teacher = family(saved.family).part("cell")(sizes, runtime.compute_dtype(config.runtime.dtype))
    load_model(teacher, saved.lazy_weights(), folder, fresh=True)
    count = 0
    for weight in teacher.get_parameters():
        weight.name = _PREFIX + weight.name  # beside the student's in one graph
        count += weight.size
    log.info("teacher     %s, %s parameters, of %s", saved.family, f"{count:,}", saved.folder)
    return parts.part("distill")(
        model, teacher, hard=wish.hard, soft=wish.soft, temperature=wish.temperature
    )
