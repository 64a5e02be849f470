"""The files of GPT-1's release: NumPy arrays end to end, see `mindplm.weights.flat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mindplm.files import FolderWriter
from mindplm.tensors import Array
from mindplm.weights import flat
from mindplm.weights.sources import FileLayout, Opened

_BLOCK = (
    "attn.c_attn.w",
    "attn.c_attn.b",
    "attn.c_proj.w",
    "attn.c_proj.b",
    "ln_1.g",
    "ln_1.b",
    "mlp.c_fc.w",
    "mlp.c_fc.b",
    "mlp.c_proj.w",
    "mlp.c_proj.b",
    "ln_2.g",
    "ln_2.b",
)


def names(num_layers: int) -> list[str]:
    """Names of the arrays in the order of the release: positions come first."""
    blocks = [f"h.{i}.{name}" for i in range(num_layers) for name in _BLOCK]
    return ["positions", "tokens", *blocks]


def open_release(path: Path) -> Opened | None:
    """Opens a folder of the release; its matrices lose their leading axis of length one."""
    if not (path / flat.SHAPES).is_file():
        return None
    arrays, files = flat.open_flat(path)
    found = flat.named(names((len(arrays) - 2) // len(_BLOCK)), arrays, path)
    for name, array in found.items():
        if len(array.shape) == 3 and array.shape[0] == 1:
            found[name] = flat.reshaped(array, array.shape[1:])
    return found, files


def write_release(writer: FolderWriter, arrays: Mapping[str, Array], _: int) -> None:
    """Writes the files of the release."""
    order = names((len(arrays) - 2) // len(_BLOCK))
    listed = dict(zip(order, flat.in_order(arrays, order)))
    for name, array in listed.items():
        if name.endswith(".w"):
            listed[name] = flat.reshaped(array, (1, *array.shape))
    flat.write_flat(writer, list(listed.values()))


LAYOUTS = {"openai": FileLayout(open_release, write_release)}
"""Flavour -> how its files are laid out, where that is a way of its own."""
