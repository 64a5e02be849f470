"""Learning-rate schedules, as functions of the number of completed optimizer steps."""

from __future__ import annotations

import math

from mindplm.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    noam is CPM-Bee's: lr / sqrt(warmup) * n / warmup, then lr / sqrt(n); its first step has
    learning rate 0. The others reach optim.lr at the end of the warm-up, whose first step
    already moves (with warmup_from_zero it has rate 0, as in BERT's and Megatron's programs), and
    fall to optim.lr * optim.min_lr_ratio: cosine and linear in `total` steps, exponential by
    optim.step_ratio a step without end.

    Source: Vaswani et al. 2017, section 5.3, without the factor of the model's width (noam).
    """
    if config.schedule_form != "library":
        return _FORMS[config.schedule_form](config, step, total)
    warmup = config.warmup_steps
    if config.schedule == "noam":
        if step < warmup:
            return config.lr / math.sqrt(warmup) * step / warmup
        return config.lr / math.sqrt(max(step, 1))
    if step < warmup:
        if config.warmup_from_zero:
            return config.lr * step / max(1, warmup)
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "exponential":
        left = config.step_ratio ** (step - warmup)
    else:
        left = (1 - done) ** config.power
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def _gpt1(config: OptimConfig, step: int, total: int) -> float:
    """GPT-1's: a function of the part of training that is over, the step to come among it.

    The cosine is not stretched after the warm-up, and the line falls through the warm-up too.

    Source: openai/finetune-transformer-lm, opt.py.
    """
    done, warm = (step + 1) / total, config.warmup_steps / total
    warming = done <= warm and warm > 0
    left = done / warm if warming else 1.0
    if config.schedule == "cosine" and not warming:
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "linear":
        left *= 1 - done
    return config.lr * left


def _cpm1(config: OptimConfig, step: int, total: int) -> float:
    """CPM-1's in fine-tuning: what follows the warm-up is stretched to all steps.

    It goes on falling if training does, and its exponential shape does not fall.

    Source: TsinghuaAI/CPM-1-Finetune, learning_rates.py.
    """
    warm = config.warmup_steps
    if warm and step <= warm:
        return config.lr * step / warm
    shape = "constant" if config.schedule == "exponential" else config.schedule
    return config.lr * _cpm1_left(shape, (step - warm) / total)


def _cpm1_pretrain(config: OptimConfig, step: int, total: int) -> float:
    """CPM-1's in pretraining: never below the least rate, and steady for the last warm-up steps.

    Source: TsinghuaAI/CPM-1-Pretrain, learning_rates.py.
    """
    warm = config.warmup_steps
    step = min(step, total - warm)
    if warm and step <= warm:
        return config.lr * step / warm
    left = _cpm1_left(config.schedule, (step - warm) / total)
    return config.lr * max(left, config.min_lr_ratio)


def _cpm1_left(shape: str, done: float) -> float:
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if shape == "exponential":
        return math.exp(-0.693 * done)
    return 1 - done if shape == "linear" else 1.0


_FORMS = {"gpt1": _gpt1, "cpm1": _cpm1, "cpm1_pretrain": _cpm1_pretrain}
