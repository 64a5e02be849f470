"""CPT's sizes, presets, parameter shapes and the names that its checkpoints use for them.

Source: the published configurations and checkpoints of CPT (fastnlp/CPT, arXiv 2109.05729).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mindplm.models.bert.config import encoder_rules, encoder_shapes, pair_rules
from mindplm.models.sizes import (
    PlainSizes,
    Shape,
    block_shapes,
    has_prefix,
    own_values,
    their_values,
    total,
    with_bias,
)
from mindplm.strict import at_least, require
from mindplm.weights.rules import Drop, Fill, Rename, Rule

ENCODER_EPS, DECODER_EPS = 1e-12, 1e-5
"""Added to the variance in the norms of both sides."""
OFFSET = 2
"""Rows of the decoder's position table before the first position."""


@dataclass(frozen=True)
class CptConfig(PlainSizes):
    """Sizes of a CPT model; num_layers counts the understanding decoder's blocks too."""

    UNDROPPED: ClassVar[tuple[str, ...]] = ("*encoder.blocks.*.ffn.inside",)

    num_decoder_layers: int = 2
    """Blocks of the understanding decoder, and of the writing decoder."""
    num_types: int = 2
    """Rows of the table of token types."""
    write_type: int = 0
    """Type of the tokens of a text that is read to write from; 0 as in the original's generation,
    1 as in all of its training."""
    scale_embedding: bool = False
    """Whether the writing decoder's word embeddings are multiplied by the root of the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model", self, num_decoder_layers=1, max_len=2, num_types=2)
        require(
            self.num_layers > self.num_decoder_layers,
            f"model.num_layers={self.num_layers}, expected more than "
            f"model.num_decoder_layers={self.num_decoder_layers}",
        )


_BASE = CptConfig(vocab_size=51271, max_len=1024)
_LARGE = replace(
    _BASE, hidden_size=1024, num_heads=16, ffn_size=4096, num_layers=24, num_decoder_layers=4
)

PRESETS: dict[str, CptConfig] = {
    "tiny": CptConfig(
        hidden_size=128, num_heads=2, ffn_size=512, num_layers=3, num_decoder_layers=1
    ),
    "base_v1": replace(_BASE, vocab_size=21128, max_len=512),
    "large_v1": replace(_LARGE, vocab_size=21128, max_len=512),
    "base": _BASE,
    "large": _LARGE,
}


# --- parameters -----------------------------------------------------------------------------------


def parameter_shapes(config: CptConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, the output bias that is not trained among them."""
    hidden = config.hidden_size
    shapes = {
        **encoder_shapes(config),
        "decoder.positions.weight": (config.max_len + OFFSET, hidden),
        **with_bias("decoder.embed_norm", (hidden,)),
    }
    for i in range(config.num_decoder_layers):
        block = f"decoder.blocks.{i}."
        shapes.update(block_shapes(block, hidden, config.ffn_size))
        for name in "qkvo":
            shapes.update(with_bias(f"{block}cross.{name}", (hidden, hidden)))
        shapes.update(with_bias(block + "cross_norm", (hidden,)))
    return {**shapes, "logits_bias": (1, config.vocab_size)}


def num_parameters(config: CptConfig) -> int:
    """Number of values, those of the output bias included."""
    return total(parameter_shapes(config))


# --- other projects' names ------------------------------------------------------------------------

FLAVOURS = ("hf", "bare")
"""hf: of the generation class; bare: of the model without its head, as the published files are."""
_LAYER = "decoder.layers.{i}."
_PAIRS = {
    "decoder.layernorm_embedding": "decoder.embed_norm",
    _LAYER + "self_attn.q_proj": "decoder.blocks.{i}.attn.q",
    _LAYER + "self_attn.k_proj": "decoder.blocks.{i}.attn.k",
    _LAYER + "self_attn.v_proj": "decoder.blocks.{i}.attn.v",
    _LAYER + "self_attn.out_proj": "decoder.blocks.{i}.attn.o",
    _LAYER + "self_attn_layer_norm": "decoder.blocks.{i}.attn_norm",
    _LAYER + "encoder_attn.q_proj": "decoder.blocks.{i}.cross.q",
    _LAYER + "encoder_attn.k_proj": "decoder.blocks.{i}.cross.k",
    _LAYER + "encoder_attn.v_proj": "decoder.blocks.{i}.cross.v",
    _LAYER + "encoder_attn.out_proj": "decoder.blocks.{i}.cross.o",
    _LAYER + "encoder_attn_layer_norm": "decoder.blocks.{i}.cross_norm",
    _LAYER + "fc1": "decoder.blocks.{i}.ffn.up",
    _LAYER + "fc2": "decoder.blocks.{i}.ffn.down",
    _LAYER + "final_layer_norm": "decoder.blocks.{i}.ffn_norm",
}


def flavour_of(names: Iterable[str]) -> str:
    """Which of FLAVOURS a checkpoint with these names has."""
    return "hf" if has_prefix(names, "model.") else "bare"


def _table(ours: Mapping[str, np.ndarray]) -> np.ndarray:
    return ours["encoder.embed.weight"]


def rules(config: CptConfig, flavour: str = "hf") -> list[Rule]:
    """Rules between the names of a published checkpoint and ours."""
    prefix = "model." if flavour == "hf" else ""
    result = [
        *encoder_rules(prefix + "encoder."),
        *pair_rules({prefix + theirs: ours for theirs, ours in _PAIRS.items()}),
        Rename(prefix + "decoder.embed_positions.weight", "decoder.positions.weight"),
        Drop(prefix + "shared.weight", make=_table),
        Drop(prefix + "decoder.embed_tokens.weight", make=_table),
        Drop(prefix + "encoder.embeddings.position_ids"),
    ]
    if flavour == "hf":
        return [*result, Rename("final_logits_bias", "logits_bias"), Drop("lm_head.weight", _table)]
    return [*result, Fill("logits_bias", lambda shape: np.zeros(shape, np.float32))]


_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "encoder_attention_heads": "num_heads",
    "encoder_ffn_dim": "ffn_size",
    "encoder_layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "max_position_embeddings": "max_len",
    "init_std": "init_std",
    "scale_embedding": "scale_embedding",
}
_OPTIONAL = {"init_std", "scale_embedding"}


def from_original(theirs: Mapping[str, Any]) -> CptConfig:
    """Reads a public `config.json`; keys that do not change the network are read over.

    Raises:
        ConfigError: A key is missing or has a value that this model does not have.
    """
    values = own_values(theirs, _KEYS, _OPTIONAL, "CPT")
    for key, wanted in (
        ("activation_function", "gelu"),
        ("decoder_attention_heads", theirs["encoder_attention_heads"]),
        ("decoder_ffn_dim", theirs["encoder_ffn_dim"]),
    ):
        value = theirs.get(key, wanted)
        require(value == wanted, f"{key}={value}, expected {wanted}")
    return CptConfig(**values)


def to_original(config: CptConfig, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    return {
        **their_values(config, _KEYS),
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.ffn_size,
        "activation_function": "gelu",
        "model_type": "bart",
        "architectures": ["CPTForConditionalGeneration"],
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "decoder_start_token_id": 102,
        "forced_eos_token_id": 102,
    }
