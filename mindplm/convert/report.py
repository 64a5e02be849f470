"""What all conversions share: dtypes, the report, progress, comparison by checksum."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindplm import tensors
from mindplm.errors import CheckpointError, ConfigError
from mindplm.tensors import BF16, LazyArray

_WANTED: dict[str, np.dtype | None] = {
    "keep": None,
    "float16": np.dtype("<f2"),
    "bfloat16": BF16,
    "float32": np.dtype("<f4"),
}
DTYPES = tuple(_WANTED)
FLAVOURS = ("openbmb", "hf")
"""Names that files of adapters come with."""


def check_request(out: Path, dtype: str) -> None:
    """Raises for a dtype that is not known, and for a folder that holds something."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}, accepted: {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists; remove it or choose another folder")


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        family: Key of the family table.
        flavour: openbmb or hf: the names that the foreign side has.
        out: The folder that was written.
        files: The files of tensors that were read.
        tensors: How many were written.
        parameters: Values in them.
        bytes: Their bytes.
        dtypes: Dtype to number of tensors.
        dropped: Tensors that were read over, with the reason.
        seconds: Time of reading, casting and writing.
        verified: Tensors whose checksums were compared after reading all again; 0: not asked for.
        notes: Anything else that a user should know.
    """

    family: str
    flavour: str
    out: Path
    files: tuple[Path, ...]
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    dropped: tuple[str, ...]
    seconds: float
    verified: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rate = self.bytes / 1e6 / max(self.seconds, 1e-9)
        kinds = ", ".join(f"{name} ({count})" for name, count in self.dtypes.items())
        lines = [
            f"written: {self.out} ({self.family}, names of {self.flavour})",
            f"tensors: {self.tensors:,} with {self.parameters:,} parameters",
            f"dtype: {kinds}",
            f"bytes: {self.bytes:,} in {self.seconds:.1f} s, {rate:.0f} MB/s",
            f"dropped: {', '.join(self.dropped) or 'nothing'}",
            f"verified: {f'{self.verified:,} tensors' if self.verified else 'not asked for'}",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def typed(
    arrays: Mapping[str, LazyArray],
    dtype: str,
    paths: Sequence[Path],
    dropped: Sequence[str] = (),
) -> dict[str, LazyArray]:
    """The tensors with the dtype that was asked for. Copies stay one object.

    All must be floats but those that are not kept, and these stay as they are.
    """
    plain = {n for n, a in arrays.items() if a.dtype.kind == "f" or tensors.is_bf16(a.dtype)}
    odd = [name for name in arrays if name not in plain and name not in dropped]
    if odd:
        raise CheckpointError(
            f"{paths[0]}: {odd[0][:200]} holds {arrays[odd[0]].dtype}, expected floats"
        )
    wanted = _WANTED[dtype]
    made: dict[int, LazyArray] = {}
    for name in plain:
        array = arrays[name]
        target = array.dtype.newbyteorder("<") if wanted is None else wanted
        made.setdefault(id(array), array.astype(target))
    return {name: made.get(id(array), array) for name, array in arrays.items()}


def bar(title: str) -> tqdm:
    """A progress bar of bytes."""
    return tqdm(desc=title, unit="B", unit_scale=True, disable=None, total=0)


def watched(arrays: Mapping[str, LazyArray], shown: tqdm) -> dict[str, LazyArray]:
    """The same arrays; the bar moves when one is read."""

    def one(array: LazyArray) -> LazyArray:
        def load() -> np.ndarray:
            values = array.load()
            shown.update(array.nbytes)
            return values

        return LazyArray(array.shape, array.dtype, load)

    shown.total = tensors.num_bytes(arrays)
    return {name: one(array) for name, array in arrays.items()}


def dtype_name(dtype: np.dtype) -> str:
    """float16, bfloat16 ..."""
    return "bfloat16" if tensors.is_bf16(dtype) else dtype.name


def report_of(
    family: str,
    flavour: str,
    out: Path,
    paths: Sequence[Path],
    written: Mapping[str, LazyArray],
    dropped: tuple[str, ...],
    seconds: float,
) -> Report:
    """The report of what was written."""
    return Report(
        family=family,
        flavour=flavour,
        out=out,
        files=tuple(paths),
        tensors=len(written),
        parameters=sum(math.prod(array.shape) for array in written.values()),
        bytes=tensors.num_bytes(written),
        dtypes=Counter(dtype_name(array.dtype) for array in written.values()),
        dropped=dropped,
        seconds=seconds,
    )


def compare(before: Mapping[str, LazyArray], after: Mapping[str, LazyArray], out: Path) -> int:
    """Compares tensors by checksum; CheckpointError with the first that differs."""
    with bar("verify") as shown:
        for name, array in watched(before, shown).items():
            if name not in after or digest_of(array) != digest_of(after[name]):
                raise CheckpointError(f"{out}: {name} differs from the source; do not use it")
    return len(before)


def digest_of(array: LazyArray) -> tuple[Any, ...]:
    """Equal for equal arrays: dtype, shape and checksum of the values."""
    digest = hashlib.sha256()
    for piece in tensors.pieces(array):
        digest.update(piece.view(np.uint8).data)
    return dtype_name(array.dtype), array.shape, digest.hexdigest()
