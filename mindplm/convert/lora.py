"""LoRA files of the original projects and of PEFT to our adapter folder and back, or merged."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

from mindplm import adapters, checkpoint, families, files, strict, tensors
from mindplm.adapters import DOWN, Adapter
from mindplm.config_lora import LoraConfig
from mindplm.convert import peft
from mindplm.convert.report import (
    FLAVOURS,
    Report,
    bar,
    check_request,
    compare,
    report_of,
    typed,
    watched,
)
from mindplm.errors import CheckpointError, ConfigError
from mindplm.weights.lazy import lazy_ours, lazy_theirs
from mindplm.weights.sources import open_tensors
from mindplm.weights.torch_io import torch_chunks

_MARK = ".lora.lora_"
LORA_FLAVOURS = (*FLAVOURS, peft.NAME)
_STEM = "delta"


def are_adapters(names: Iterable[str]) -> bool:
    """Whether the names of tensors are those of LoRA matrices, all of them."""
    listed = list(names)
    return bool(listed) and all(_MARK in name or peft.is_name(name) for name in listed)


def is_lora(source: str | Path) -> bool:
    """Whether a path holds LoRA adapters, ours, the original's or PEFT's."""
    path = Path(source)
    if adapters.is_adapter(path):
        return True
    if (path / files.MANIFEST).is_file() and (path / "model.yaml").is_file():
        return False
    try:
        return are_adapters(open_tensors(path)[0])
    except CheckpointError:
        return False


def convert_lora(
    source: str | Path,
    out: str | Path,
    *,
    family: str = "cpm_bee",
    alpha: float | None = None,
    dtype: str = "keep",
    back: str | None = None,
    base: str | Path | None = None,
    verify: bool = False,
) -> Report:
    """Converts LoRA adapters: others' into ours, ours back, or any into a merged model.

    Args:
        source: A .pt, .bin or .safetensors file with the original's names, a folder of PEFT, or
            an adapter folder.
        out: The folder to write; it must not exist, or be empty.
        family: Key of the family table; an adapter folder says it itself.
        alpha: What the original's adapters were trained with; their files do not say it. None:
            16, the original's default. PEFT's folders say it.
        dtype: float16, bfloat16, float32, or keep.
        back: openbmb (a file that torch.load reads), hf (safetensors) or peft (its folder): from
            ours to theirs.
        base: A checkpoint of ours to merge the adapters into; `out` is then a checkpoint.
        verify: Read all again and compare checksums of tensors.

    Raises:
        UserError: Something is missing, damaged, refused or does not fit; it is named.
    """
    source, out = Path(source), Path(out)
    check_request(out, dtype)
    if back is not None and back not in LORA_FLAVOURS:
        raise ConfigError(f"back={back!r}, accepted: {', '.join(LORA_FLAVOURS)}")
    if back is not None and base is not None:
        raise ConfigError("--back writes adapters and --base a merged model; choose one of them")
    if back is not None:
        return _to_theirs(adapters.read(source), out, back, dtype, verify)
    if adapters.is_adapter(source):
        if base is None:
            raise CheckpointError(
                f"{source} is an adapter of this library already; say what to do with it: merge "
                "it into a checkpoint (--base), or bring it back (--back "
                f"{'|'.join(LORA_FLAVOURS)})"
            )
        adapter, flavour, paths = adapters.read(source), "ours", [source]
    else:
        adapter, flavour, paths = _open_theirs(source, family, alpha, dtype)
    if base is not None:
        return _merged(adapter, Path(base), out, dtype, verify)
    shown, start = bar("convert"), time.perf_counter()
    with shown:
        ours = watched(adapter.arrays, shown)
        adapters.write(out, family=family, lora=adapter.lora, arrays=ours)
    seconds = time.perf_counter() - start
    report = report_of(family, flavour, out, paths, adapter.arrays, (), seconds)
    lora = adapter.lora
    whence = "" if flavour == peft.NAME else " (not in the file; --alpha)"
    note = f"rank {lora.rank}, alpha {lora.alpha:g}{whence}; on "
    report = dataclasses.replace(report, notes=(note + ", ".join(lora.targets),))
    if not verify:
        return report
    again = adapters.read(out).arrays
    return dataclasses.replace(report, verified=compare(adapter.arrays, again, out))


def _open_theirs(
    source: Path, family: str, alpha: float | None, dtype: str
) -> tuple[Adapter, str, list[Path]]:
    """Others' adapters with our names; flavour and files."""
    theirs, paths = open_tensors(source)
    if not are_adapters(theirs):
        odd = next((name for name in theirs if not are_adapters([name])), "nothing")
        raise CheckpointError(f"{source}: {odd[:200]} is no part of a LoRA adapter")
    said = None
    if any(map(peft.is_name, theirs)):
        flavour, said, theirs = peft.NAME, peft.read_config(source), peft.with_hf_paths(theirs)
        if said is not None and alpha not in (None, said.alpha):
            raise ConfigError(f"alpha={alpha:g}, but {source} says {said.alpha:g}; leave it out")
    else:
        flavour = "hf" if any(name.startswith(peft.HF) for name in theirs) else "openbmb"
    rules = families.family(family).part("lora_rules")(flavour)
    theirs = typed(theirs, dtype, paths)
    ours = lazy_ours(rules, theirs)
    downs = {name: array.shape for name, array in ours.items() if name.endswith(DOWN)}
    ranks = {shape[0] for shape in downs.values() if len(shape) == 2}
    if len(ranks) != 1:
        raise CheckpointError(f"{source}: adapters of one rank were expected, got {sorted(ranks)}")
    names = adapters.check(ours, min(ranks), str(source))
    targets = tuple(dict.fromkeys(name.split(".", 2)[-1] for name in names))
    lora = said or LoraConfig(alpha=LoraConfig.alpha if alpha is None else alpha)
    lora = dataclasses.replace(lora, rank=min(ranks), targets=targets)
    return Adapter(source, family, lora, ours), flavour, paths


def _to_theirs(adapter: Adapter, out: Path, flavour: str, dtype: str, verify: bool) -> Report:
    rules = families.family(adapter.family).part("lora_rules")(flavour)
    ours = typed(adapter.arrays, dtype, [adapter.folder])
    shown, start = bar("convert"), time.perf_counter()
    theirs = lazy_theirs(rules, watched(ours, shown))
    with shown, files.new_folder(out, tensors.num_bytes(theirs) + (64 << 10)) as writer:
        if flavour == peft.NAME:
            tensors.write_arrays(writer, peft.STEM, theirs, tensors.SHARD_BYTES, reader="pt")
            writer.write(peft.CONFIG, [peft.config_text(adapter, theirs)])
        elif flavour == "hf":
            tensors.write_arrays(writer, _STEM, theirs, tensors.SHARD_BYTES, reader="pt")
        else:
            writer.write(f"{_STEM}.pt", torch_chunks(theirs, _STEM))
    seconds = time.perf_counter() - start
    paths = [adapter.folder / "adapter.safetensors"]
    report = report_of(adapter.family, flavour, out, paths, theirs, (), seconds)
    note = f"rank {adapter.lora.rank}, alpha {adapter.lora.alpha:g}"
    if flavour != peft.NAME:
        note = f"loaders have to be told {note.replace(',', ' and')}"
    report = dataclasses.replace(report, notes=(note,))
    if not verify:
        return report
    files.verify(out)
    again = lazy_ours(rules, open_tensors(out)[0])
    return dataclasses.replace(report, verified=compare(ours, again, out))


def _merged(adapter: Adapter, base: Path, out: Path, dtype: str, verify: bool) -> Report:
    saved = checkpoint.read(base)
    if saved.family != adapter.family:
        raise CheckpointError(f"{base} is of {saved.family}, the adapters of {adapter.family}")
    kept = saved.lazy_weights(widen=False)
    merged = typed(adapters.merge(kept, adapter), dtype, [saved.folder])
    shown, start = bar("merge"), time.perf_counter()
    with shown:
        checkpoint.write(
            out,
            family=saved.family,
            model_config=strict.to_plain(saved.model()),
            weights=watched(merged, shown),
            tokenizer_files={n: (saved.folder / n).read_bytes() for n in saved.tokenizer_files},
            run=saved.run,
        )
    seconds = time.perf_counter() - start
    paths = [saved.folder, adapter.folder]
    report = report_of(saved.family, "ours, merged", out, paths, merged, (), seconds)
    lora = adapter.lora
    note = f"merged: {adapter.folder} (rank {lora.rank}, alpha {lora.alpha:g})"
    report = dataclasses.replace(report, notes=(note,))
    if not verify:
        return report
    again = checkpoint.read(out).lazy_weights(widen=False)
    return dataclasses.replace(report, verified=compare(merged, again, out))
