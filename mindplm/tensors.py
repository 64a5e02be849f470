"""Named arrays in safetensors files, in several above a size, with an index in HF's style.

Written array by array without a copy of the whole; the format is an 8-byte header length, a JSON
header and the bytes of the arrays. Source: the format description of the safetensors project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.files import FolderWriter

SHARD_BYTES = 4 << 30
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


def num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())


def write_arrays(
    writer: FolderWriter, stem: str, arrays: Mapping[str, np.ndarray], shard_bytes: int
) -> None:
    """Writes <stem>.safetensors, or numbered shards and <stem>.safetensors.index.json."""
    shards = _shards(arrays, shard_bytes)
    if len(shards) == 1:
        writer.write(f"{stem}.safetensors", _chunks(shards[0]))
        return
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        writer.write(name, _chunks(shard))
        place.update(dict.fromkeys(shard, Path(name).name))
    index = {"metadata": {"total_size": num_bytes(arrays)}, "weight_map": place}
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    writer.write(f"{stem}.safetensors.index.json", [text.encode()])


def _shards(arrays: Mapping[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """Cuts a set in its order; a shard holds at most `limit` bytes or one array."""
    shards: list[dict[str, np.ndarray]] = [{}]
    used = 0
    for name, array in arrays.items():
        if shards[-1] and used + array.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = array
        used += array.nbytes
    return shards


def _chunks(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of one safetensors file, part by part."""
    # Wide types first keeps every array aligned to its type, as readers that map files expect.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "np"}}
    end = 0
    for name in order:
        array = arrays[name]
        if array.dtype.name not in _CODES:
            raise CheckpointError(f"{name} has dtype {array.dtype}, which is not stored")
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        little = np.asarray(arrays[name], order="C")
        little = little.astype(little.dtype.newbyteorder("<"), copy=False)
        if little.size:
            yield little.reshape(-1).view(np.uint8).data


def read_arrays(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Raises:
        CheckpointError: A file is missing or cannot be read, or an index names what is not there.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return _read_file(folder / f"{stem}.safetensors")
    place: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    result: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(place.values()):
        result.update(_read_file(index.parent / name))
    if set(result) != set(place):
        odd = sorted(set(result) ^ set(place))
        raise CheckpointError(f"{index} and its files differ in {', '.join(odd[:8])}")
    return {name: result[name] for name in place}


def _read_file(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
