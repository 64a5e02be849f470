"""T5's sizes, presets, parameter shapes and the names that other projects use for them.

Source: Raffel et al. 2020 and the published configurations of T5 v1.0 and v1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mindplm.models.sizes import (
    Shape,
    Sizes,
    own_values,
    positive,
    table_shape,
    their_values,
    total,
)
from mindplm.strict import at_least, require
from mindplm.weights.rules import Drop, Rename, Rule

FLAVOURS = ("hf",)
"""hf: names of the PyTorch checkpoints."""


@dataclass(frozen=True)
class T5Config(Sizes):
    """Sizes of a T5 model."""

    UNDROPPED: ClassVar[tuple[str, ...]] = ()

    hidden_size: int = 512
    num_heads: int = 8
    head_dim: int = 64
    """Width of a head; num_heads x head_dim need not be hidden_size."""
    ffn_size: int = 2048
    num_layers: int = 6
    """Blocks of the encoder."""
    num_decoder_layers: int = 6
    """Blocks of the decoder."""
    num_buckets: int = 32
    """Rows of the tables of relative positions; a multiple of 4."""
    max_distance: int = 128
    """Distances from here on share the last bucket."""
    eps: float = 1e-6
    """Added to the mean square in the norms."""
    gated: bool = False
    """Feed-forward with a gate and GELU, as in v1.1; otherwise with ReLU, as in v1.0."""
    tied: bool = True
    """The output matrix is the token table, as in v1.0; otherwise one of its own, as in v1.1."""
    head_init_std: float = 1.0
    """Standard deviation of a new output matrix that is not the table; about 0.05 lets small models
    from nothing begin with a uniform guess."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model", self, head_dim=1, num_decoder_layers=1)
        require(
            self.num_buckets >= 4 and self.num_buckets % 4 == 0,
            f"model.num_buckets={self.num_buckets}, expected a multiple of 4",
        )
        require(
            self.max_distance > self.num_buckets // 2,
            f"model.max_distance={self.max_distance}, expected more than half of "
            f"model.num_buckets={self.num_buckets}",
        )
        positive(self, "eps")
        at_least("model", self, head_init_std=0)


def _v11(hidden: int, ffn: int, heads: int, layers: int, head_dim: int = 64) -> T5Config:
    tall = _v10(hidden, ffn, heads, layers, head_dim)
    return replace(tall, gated=True, tied=False)


def _v10(hidden: int, ffn: int, heads: int, layers: int, head_dim: int = 64) -> T5Config:
    return T5Config(32128, hidden, heads, ffn, layers, num_decoder_layers=layers, head_dim=head_dim)


PRESETS: dict[str, T5Config] = {
    "tiny": replace(_v11(128, 256, 4, 2, head_dim=32), vocab_size=0, head_init_std=0.05),
    "small_v10": _v10(512, 2048, 8, 6),
    "base_v10": _v10(768, 3072, 12, 12),
    "small_v11": _v11(512, 1024, 6, 8),
    "base_v11": _v11(768, 2048, 12, 12),
    "large_v11": _v11(1024, 2816, 16, 24),
    "xl_v11": _v11(2048, 5120, 32, 24),
    "large_v10": _v10(1024, 4096, 16, 24),
    "3b": _v10(1024, 16384, 32, 24, head_dim=128),
    "11b": _v10(1024, 65536, 128, 24, head_dim=128),
    "xxl_v11": _v11(4096, 10240, 64, 24),
}


# --- parameters -----------------------------------------------------------------------------------


def _attention(prefix: str, config: T5Config) -> dict[str, Shape]:
    inner, hidden = config.num_heads * config.head_dim, config.hidden_size
    shapes: dict[str, Shape] = {f"{prefix}.{name}.weight": (inner, hidden) for name in "qkv"}
    return {**shapes, f"{prefix}.o.weight": (hidden, inner)}


def _stack(name: str, layers: int, config: T5Config) -> dict[str, Shape]:
    hidden, ffn = config.hidden_size, config.ffn_size
    shapes: dict[str, Shape] = {
        f"{name}.position_bias.weight": (config.num_buckets, config.num_heads)
    }
    for i in range(layers):
        block = f"{name}.blocks.{i}"
        shapes[f"{block}.attn_norm.weight"] = (hidden,)
        shapes.update(_attention(f"{block}.attn", config))
        if name == "decoder":
            shapes[f"{block}.cross_norm.weight"] = (hidden,)
            shapes.update(_attention(f"{block}.cross", config))
        shapes[f"{block}.ffn_norm.weight"] = (hidden,)
        for part in ("gate", "up") if config.gated else ("up",):
            shapes[f"{block}.ffn.{part}.weight"] = (ffn, hidden)
        shapes[f"{block}.ffn.down.weight"] = (hidden, ffn)
    shapes[f"{name}.final_norm.weight"] = (hidden,)
    return shapes


def parameter_shapes(config: T5Config) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    table = table_shape(config)
    return {
        "embed.weight": table,
        **_stack("encoder", config.num_layers, config),
        **_stack("decoder", config.num_decoder_layers, config),
        **({} if config.tied else {"head.weight": table}),
    }


def num_parameters(config: T5Config) -> int:
    """Number of trained values."""
    return total(parameter_shapes(config))


# --- other projects' names ------------------------------------------------------------------------


def flavour_of(names: Iterable[str]) -> str:
    """Which of FLAVOURS a checkpoint with these names has."""
    return "hf"


def rules(config: T5Config, flavour: str = "hf") -> list[Rule]:
    """Rules between the names of a public checkpoint and ours."""
    result: list[Rule] = [Rename("shared.weight", "embed.weight")]
    for name in ("encoder", "decoder"):
        theirs, ours = f"{name}.block.{{i}}.layer.", f"{name}.blocks.{{i}}."
        first = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        result.append(Rename(first, f"{name}.position_bias.weight"))
        result.append(Drop(f"{name}.embed_tokens.weight", make=lambda w: w["embed.weight"]))
        halves = [("0.SelfAttention.", "0.layer_norm.", "attn")]
        if name == "decoder":
            halves.append(("1.EncDecAttention.", "1.layer_norm.", "cross"))
        for part, norm, own in halves:
            result.append(Rename(f"{theirs}{norm}weight", f"{ours}{own}_norm.weight"))
            for letter in "qkvo":
                pair = f"{theirs}{part}{letter}.weight", f"{ours}{own}.{letter}.weight"
                result.append(Rename(*pair))
        last = f"{theirs}{len(halves)}."
        result.append(Rename(last + "layer_norm.weight", ours + "ffn_norm.weight"))
        ups = {"wi_0": "gate", "wi_1": "up"} if config.gated else {"wi": "up"}
        for part, own in {**ups, "wo": "down"}.items():
            dense = f"{last}DenseReluDense.{part}.weight"
            result.append(Rename(dense, f"{ours}ffn.{own}.weight"))
        result.append(Rename(f"{name}.final_layer_norm.weight", f"{name}.final_norm.weight"))
    if config.tied:
        result.append(Drop("lm_head.weight", make=lambda w: w["embed.weight"]))
    else:
        result.append(Rename("lm_head.weight", "head.weight"))
    # Older files hold a table of the cross-attention that nothing used.
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return [*result, Drop(unused)]


_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "ffn_size",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
}
_OPTIONAL = {"num_decoder_layers", "relative_attention_max_distance", "layer_norm_epsilon"}
_FORMS = {"relu": False, "gated-gelu": True}


def from_original(theirs: Mapping[str, Any]) -> T5Config:
    """Reads a public `config.json`; keys that do not change the network are read over.

    Raises:
        ConfigError: A key is missing or has a value that this model does not have.
    """
    values = own_values(theirs, _KEYS, _OPTIONAL, "T5")
    form = theirs.get("feed_forward_proj", "relu")
    require(form in _FORMS, f"feed_forward_proj={form}, expected {' or '.join(_FORMS)}")
    values.setdefault("num_decoder_layers", values["num_layers"])
    tied = bool(theirs.get("tie_word_embeddings", True))
    return T5Config(**values, gated=_FORMS[form], tied=tied)


def fitted(config: T5Config, arrays: Mapping[str, Any]) -> T5Config:
    """The same with the form that the tensors of a checkpoint have.

    A gate tells v1.1's feed-forward; an output matrix that is no copy of the table is one of its
    own.
    """
    gated = any(name.endswith(".wi_0.weight") for name in arrays)
    head, table = arrays.get("lm_head.weight"), arrays.get("shared.weight")
    tied = head is None or np.array_equal(np.asarray(head), np.asarray(table))
    return replace(config, gated=gated, tied=tied)


def to_original(config: T5Config, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    return {
        **their_values(config, _KEYS),
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "tie_word_embeddings": config.tied,
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
