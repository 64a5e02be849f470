"""The folder in which PEFT keeps LoRA adapters: adapter_config.json and adapter_model.safetensors.

Names of tensors are base_model.model.<path of the projection>.lora_A.weight and .lora_B.weight,
where the paths are those of the HF port of the family.

Source: PEFT's documentation of its checkpoint format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mindplm.adapters import Adapter
from mindplm.config_lora import LoraConfig
from mindplm.errors import CheckpointError, ConfigError
from mindplm.tensors import LazyArray

NAME = "peft"
CONFIG, STEM = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
HF = "cpmbee."
"""What the HF port puts before the paths of the original's model."""
_ENDS = (".lora_A.weight", ".lora_B.weight")
_OTHER = {
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
"""What other kinds of adapters say that PEFT writes in the same form; ours have these values."""


def is_name(name: str) -> bool:
    """Whether a tensor's name is that of an adapter's matrix."""
    return name.startswith(PREFIX) and name.endswith(_ENDS)


def with_hf_paths(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The tensors with the paths of the HF port, if they are those of the original's own model."""
    if any(name.startswith(PREFIX + HF) for name in arrays):
        return dict(arrays)
    return {PREFIX + HF + name[len(PREFIX) :]: array for name, array in arrays.items()}


def read_config(path: Path) -> LoraConfig | None:
    """Settings of the adapters at a path, a folder or a file in it; None if they are not there.

    `targets` are those of `LoraConfig`, not the file's.

    Raises:
        CheckpointError: The file is damaged, or its adapters are of another kind than ours.
    """
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree.get("peft_type") != "LORA":
            raise CheckpointError(f"{file}: peft_type is {tree.get('peft_type')!r}, expected LORA")
        rank, alpha, dropout = tree["r"], tree["lora_alpha"], tree.get("lora_dropout", 0.0)
        for key, wanted in _OTHER.items():
            if (tree.get(key) or wanted) != wanted:
                raise CheckpointError(f"{file}: {key}={tree[key]!r} is not supported")
        return LoraConfig(rank=int(rank), alpha=float(alpha), dropout=float(dropout))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, (CheckpointError, ConfigError)):
            raise
        raise CheckpointError(f"{file} is damaged: {error!r}") from None


def config_text(adapter: Adapter, names: Iterable[str]) -> bytes:
    """Contents of adapter_config.json for tensors of these names."""
    ends = {name[len(PREFIX) :].rpartition(".lora_")[0] for name in names}
    tree: Mapping[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.folder or None,
        "inference_mode": True,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": adapter.lora.dropout,
        "target_modules": sorted(ends),
        "init_lora_weights": True,
        **_OTHER,
    }
    return (json.dumps(tree, ensure_ascii=False, indent=2) + "\n").encode()
