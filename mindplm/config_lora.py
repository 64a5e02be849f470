"""The settings of low-rank adapters (LoRA): which projections get one, and its size."""

from __future__ import annotations

from dataclasses import dataclass

from mindplm.strict import at_least, require


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; the defaults are those of the original CPM-Bee."""

    rank: int = 8
    """Width of the adapter's bottleneck."""
    alpha: float = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability of dropping a value of the adapter's input in training."""
    targets: tuple[str, ...] = ("attn.q", "attn.v")
    """Projections that get an adapter: ends of their names, such as attn.q, ffn.up or
    blocks.3.attn.o; * stands for anything."""

    def __post_init__(self) -> None:
        at_least("lora", self, rank=1)
        require(self.alpha > 0, f"lora.alpha={self.alpha}, expected > 0")
        require(0 <= self.dropout < 1, f"lora.dropout={self.dropout}, expected 0 <= value < 1")
        require(
            not isinstance(self.targets, str) and bool(self.targets) and all(self.targets),
            f"lora.targets={self.targets!r}, expected a list of names such as attn.q",
        )
