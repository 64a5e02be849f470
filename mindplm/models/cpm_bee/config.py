"""CPM-Bee's sizes, presets, parameter shapes and the names that other projects use for them.

Source: the published configurations and checkpoints of the OpenBMB CPM-Bee project.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mindplm.models.sizes import Shape, Sizes, has_prefix, positive, table_shape, total
from mindplm.strict import at_least, require
from mindplm.weights.rules import Drop, Rename, Rule

Flavour = Literal["openbmb", "hf"]
FLAVOURS = ("openbmb", "hf")
"""OpenBMB's own names, or those of the HF port."""
SHARED_COLUMNS = ("ext_ids", "ext_sub", "num_ext")
"""Columns of a batch that all its rows share: the extension table."""


@dataclass(frozen=True)
class CpmBeeConfig(Sizes):
    """Sizes of a CPM-Bee model."""

    UNDROPPED: ClassVar[tuple[str, ...]] = ()

    hidden_size: int = 4096
    """Width of the residual stream; even."""
    num_heads: int = 32
    head_dim: int = 128
    """Width of a head; num_heads x head_dim need not be hidden_size."""
    ffn_size: int = 10240
    num_layers: int = 48
    num_distance_buckets: int = 256
    """Rows of the bias table for distances inside a segment; a multiple of 4."""
    num_segment_buckets: int = 256
    """Rows of the bias table for the ways between segments; at least max_depth squared."""
    max_distance: int = 2048
    """Distances from here on share the last bucket."""
    eps: float = 1e-6
    """Added to the mean square in the norms."""
    no_attention: tuple[int, ...] = ()
    """Numbers of the layers without attention."""
    no_ffn: tuple[int, ...] = ()
    """Numbers of the layers without feed-forward part."""
    max_depth: int = 8
    """Steps up or down between two segments are counted up to this number, exclusive."""
    max_len: int = 2048
    """Most tokens of a row."""
    init_std: float = 0.02
    """Standard deviation of the first embedding."""
    residual_init_std: float = 1.0
    """Standard deviation of the first output matrices of both parts of a block; smaller than 1
    starts nearer to the identity. All other matrices start with 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model", self, head_dim=1, max_depth=2, max_len=1)
        require(self.hidden_size % 2 == 0, f"model.hidden_size={self.hidden_size}, expected even")
        buckets = self.num_distance_buckets
        require(
            buckets >= 4 and buckets % 4 == 0,
            f"model.num_distance_buckets={buckets}, expected a multiple of 4",
        )
        require(
            self.max_distance > buckets // 4,
            f"model.max_distance={self.max_distance}, expected more than "
            f"model.num_distance_buckets / 4 = {buckets // 4}",
        )
        require(
            self.num_segment_buckets >= self.max_depth**2,
            f"model.num_segment_buckets={self.num_segment_buckets}, expected at least "
            f"model.max_depth squared = {self.max_depth**2}",
        )
        positive(self, "eps", "init_std", "residual_init_std")
        for name in ("no_attention", "no_ffn"):
            layers = getattr(self, name)
            fits = all(0 <= i < self.num_layers for i in layers) and len(set(layers)) == len(layers)
            require(
                fits,
                f"model.{name}={list(layers)}, expected different layer numbers from 0 to "
                f"model.num_layers - 1 = {self.num_layers - 1}",
            )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have attention."""
        return tuple(i for i in range(self.num_layers) if i not in self.no_attention)

    @property
    def ffn_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that have a feed-forward part."""
        return tuple(i for i in range(self.num_layers) if i not in self.no_ffn)


# --- presets --------------------------------------------------------------------------------------

_KEPT_ATTENTION = (0, 2, 8, 9, 14, 16, 17, 20, 21, 24, 26, 29, 31, 33, 39, 41, 44, 46, 47)
_KEPT_FFN = (
    *(0, 1, 2, 3, 5, 8, 9, 11, 12, 14, 16, 18, 20, 24, 26, 29, 31, 33, 35, 39, 41, 44, 46, 47),
)
_10B = CpmBeeConfig(vocab_size=86583)
_5B = replace(
    _10B,
    no_attention=tuple(i for i in range(48) if i not in _KEPT_ATTENTION),
    no_ffn=tuple(i for i in range(48) if i not in _KEPT_FFN),
)

PRESETS: dict[str, CpmBeeConfig] = {
    "tiny": CpmBeeConfig(
        hidden_size=128,
        num_heads=4,
        head_dim=32,
        ffn_size=384,
        num_layers=2,
        num_segment_buckets=64,
        max_distance=512,
        init_std=1.0,
        residual_init_std=0.1,
    ),
    "small": CpmBeeConfig(hidden_size=768, num_heads=12, head_dim=64, ffn_size=2048, num_layers=12),
    "1b": replace(_5B, head_dim=40, ffn_size=1024),
    "2b": replace(_5B, head_dim=64, ffn_size=5120),
    "5b": _5B,
    "10b": _10B,
}


# --- parameters -----------------------------------------------------------------------------------


def parameter_shapes(config: CpmBeeConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, in the order of the forward pass."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    buckets = config.num_distance_buckets + config.num_segment_buckets
    shapes: dict[str, Shape] = {
        "embed.weight": table_shape(config),
        "position_bias.weight": (buckets, config.num_heads),
    }
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        if i not in config.no_attention:
            shapes[f"{block}.attn_norm.weight"] = (hidden,)
            for name in "qkv":
                shapes[f"{block}.attn.{name}.weight"] = (inner, hidden)
            shapes[f"{block}.attn.o.weight"] = (hidden, inner)
        if i not in config.no_ffn:
            shapes[f"{block}.ffn_norm.weight"] = (hidden,)
            shapes[f"{block}.ffn.gate.weight"] = (config.ffn_size, hidden)
            shapes[f"{block}.ffn.up.weight"] = (config.ffn_size, hidden)
            shapes[f"{block}.ffn.down.weight"] = (hidden, config.ffn_size)
    shapes["final_norm.weight"] = (hidden,)
    return shapes


def num_parameters(config: CpmBeeConfig) -> int:
    """Number of trained values."""
    return total(parameter_shapes(config))


def step_flops(config: CpmBeeConfig, *, tokens: int, targets: int, seq_len: int) -> float:
    """Operations of the matrix products of a training step: forward, and twice that backward.

    Args:
        config: The model's sizes.
        tokens: Real tokens of the batch.
        targets: Predicted positions; only these are projected onto the vocabulary.
        seq_len: Keys that each token is compared with.
    """
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    attention = 4 * hidden * inner + 2 * inner * seq_len
    per_token = len(config.attention_layers) * attention
    per_token += len(config.ffn_layers) * 3 * hidden * config.ffn_size
    return 6.0 * (tokens * per_token + targets * hidden * config.vocab_size)


# --- other projects' names ------------------------------------------------------------------------

_WEIGHT = ".weight"
_BLOCK = "encoder.layers.{i}."
_NAMES = {
    "input_embedding.weight": "embed.weight",
    "position_bias.relative_attention_bias": "position_bias.weight",
    _BLOCK + "self_att.layernorm_before_attention.weight": "blocks.{i}.attn_norm.weight",
    _BLOCK + "self_att.self_attention.project_q.weight": "blocks.{i}.attn.q.weight",
    _BLOCK + "self_att.self_attention.project_k.weight": "blocks.{i}.attn.k.weight",
    _BLOCK + "self_att.self_attention.project_v.weight": "blocks.{i}.attn.v.weight",
    _BLOCK + "self_att.self_attention.attention_out.weight": "blocks.{i}.attn.o.weight",
    _BLOCK + "ffn.layernorm_before_ffn.weight": "blocks.{i}.ffn_norm.weight",
    _BLOCK + "ffn.ffn.w_in.w_0.weight": "blocks.{i}.ffn.gate.weight",
    _BLOCK + "ffn.ffn.w_in.w_1.weight": "blocks.{i}.ffn.up.weight",
    _BLOCK + "ffn.ffn.w_out.weight": "blocks.{i}.ffn.down.weight",
    "encoder.output_layernorm.weight": "final_norm.weight",
}


def rules(config: CpmBeeConfig, flavour: Flavour = "openbmb") -> list[Rule]:
    """Rules between the names of an OpenBMB (or HF) checkpoint and ours.

    Removed parts of a pruned model have no tensors on either side, so the same rules fit all.
    """
    prefix = "cpmbee." if flavour == "hf" else ""
    result: list[Rule] = [Rename(prefix + theirs, ours) for theirs, ours in _NAMES.items()]
    if flavour == "hf":
        result.append(Drop("lm_head.weight", make=lambda ours: ours["embed.weight"]))
    return result


def flavour_of(names: Iterable[str]) -> Flavour:
    """Which of FLAVOURS a checkpoint with these names has."""
    return "hf" if has_prefix(names, "cpmbee.", "lm_head.") else "openbmb"


_LORA_NAMES = {
    "openbmb": "{}.lora.lora_{}",
    "hf": "cpmbee.{}.lora.lora_{}",
    "peft": "base_model.model.cpmbee.{}.lora_{}.weight",
}


def lora_rules(flavour: str = "openbmb") -> list[Rule]:
    """Rules between the names of LoRA matrices and ours, for every projection.

    Args:
        flavour: openbmb or hf, the original's files; peft, the layout of that library.
    """
    form = _LORA_NAMES[flavour]
    projections = {
        theirs[: -len(_WEIGHT)]: ours[: -len(_WEIGHT)]
        for theirs, ours in _NAMES.items()
        if ".attn." in ours or ".ffn." in ours
    }
    return [
        Rename(form.format(theirs, end), f"{ours}.lora_{end.lower()}")
        for theirs, ours in projections.items()
        for end in "AB"
    ]


def lora_gain(num_in: int) -> float:
    """What an adapter's branch is multiplied by, beside alpha / rank.

    Every product of this network is divided by the root of its input width, and our cells divide
    the input; an adapter is defined on the input that is not divided.
    """
    return math.sqrt(num_in)


_KEYS: dict[Flavour, dict[str, str]] = {
    "openbmb": {
        "vocab_size": "vocab_size",
        "dim_model": "hidden_size",
        "num_heads": "num_heads",
        "dim_head": "head_dim",
        "dim_ff": "ffn_size",
        "num_layers": "num_layers",
        "dropout_p": "dropout",
        "position_bias_num_buckets": "num_distance_buckets",
        "position_bias_num_segment_buckets": "num_segment_buckets",
        "position_bias_max_distance": "max_distance",
        "eps": "eps",
    },
}
_HF_NAMES = {
    "dim_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
}
_KEYS["hf"] = {_HF_NAMES.get(key, key): ours for key, ours in _KEYS["openbmb"].items()}
_KEYS["hf"]["init_std"] = "init_std"
_OPTIONAL = {"dropout_p", "eps", "init_std"}
# Keys that say nothing about the sizes: how to store, how to load, how to generate.
_NEUTRAL = {"half", "torch_dtype", "dtype", "use_cache", "architectures", "auto_map", "model_type"}
_NEUTRAL |= {"transformers_version", "tie_word_embeddings", "_name_or_path", "vocab_file"}
_NEUTRAL |= {"bos_token_id", "eos_token_id", "pad_token_id", "length_penalty"}
_NEUTRAL |= {"_from_model_config", "_commit_hash", "_attn_implementation", "attn_implementation"}
_NEUTRAL |= {"output_attentions", "output_hidden_states", "return_dict", "torchscript"}
_NEUTRAL |= {"is_decoder", "is_encoder_decoder", "tokenizer_class", "initializer_range"}
_DISTANCE_SCALE = 16


def from_openbmb(theirs: Mapping[str, Any], max_depth: int = 8) -> CpmBeeConfig:
    """Reads an OpenBMB configuration, or that of the HF flavour (told by `hidden_size`).

    Args:
        theirs: The contents of their JSON file.
        max_depth: Not in their file; 8 in all their programs.

    Raises:
        ConfigError: A key is missing, unknown or has a value that this model does not have.
    """
    flavour: Flavour = "hf" if "hidden_size" in theirs else "openbmb"
    keys = _KEYS[flavour]
    accepted = {*keys, "mask_modules", "distance_scale", *_NEUTRAL}
    unknown = [key for key in theirs if key not in accepted]
    require(not unknown, f"unknown key(s) {', '.join(unknown)} in a CPM-Bee configuration")
    missing = [key for key in keys if key not in theirs and key not in _OPTIONAL]
    require(not missing, f"missing key(s) {', '.join(missing)} in a CPM-Bee configuration")
    scale = theirs.get("distance_scale", _DISTANCE_SCALE)
    require(scale == _DISTANCE_SCALE, f"distance_scale={scale}, expected {_DISTANCE_SCALE}")
    values = {ours: theirs[key] for key, ours in keys.items() if key in theirs}
    if values.get("dropout") is None:
        values["dropout"] = 0.0
    num_layers = values["num_layers"]
    pairs = theirs.get("mask_modules")
    if pairs is None:
        pairs = [(False, False)] * num_layers
    require(
        len(pairs) == num_layers and all(len(pair) == 2 for pair in pairs),
        f"mask_modules must hold {num_layers} pairs, one for each layer",
    )
    values["no_attention"] = tuple(i for i, pair in enumerate(pairs) if pair[0])
    values["no_ffn"] = tuple(i for i, pair in enumerate(pairs) if pair[1])
    return CpmBeeConfig(**values, max_depth=max_depth)


def to_openbmb(
    config: CpmBeeConfig, flavour: Flavour = "openbmb", half: bool = True
) -> dict[str, Any]:
    """Writes a configuration with their names; `half` says how the weights are stored."""
    result = {key: getattr(config, ours) for key, ours in _KEYS[flavour].items()}
    result["half"] = half
    result["mask_modules"] = None
    if config.no_attention or config.no_ffn:
        result["mask_modules"] = [
            [i in config.no_attention, i in config.no_ffn] for i in range(config.num_layers)
        ]
    if flavour == "hf":
        result["distance_scale"] = _DISTANCE_SCALE
        result["use_cache"] = True
        result["model_type"] = "cpmbee"
        result["architectures"] = ["CpmBeeForCausalLM"]
    return result
