"""Ways to damage or forge the files of a checkpoint; each takes its folder and a random source."""

from __future__ import annotations

import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mindplm import files
from mindplm.tensors import LazyArray
from mindplm.weights.sources import open_one
from mindplm.weights.torch_io import torch_chunks

_TENSORS = (".bin", ".pt", ".safetensors")
_PATHS = (
    *("../secret", "../../secret", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "..\\secret"),
    *("C:secret", "/dev/zero", "config.json", "vocab.txt", "./model.safetensors", "~/x"),
)
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x", "3"),
    *([], {}, [1], {"a": 1}, [[]], [[True, False]], [[True]] * 3, "\ud800", 4096, 0.5),
)
_BOMB_BYTES = 64 << 20


def damage(folder: Path, rng: random.Random, mark: Path) -> str:
    """Damages something in the folder; returns what it did. `mark` is made by executed code."""
    ways: list[tuple[float, Callable[[Path, random.Random, Path], str]]] = [
        (3, _bytes), (3, _tensors), (2, _json), (1, _text), (2, _container), (2, _ours), (1, _gone),
    ]  # fmt: skip
    for _ in range(20):
        weights, functions = zip(*ways)
        done = rng.choices(functions, weights)[0](folder, rng, mark)
        if done:
            return done
    return "nothing"


def _pick(folder: Path, rng: random.Random, endings: tuple[str, ...] = ()) -> Path | None:
    found = sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix in (endings or (p.suffix,))
    )
    return rng.choice(found) if found else None


def _bytes(folder: Path, rng: random.Random, mark: Path) -> str:
    """Bits flipped, bytes lost, doubled or put in."""
    path = _pick(folder, rng, _TENSORS if rng.random() < 0.7 else ())
    data = bytearray(path.read_bytes() if path else b"")
    if not path or not data:
        return ""
    how = rng.choice(
        ["cut", "flip", "flip head", "flip tail", "overwrite", "insert", "drop", "zero"]
    )
    at = rng.randrange(len(data))
    if how == "cut":
        del data[at:]
    elif how.startswith("flip"):
        low, high = {"flip": (0, len(data)), "flip head": (0, min(400, len(data)))}.get(
            how, (max(0, len(data) - 800), len(data))
        )
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    elif how == "overwrite":
        data[at : at + 16] = rng.randbytes(16)
    elif how == "insert":
        data[at:at] = rng.randbytes(rng.randint(1, 64))
    elif how == "drop":
        del data[at : at + rng.randint(1, 64)]
    else:
        data[at : at + 64] = bytes(64)
    path.write_bytes(bytes(data))
    return f"{how} {path.name}"


def _tensors(folder: Path, rng: random.Random, mark: Path) -> str:
    """A well-formed file with other tensors in it."""
    path = _pick(folder, rng, _TENSORS)
    if path is None:
        return ""
    try:
        arrays = {name: np.array(array) for name, array in open_one(path).items()}
    except Exception:  # damaged before
        return ""
    name = rng.choice(sorted(arrays))
    how = rng.choice(["shape", "missing", "extra", "renamed", "dtype", "huge", "empty", "flat"])
    array = arrays.pop(name)
    if how == "shape":
        arrays[name] = np.resize(array, [n + rng.randint(0, 2) for n in array.shape] or [2])
    elif how == "extra":
        arrays |= {name: array, rng.choice(["extra", "lm_head.weight", "a.lora.lora_A", ""]): array}
    elif how == "renamed":
        number = rng.choice(["7", "01", "-1", "9" * 30, "٣", "0x1"])
        arrays[name.replace(".0.", f".{number}.") if ".0." in name else name + " "] = array
    elif how == "dtype":
        arrays[name] = array.astype(rng.choice(["<i4", "u1", "?", "<f8", "<i8"]))
    elif how == "huge":
        arrays[name] = np.full(array.shape, rng.choice([np.nan, np.inf, 3e38]), np.float32)
    elif how == "empty":
        arrays[name] = np.zeros((0, *array.shape), array.dtype)
    elif how == "flat":
        arrays[name] = array.reshape(-1)
    _write(path, arrays)
    _sign(folder, rng)
    return f"{how} tensor in {path.name}"


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if path.suffix == ".safetensors":
        path.write_bytes(safetensors.numpy.save({n: np.array(a) for n, a in arrays.items()}))
        return
    lazy = {n: LazyArray(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}  # type: ignore[misc]
    path.write_bytes(b"".join(torch_chunks(lazy)) if lazy else b"")


def _json(folder: Path, rng: random.Random, mark: Path) -> str:
    """A setting or a place in an index that is odd."""
    path = _pick(folder, rng, (".json",))
    try:
        tree = json.loads(path.read_bytes()) if path else None
    except ValueError:
        tree = None
    if path is None or not isinstance(tree, dict) or not tree:
        return ""
    inner = tree.get("weight_map", tree)
    if not isinstance(inner, dict) or not inner:
        return ""
    is_index = inner is not tree
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(sorted(inner))
        how = rng.random()
        if how < 0.2:
            del inner[key]
            if not inner:
                break
        elif how < 0.3:
            inner[rng.choice(["extra", "", "num_layers", "hidden_size"])] = rng.choice(_ODD)
        else:
            inner[key] = rng.choice(_PATHS if is_index and how < 0.8 else _ODD)
    path.write_text(json.dumps(tree), encoding="utf-8", errors="replace")
    return f"odd values in {path.name}"


def _text(folder: Path, rng: random.Random, mark: Path) -> str:
    """A vocabulary that does not fit."""
    path = _pick(folder, rng, (".txt",))
    if path is None:
        return ""
    lines = path.read_bytes().split(b"\n")
    how = rng.choice(["shorter", "doubled", "not UTF-8", "no specials", "carriage returns", "none"])
    made = {
        "shorter": lines[: len(lines) // 2],
        "doubled": [*lines, lines[0]],
        "not UTF-8": [*lines[:50], b"\xff\xfe", *lines[51:]],
        "no specials": lines[20:],
        "carriage returns": [line + b"\r" for line in lines],
        "none": [],
    }[how]
    path.write_bytes(b"\n".join(made))
    _sign(folder, rng)
    return f"{how} in {path.name}"


def _gone(folder: Path, rng: random.Random, mark: Path) -> str:
    """A file that is missing, or is a folder, or a link to somewhere else."""
    path = _pick(folder, rng)
    if path is None:
        return ""
    how = rng.choice(["missing", "folder", "link", "broken link", "loop"])
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.symlink_to({"link": "../secret", "broken link": "nowhere", "loop": path.name}[how])
    return f"{how}: {path.name}"


class _Call:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _container(folder: Path, rng: random.Random, mark: Path) -> str:
    """A zip file made to hurt: bombs, odd members, pickles that call something."""
    path = _pick(folder, rng, (".bin", ".pt"))
    if path is None or not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as file:
            members = {item.filename: file.read(item) for item in file.infolist()}
    except Exception:  # damaged before; this reader may fail in any way
        return ""
    pickled = next((name for name in members if name.endswith("data.pkl")), None)
    if pickled is None:
        return ""
    how = rng.choice(["bomb", "call", "call", "name", "twice", "claim", "deflated", "steps"])
    kind = zipfile.ZIP_DEFLATED if how in ("bomb", "deflated") else zipfile.ZIP_STORED
    if how == "bomb":
        members[pickled if rng.random() < 0.5 else f"{pickled[:-8]}data/0"] = bytes(_BOMB_BYTES)
    elif how == "call":
        members[pickled] = pickle.dumps(_payload(rng, mark), rng.randrange(6))
    elif how == "name":
        name = rng.choice(sorted(members))
        members[
            rng.choice(["../secret", "/outside", "x/../../y", name.upper(), "", "a" * 60_000])
        ] = members.pop(name)
    elif how == "steps":
        members[pickled] = (
            b"\x80\x02" + rng.choice([b"]", b"(", b"}", b")", b"N0"]) * 300_000 + b"."
        )
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, kind)
        if how == "twice":
            _again(file, pickled, members[pickled])
    if how == "claim":  # sizes and places in the directory that are not true
        whole = bytearray(path.read_bytes())
        entry = whole.index(b"PK\x01\x02")
        place = entry + rng.choice([20, 24, 42, 16])
        whole[place : place + 4] = struct.pack(
            "<I", rng.choice([0, 1, 1 << 20, 0xFFFFFFFE, 0xFFFFFFFF])
        )
        path.write_bytes(bytes(whole))
    return f"{how} in the container {path.name}"


def _again(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A second member of the same name, without zipfile's warning."""
    file.NameToInfo.pop(name, None)
    file.writestr(zipfile.ZipInfo(name), data)


def _payload(rng: random.Random, mark: Path) -> Any:
    """Objects whose unpickling would make `mark`, or load something."""
    import os
    import subprocess

    code = f"open({str(mark)!r}, 'w')"
    call = rng.choice(
        [
            _Call(os.system, f"touch {mark}"),
            _Call(eval, code),
            _Call(exec, code),
            _Call(open, str(mark), "w"),
            _Call(subprocess.Popen, ["touch", str(mark)]),
            _Call(__import__, "antigravity"),
            _Call(getattr, _Call(__import__, "os"), "system"),
            _Call(os.mkdir, str(mark)),
            _Call(np.load, str(mark)),
        ]
    )
    return rng.choice([call, {"w": call}, [call], {call.__class__.__name__: {"x": call}}])


def _ours(folder: Path, rng: random.Random, mark: Path) -> str:
    """The text files of a folder of ours, with checksums that are right for the forgery."""
    path = next((p for p in (folder / "model.yaml", folder / "adapter.yaml") if p.is_file()), None)
    if path is None:
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].split(":")[0]
    odd = rng.choice(
        [*map(str, _PATHS), *map(repr, _ODD), "&a [*a]", "!!python/name:os.system", "[[["]
    )
    lines[at] = rng.choice([f"{key}: {odd}", odd, "", f"{lines[at]}\n{lines[at]}"])
    path.write_text("\n".join(lines).replace("\0", ""), encoding="utf-8", errors="replace")
    _sign(folder, rng, always=True)
    return f"forged {path.name}"


def _sign(folder: Path, rng: random.Random, always: bool = False) -> None:
    """Makes the manifest right again, as an attacker would; sometimes with odd names in it."""
    if not (folder / files.MANIFEST).is_file() or (not always and rng.random() < 0.3):
        return
    listed = {
        p.name: {"bytes": p.stat().st_size, "sha256": files.sha256_of(p)}
        for p in sorted(folder.iterdir())
        if p.is_file() and p.name != files.MANIFEST
    }
    if rng.random() < 0.2 and listed:
        listed[rng.choice(_PATHS)] = rng.choice([*listed.values(), {}, None, 3])  # type: ignore[list-item]
    (folder / files.MANIFEST).write_text(files._manifest_text(listed))
