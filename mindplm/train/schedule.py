"""Learning-rate schedules, as functions of the number of completed optimizer steps."""

from __future__ import annotations

import math

from mindplm.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    noam is CPM-Bee's: lr / sqrt(warmup) * n / warmup, then lr / sqrt(n); its first step has
    learning rate 0. The others reach optim.lr at the end of the warm-up, whose first step
    already moves (with warmup_from_zero it has rate 0, as in BERT's and Megatron's programs), and
    end at optim.lr * optim.min_lr_ratio.

    Source: Vaswani et al. 2017, section 5.3, without the factor of the model's width (noam).
    """
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
    else:
        left = (1 - done) ** config.power
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
