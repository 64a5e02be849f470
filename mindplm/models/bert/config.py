"""BERT's sizes, presets, parameter shapes and the names that other projects use for them.

Source: the published configurations and checkpoints of BERT and Chinese BERT-wwm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindplm.models.sizes import (
    PlainSizes,
    Shape,
    block_shapes,
    own_values,
    positive,
    table_shape,
    their_values,
    total,
    with_bias,
)
from mindplm.strict import at_least, require
from mindplm.weights.rules import Drop, Rename, Rule


@dataclass(frozen=True)
class BertConfig(PlainSizes):
    """Sizes of a BERT model."""

    num_types: int = 2
    """Rows of the table of token types."""
    eps: float = 1e-12
    """Added to the variance in the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model", self, num_types=1)
        positive(self, "eps")


_BASE = BertConfig(vocab_size=21128)
_LARGE = replace(_BASE, hidden_size=1024, num_heads=16, ffn_size=4096, num_layers=24)

PRESETS: dict[str, BertConfig] = {
    "tiny": BertConfig(hidden_size=128, num_heads=2, ffn_size=512, num_layers=2),
    "mini": BertConfig(hidden_size=256, num_heads=4, ffn_size=1024, num_layers=4),
    "chinese_rbt3": replace(_BASE, num_layers=3),
    "chinese_base": _BASE,
    "chinese_large": _LARGE,
    "english_base": replace(_BASE, vocab_size=30522),
    "english_large": replace(_LARGE, vocab_size=30522),
}


# --- parameters -----------------------------------------------------------------------------------


def encoder_shapes(config: Any, prefix: str = "encoder.") -> dict[str, Shape]:
    """Name and shape of the parameters of an encoder with these sizes."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {
        prefix + "embed.weight": table_shape(config),
        prefix + "positions.weight": (config.max_len, hidden),
        prefix + "types.weight": (config.num_types, hidden),
        **with_bias(prefix + "embed_norm", (hidden,)),
    }
    for i in range(config.num_layers):
        shapes.update(block_shapes(f"{prefix}blocks.{i}.", hidden, config.ffn_size))
    return shapes


def parameter_shapes(config: BertConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    hidden = config.hidden_size
    return {
        **encoder_shapes(config),
        **with_bias("head.dense", (hidden, hidden)),
        **with_bias("head.norm", (hidden,)),
        "head.bias": (config.vocab_size,),
    }


def num_parameters(config: BertConfig) -> int:
    """Number of trained values."""
    return total(parameter_shapes(config))


# --- other projects' names ------------------------------------------------------------------------

FLAVOURS = ("hf", "tf")
"""hf: names of the PyTorch checkpoints; tf: the same with gamma and beta in the norms."""
_LAYER = "encoder.layer.{i}."
_ENCODER = {
    "embeddings.word_embeddings.weight": "embed.weight",
    "embeddings.position_embeddings.weight": "positions.weight",
    "embeddings.token_type_embeddings.weight": "types.weight",
}
_ENCODER_PAIRS = {
    "embeddings.LayerNorm": "embed_norm",
    _LAYER + "attention.self.query": "blocks.{i}.attn.q",
    _LAYER + "attention.self.key": "blocks.{i}.attn.k",
    _LAYER + "attention.self.value": "blocks.{i}.attn.v",
    _LAYER + "attention.output.dense": "blocks.{i}.attn.o",
    _LAYER + "attention.output.LayerNorm": "blocks.{i}.attn_norm",
    _LAYER + "intermediate.dense": "blocks.{i}.ffn.up",
    _LAYER + "output.dense": "blocks.{i}.ffn.down",
    _LAYER + "output.LayerNorm": "blocks.{i}.ffn_norm",
}
_HEAD_PAIRS = {
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
}
_UNUSED = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight",
           "cls.seq_relationship.bias", "bert.embeddings.position_ids")  # fmt: skip


def flavour_of(names: Iterable[str]) -> str:
    """Which of FLAVOURS a checkpoint with these names has."""
    return "tf" if any(name.endswith("LayerNorm.gamma") for name in names) else "hf"


def encoder_rules(prefix: str, flavour: str = "hf") -> list[Rule]:
    """Rules of an encoder whose names begin with a prefix."""
    result: list[Rule] = [Rename(prefix + t, "encoder." + o) for t, o in _ENCODER.items()]
    pairs = {prefix + t: "encoder." + o for t, o in _ENCODER_PAIRS.items()}
    return result + pair_rules(pairs, flavour)


def pair_rules(pairs: Mapping[str, str], flavour: str = "hf") -> list[Rule]:
    """Rules of weights with biases, and of norms."""
    result: list[Rule] = []
    for theirs, ours in pairs.items():
        old = flavour == "tf" and theirs.endswith("LayerNorm")
        for name, of_theirs in (("weight", "gamma"), ("bias", "beta")):
            result.append(Rename(f"{theirs}.{of_theirs if old else name}", f"{ours}.{name}"))
    return result


def rules(config: BertConfig, flavour: str = "hf") -> list[Rule]:
    """Rules between the names of a public masked-LM checkpoint and ours."""
    return [
        *encoder_rules("bert.", flavour),
        *pair_rules(_HEAD_PAIRS, flavour),
        Rename("cls.predictions.bias", "head.bias"),
        Drop("cls.predictions.decoder.weight", make=lambda ours: ours["encoder.embed.weight"]),
        Drop("cls.predictions.decoder.bias", make=lambda ours: ours["head.bias"]),
        *(Drop(name) for name in _UNUSED),
    ]


_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "num_hidden_layers": "num_layers",
    "max_position_embeddings": "max_len",
    "type_vocab_size": "num_types",
    "layer_norm_eps": "eps",
    "initializer_range": "init_std",
}
_OPTIONAL = {"layer_norm_eps", "initializer_range", "type_vocab_size"}


def from_original(theirs: Mapping[str, Any]) -> BertConfig:
    """Reads a public `config.json`; keys that do not change the network are read over.

    Dropout of the original is not taken over: it is a setting of a run, not of the weights.

    Raises:
        ConfigError: A key is missing or has a value that this model does not have.
    """
    values = own_values(theirs, _KEYS, _OPTIONAL, "BERT")
    for key, accepted in (
        ("hidden_act", ("gelu",)),
        ("position_embedding_type", ("absolute",)),
        ("is_decoder", (False,)),
    ):
        value = theirs.get(key, accepted[0])
        require(value in accepted, f"{key}={value}, expected {accepted[0]}")
    return BertConfig(**values)


def to_original(config: BertConfig, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    return {
        **their_values(config, _KEYS),
        "hidden_act": "gelu",
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "pad_token_id": 0,
    }
