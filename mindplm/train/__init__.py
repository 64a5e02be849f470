"""Training: the compiled step, the loop and its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindplm.config import RunConfig
    from mindplm.train.loop import Result


def pretrain(config: RunConfig) -> Result:
    """Trains a model from prepared rows; see `mindplm.train.loop.pretrain`."""
    from mindplm.train import loop

    return loop.pretrain(config)
