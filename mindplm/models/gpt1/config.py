"""GPT-1's sizes, presets, parameter shapes and the names that other projects use for them.

Source: openai/finetune-transformer-lm and the HF port of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mindplm.models.sizes import (
    PlainSizes,
    Shape,
    causal_shapes,
    has_prefix,
    own_values,
    positive,
    their_values,
    total,
)
from mindplm.strict import require
from mindplm.weights.rules import Drop, Rename, Rule, Split

Flavour = Literal["openai", "hf", "hf_bare"]
FLAVOURS = ("openai", "hf", "hf_bare")
"""openai: the shards of the original release; hf: names of the PyTorch port, which older files
have without the prefix `transformer.` (hf_bare)."""


@dataclass(frozen=True)
class Gpt1Config(PlainSizes):
    """Sizes of a GPT-1 model."""

    eps: float = 1e-5
    """Added to the variance in the norms."""
    position_classes: bool = False
    """The position rows are output classes too, as in the original program (not in its ports)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "eps")


PRESETS: dict[str, Gpt1Config] = {
    "tiny": Gpt1Config(hidden_size=192, num_heads=4, ffn_size=768, num_layers=4, max_len=256),
    "117m": Gpt1Config(vocab_size=40478),
}


def parameter_shapes(config: Gpt1Config) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    return causal_shapes(config)


def num_parameters(config: Gpt1Config) -> int:
    """Number of trained values."""
    return total(parameter_shapes(config))


# --- other projects' names ------------------------------------------------------------------------

_PARTS = {"attn.c_proj": "attn.o", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
_NORMS = {"ln_1": "attn_norm", "ln_2": "ffn_norm"}


def flavour_of(names: Iterable[str]) -> Flavour:
    """Which of FLAVOURS a checkpoint with these names has."""
    names = list(names)
    if "positions" in names:
        return "openai"
    return "hf" if has_prefix(names, "transformer.") else "hf_bare"


def rules(config: Gpt1Config, flavour: str = "hf") -> list[Rule]:
    """Rules between the names of a public checkpoint and ours.

    Their matrices are of shape [in, out]; those of the original come without their leading axis.
    """
    openai = flavour == "openai"
    prefix = "transformer." if flavour == "hf" else ""
    block = f"{prefix}h.{{i}}."
    weight, bias, gain, shift = ("w", "b", "g", "b") if openai else ("weight", "bias") * 2
    fused = [f"blocks.{{i}}.attn.{name}." for name in "qkv"]
    result: list[Rule] = [
        Split(f"{block}attn.c_attn.{weight}", [name + "weight" for name in fused], transpose=True),
        Split(f"{block}attn.c_attn.{bias}", [name + "bias" for name in fused]),
    ]
    for theirs, ours in _PARTS.items():
        theirs, ours = f"{block}{theirs}.", f"blocks.{{i}}.{ours}."
        result.append(Rename(theirs + weight, ours + "weight", transpose=True))
        result.append(Rename(theirs + bias, ours + "bias"))
    for theirs, ours in _NORMS.items():
        theirs, ours = f"{block}{theirs}.", f"blocks.{{i}}.{ours}."
        result += [Rename(theirs + gain, ours + "weight"), Rename(theirs + shift, ours + "bias")]
    if openai:
        return [
            Rename("positions", "positions.weight"), Rename("tokens", "embed.weight"), *result
        ]  # fmt: skip
    return [
        Rename(prefix + "tokens_embed.weight", "embed.weight"),
        Rename(prefix + "positions_embed.weight", "positions.weight"),
        *result,
        Drop(block + "attn.bias"),  # the causal mask of older files
        Drop("lm_head.weight", make=lambda ours: ours["embed.weight"]),
    ]


_KEYS = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "n_layer": "num_layers",
    "n_positions": "max_len",
    "layer_norm_epsilon": "eps",
    "initializer_range": "init_std",
}
_OPTIONAL = {"layer_norm_epsilon", "initializer_range"}
_GELU = ("gelu", "gelu_new")
"""Both names mean the approximation by tanh in the port's configurations."""


def from_original(theirs: Mapping[str, Any]) -> Gpt1Config:
    """Reads a `config.json` of the HF port; keys that do not change the network are read over.

    Raises:
        ConfigError: A key is missing or has a value that this model does not have.
    """
    values = own_values(theirs, _KEYS, _OPTIONAL, "GPT-1")
    act = theirs.get("afn", "gelu")
    require(act in _GELU, f"afn={act}, expected gelu")
    return Gpt1Config(**values, ffn_size=4 * values["hidden_size"])


def to_original(config: Gpt1Config, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    require(
        config.ffn_size == 4 * config.hidden_size,
        f"model.ffn_size={config.ffn_size}: their ffn has 4 x n_embd = {4 * config.hidden_size}",
    )
    return {
        **their_values(config, _KEYS),
        "n_ctx": config.max_len,
        "afn": "gelu",
        "model_type": "openai-gpt",
        "architectures": ["OpenAIGPTLMHeadModel"],
    }
