"""BERT's sizes, presets, parameter shapes and the names that other projects use for them.

Source: the published configurations and checkpoints of BERT and Chinese BERT-wwm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindplm.models.shapes import Shape, block_shapes, total, with_bias
from mindplm.strict import at_least, between, require
from mindplm.weights.rules import Drop, Rename, Rule

SHARED_COLUMNS: tuple[str, ...] = ()
"""Columns of a batch that all its rows share: none."""


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT model."""

    vocab_size: int = 0
    """Rows of the word table; 0: those of the vocabulary file."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_heads: int = 12
    """Attention heads; they share the width."""
    ffn_size: int = 3072
    """Inner width of the feed-forward part."""
    num_layers: int = 12
    """Blocks."""
    max_len: int = 512
    """Rows of the position table: most tokens of a row."""
    num_types: int = 2
    """Rows of the table of token types."""
    eps: float = 1e-12
    """Added to the variance in the norms."""
    dropout: float = 0.0
    """Probability of dropping attention weights and the outputs of both parts."""
    init_std: float = 0.02
    """Standard deviation of the first weights."""

    def __post_init__(self) -> None:
        at_least("model", self, vocab_size=0, hidden_size=1, num_heads=1, ffn_size=1)
        at_least("model", self, num_layers=1, max_len=1, num_types=1)
        require(
            self.hidden_size % self.num_heads == 0,
            f"model.hidden_size={self.hidden_size}, expected a multiple of "
            f"model.num_heads={self.num_heads}",
        )
        require(self.eps > 0, f"model.eps={self.eps}, expected > 0")
        require(self.init_std > 0, f"model.init_std={self.init_std}, expected > 0")
        between("model", self, 0, 1, "dropout")


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
        prefix + "embed.weight": (config.vocab_size, hidden),
        prefix + "positions.weight": (config.max_len, hidden),
        prefix + "types.weight": (config.num_types, hidden),
        **with_bias(prefix + "embed_norm", (hidden,)),
    }
    for i in range(config.num_layers):
        shapes.update(block_shapes(f"{prefix}blocks.{i}.", hidden, config.ffn_size))
    return shapes


def parameter_shapes(config: BertConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    require(config.vocab_size > 0, "model.vocab_size=0, expected the size of a vocabulary")
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
    missing = [key for key in _KEYS if key not in theirs and key not in _OPTIONAL]
    require(not missing, f"missing key(s) {', '.join(missing)} in a BERT configuration")
    for key, accepted in (
        ("hidden_act", ("gelu",)),
        ("position_embedding_type", ("absolute",)),
        ("is_decoder", (False,)),
    ):
        value = theirs.get(key, accepted[0])
        require(value in accepted, f"{key}={value}, expected {accepted[0]}")
    return BertConfig(**{ours: theirs[key] for key, ours in _KEYS.items() if key in theirs})


def to_original(config: BertConfig, flavour: str = "hf", half: bool = False) -> dict[str, Any]:
    """Writes a configuration with their names."""
    return {
        **{key: getattr(config, ours) for key, ours in _KEYS.items()},
        "hidden_act": "gelu",
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "pad_token_id": 0,
    }
