"""Settings of how a run is spread over devices."""

from __future__ import annotations

from dataclasses import dataclass

from mindplm.strict import at_least, require


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over devices; data x model x pipeline of them."""

    data: int = 1
    """Devices that each take a share of every batch."""
    model: int = 1
    """Devices that share heads, inner width and vocabulary of every layer (Ascend)."""
    pipeline: int = 1
    """Stages that each hold a part of the layers (Ascend)."""
    micro_batches: int = 0
    """Passes of a step, for pipeline and accumulation; 0: what train.micro_batch_size gives."""
    optimizer_shard: bool = False
    """Weights, gradients and moments are spread over the data axis (Ascend)."""
    recompute: bool = False
    """Keep only the inputs of the blocks in the forward pass and compute the rest again for the
    gradients: less memory, about a third more arithmetic."""
    sequence: bool = False
    """Norms and residual sums are spread over positions along the model axis."""
    vocab_rows: int = 0
    """Rows of the embedding on the devices; 0: the vocabulary, made up to a multiple of model x 128
    if model > 1. Checkpoints hold none of what is made up."""

    def __post_init__(self) -> None:
        at_least("parallel", self, data=1, model=1, pipeline=1, micro_batches=0, vocab_rows=0)
        require(
            not self.sequence or self.model > 1,
            f"parallel.sequence=true needs parallel.model > 1, got {self.model}",
        )
        require(
            not self.optimizer_shard or self.data > 1,
            f"parallel.optimizer_shard=true needs parallel.data > 1, got {self.data}",
        )
        require(
            not self.micro_batches or self.micro_batches >= self.pipeline,
            f"parallel.micro_batches={self.micro_batches}, expected at least "
            f"parallel.pipeline={self.pipeline}",
        )

    @property
    def devices(self) -> int:
        """Devices of the run."""
        return self.data * self.model * self.pipeline

    @property
    def by_plan(self) -> bool:
        """Whether the family's shard plan is needed; data parallel alone does without."""
        return self.model > 1 or self.pipeline > 1 or self.optimizer_shard
