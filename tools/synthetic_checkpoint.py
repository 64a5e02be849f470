"""Writes a random checkpoint in the exact layout of a published CPM-Bee model.

    python tools/synthetic_checkpoint.py 1b bee-1b --flavour hf --shards 3

The files are written piece by piece, so little memory is needed. The vocabulary is made up: the
special entries, then numbered words; it has the size of the published one and nothing else of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindplm import families, files, tensors
from mindplm.errors import UserError
from mindplm.tensors import BF16, LazyArray
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer
from mindplm.weights.lazy import lazy_theirs
from mindplm.weights.torch_io import torch_chunks

DTYPES = {"float16": np.dtype("<f2"), "bfloat16": BF16, "float32": np.dtype("<f4")}


def vocabulary(size: int) -> CpmBeeTokenizer:
    """A made-up vocabulary with every printable ASCII character."""
    characters = [chr(code) for code in range(33, 127)]
    lines = [*SPECIALS, *characters][:size]
    words = (f"w{number}" for number in range(size - len(lines)))
    return CpmBeeTokenizer([*lines, *words])


def random_array(name: str, shape: tuple[int, ...], dtype: np.dtype, seed: int) -> LazyArray:
    """Values that depend on the name and the seed only; made anew whenever they are read."""

    def load() -> np.ndarray:
        source = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
        if len(shape) == 1:
            return (1 + 0.1 * source.standard_normal(shape, np.float32)).astype(np.float16)
        # A table of normal values is drawn from: many times faster than drawing each.
        table = (0.02 * source.standard_normal(4096, np.float32)).astype(np.float16)
        flat = np.empty(shape, np.float16)
        for row in flat.reshape(-1, shape[-1]):
            row[:] = table[source.integers(0, 4096, shape[-1], np.uint16)]
        return flat

    return LazyArray(shape, dtype, load)


def write(
    preset: str,
    out: str | Path,
    *,
    flavour: str = "openbmb",
    shards: int = 1,
    dtype: str = "float16",
    safetensors: bool = False,
    seed: int = 0,
    vocab_size: int = 0,
) -> Path:
    """Writes the folder: tensors, config.json and vocab.txt.

    Args:
        preset: Name of a preset of CPM-Bee.
        out: The folder.
        flavour: openbmb or hf.
        shards: About this many files, with an index if more than one.
        dtype: float16, bfloat16 or float32.
        safetensors: Not PyTorch's format.
        seed: Of the values.
        vocab_size: Entries; 0: as the preset, which must say it then.
    """
    out, entry = Path(out), families.family("cpm_bee")
    if preset not in entry.presets:
        raise UserError(f"preset {preset!r} is not known; accepted: {', '.join(entry.presets)}")
    model = entry.presets[preset]
    model = dataclasses.replace(model, vocab_size=vocab_size or model.vocab_size)
    ours = {
        name: random_array(name, shape, DTYPES[dtype], seed)
        for name, shape in entry.part("shapes")(model).items()
    }
    theirs = lazy_theirs(entry.part("rules")(model, flavour), ours)
    settings = entry.part("to_original")(model, flavour, half=dtype == "float16")
    total = tensors.num_bytes(theirs)
    limit = total if shards == 1 else -(-total // shards)
    with files.new_folder(out, total) as writer:
        writer.write("config.json", [json.dumps(settings, indent=2).encode()])
        for name, data in vocabulary(model.vocab_size).files().items():
            writer.write(name, [data])
        if safetensors:
            tensors.write_arrays(writer, "model", theirs, limit, reader="pt")
        else:
            _write_torch(writer, theirs, limit)
    return out


def _write_torch(writer: files.FolderWriter, theirs: Mapping[str, LazyArray], limit: int) -> None:
    parts = tensors.cut(theirs, limit)
    if len(parts) == 1:
        writer.write("pytorch_model.bin", torch_chunks(theirs, "pytorch_model"))
        return
    place = {}
    for number, part in enumerate(parts, 1):
        stem = f"pytorch_model-{number:05d}-of-{len(parts):05d}"
        writer.write(f"{stem}.bin", torch_chunks(part, stem))
        place.update(dict.fromkeys(part, f"{stem}.bin"))
    writer.write("pytorch_model.bin.index.json", [tensors.index_text(theirs, place)])


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", help="1b, 2b, 5b or 10b")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--flavour", choices=("openbmb", "hf"), default="openbmb")
    parser.add_argument("--shards", type=int, default=1, help="about so many files")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--safetensors", action="store_true", help="not PyTorch's format")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        write(
            args.preset,
            args.out,
            flavour=args.flavour,
            shards=args.shards,
            dtype=args.dtype,
            safetensors=args.safetensors,
            seed=args.seed,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
