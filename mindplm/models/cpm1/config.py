"""CPM-1's sizes, presets, parameter shapes and the names that other projects use for them.

Source: TsinghuaAI/CPM-1-Generate and CPM-1-Distill; the HF form is that of GPT-2.
"""

from __future__ import annotations

import math
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
    with_bias,
)
from mindplm.strict import require
from mindplm.weights.rules import Drop, Rename, Rule, Split

Flavour = Literal["megatron", "hf", "hf_bare"]
FLAVOURS = ("megatron", "hf", "hf_bare")
"""megatron: the original's names; hf: those of GPT-2 in HF's form, which some files have without
the prefix `transformer.` (hf_bare)."""


@dataclass(frozen=True)
class Cpm1Config(PlainSizes):
    """Sizes of a CPM-1 model."""

    max_len: int = 1024
    eps: float = 1e-5
    """Added to the variance in the norms."""
    init_std: float = 0.02
    """Standard deviation of the first weights; in the last matrix of both parts of a block it is
    divided by the root of twice the number of layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "eps")

    @property
    def residual_std(self) -> float:
        """Deviation of the first values of the last matrix of both parts of a block."""
        return self.init_std / math.sqrt(2 * self.num_layers)


def _published(hidden: int, heads: int, layers: int) -> Cpm1Config:
    return Cpm1Config(30000, hidden, heads, 4 * hidden, layers)


PRESETS: dict[str, Cpm1Config] = {
    "tiny": Cpm1Config(hidden_size=128, num_heads=4, ffn_size=512, num_layers=2, max_len=256),
    "small": _published(768, 12, 12),
    "medium": _published(1024, 16, 24),
    "large": _published(2560, 32, 32),
}


def parameter_shapes(config: Cpm1Config) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    return {**causal_shapes(config), **with_bias("final_norm", (config.hidden_size,))}


def num_parameters(config: Cpm1Config) -> int:
    """Number of trained values."""
    return total(parameter_shapes(config))


# --- other projects' names ------------------------------------------------------------------------

_LAYER = "transformer.layers.{i}."
_MEGATRON = {
    _LAYER + "attention.dense": "blocks.{i}.attn.o",
    _LAYER + "mlp.dense_h_to_4h": "blocks.{i}.ffn.up",
    _LAYER + "mlp.dense_4h_to_h": "blocks.{i}.ffn.down",
}
_MEGATRON_NORMS = {
    _LAYER + "input_layernorm": "blocks.{i}.attn_norm",
    _LAYER + "post_attention_layernorm": "blocks.{i}.ffn_norm",
    "transformer.final_layernorm": "final_norm",
}
_HF = {
    "h.{i}.attn.c_proj": "blocks.{i}.attn.o",
    "h.{i}.mlp.c_fc": "blocks.{i}.ffn.up",
    "h.{i}.mlp.c_proj": "blocks.{i}.ffn.down",
}
_HF_NORMS = {
    "h.{i}.ln_1": "blocks.{i}.attn_norm",
    "h.{i}.ln_2": "blocks.{i}.ffn_norm",
    "ln_f": "final_norm",
}
SHARD_AXES = {
    r"word_embeddings\.weight": "rows",
    r".*\.mlp\.dense_h_to_4h\.(weight|bias)": "rows",
    r".*\.attention\.query_key_value\.(weight|bias)": "thirds",
    r".*\.(attention\.dense|mlp\.dense_4h_to_h)\.weight": "columns",
}
"""How the shards of a model-parallel checkpoint hold the tensors of these names: cut by rows, by
rows of each third, by columns; all others are the same in each."""


def flavour_of(names: Iterable[str]) -> Flavour:
    """Which of FLAVOURS a checkpoint with these names has."""
    names = list(names)
    if "word_embeddings.weight" in names:
        return "megatron"
    return "hf" if has_prefix(names, "transformer.") else "hf_bare"


def rules(config: Cpm1Config, flavour: str = "megatron") -> list[Rule]:
    """Rules between the names of a public checkpoint and ours; HF's matrices are [in, out]."""
    fused = [f"blocks.{{i}}.attn.{name}." for name in "qkv"]
    weights, biases = ([name + kind for name in fused] for kind in ("weight", "bias"))
    if flavour == "megatron":
        joined = _LAYER + "attention.query_key_value."
        return [
            Rename("word_embeddings.weight", "embed.weight"),
            Rename("position_embeddings.weight", "positions.weight"),
            Split(joined + "weight", weights),
            Split(joined + "bias", biases),
            *_pairs({**_MEGATRON, **_MEGATRON_NORMS}, "", transpose=False),
        ]
    prefix = "transformer." if flavour == "hf" else ""
    joined = prefix + "h.{i}.attn."
    return [
        Rename(prefix + "wte.weight", "embed.weight"),
        Rename(prefix + "wpe.weight", "positions.weight"),
        Split(joined + "c_attn.weight", weights, transpose=True),
        Split(joined + "c_attn.bias", biases),
        *_pairs(_HF, prefix, transpose=True),
        *_pairs(_HF_NORMS, prefix, transpose=False),
        Drop(joined + "bias"),  # the causal mask, and its constant
        Drop(joined + "masked_bias"),
        Drop("lm_head.weight", make=lambda ours: ours["embed.weight"]),
    ]


def _pairs(names: Mapping[str, str], prefix: str, *, transpose: bool) -> list[Rule]:
    result: list[Rule] = []
    for theirs, ours in names.items():
        result.append(Rename(f"{prefix}{theirs}.weight", f"{ours}.weight", transpose=transpose))
        result.append(Rename(f"{prefix}{theirs}.bias", f"{ours}.bias"))
    return result


_KEYS: dict[str, dict[str, str]] = {
    "megatron": {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_attention_heads": "num_heads",
        "num_layers": "num_layers",
        "max_position_embeddings": "max_len",
        "layernorm_epsilon": "eps",
    },
    "hf": {
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_head": "num_heads",
        "n_layer": "num_layers",
        "n_positions": "max_len",
        "layer_norm_epsilon": "eps",
        "initializer_range": "init_std",
    },
}
_OPTIONAL = {"layernorm_epsilon", "layer_norm_epsilon", "initializer_range"}


def from_original(theirs: Mapping[str, Any]) -> Cpm1Config:
    """Reads a GPT-2 `config.json` of HF, or the original's sizes as such a file.

    Keys that do not change the network are read over.

    Raises:
        ConfigError: A key is missing or has a value that this model does not have.
    """
    keys = _KEYS["hf" if "n_embd" in theirs else "megatron"]
    values = own_values(theirs, keys, _OPTIONAL, "CPM-1")
    act = theirs.get("activation_function", "gelu_new")
    require(act == "gelu_new", f"activation_function={act}, expected gelu_new")
    inner = theirs.get("n_inner") or 4 * values["hidden_size"]
    return Cpm1Config(**values, ffn_size=inner)


def to_original(config: Cpm1Config, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    if flavour == "megatron":
        require(
            config.ffn_size == 4 * config.hidden_size,
            f"model.ffn_size={config.ffn_size}: their ffn has 4 x {config.hidden_size}",
        )
        return their_values(config, _KEYS["megatron"])
    return {
        **their_values(config, _KEYS["hf"]),
        "n_ctx": config.max_len,
        "n_inner": config.ffn_size,
        "activation_function": "gelu_new",
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "eos_token_id": 7,
        "pad_token_id": 5,
    }
