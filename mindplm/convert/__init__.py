"""Brings the original projects' checkpoints into our folder, and back; tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindplm import checkpoint, families, files, strict, tensors
from mindplm.convert.lora import are_adapters
from mindplm.convert.lora import convert_lora as convert_lora
from mindplm.convert.report import (
    Report,
    bar,
    check_request,
    compare,
    digest_of,
    dtype_name,
    report_of,
    typed,
    watched,
)
from mindplm.errors import CheckpointError, ConfigError
from mindplm.family import Family
from mindplm.runtime import log
from mindplm.tensors import LazyArray
from mindplm.tokenizers.bpe import WITH_MARKS
from mindplm.weights.lazy import lazy_ours, lazy_theirs
from mindplm.weights.rules import Drop, Rule, plan
from mindplm.weights.sources import FileLayout, open_tensors
from mindplm.weights.torch_io import torch_chunks

TABLE = "embed.weight"
"""What grows by a row for each mark that a vocabulary gets."""
_MAX_CONFIG = 4 << 20
_MAX_LAYERS = 4096


def convert(
    source: str | Path,
    out: str | Path,
    *,
    family: str = "cpm_bee",
    dtype: str = "keep",
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    words: str | None = None,
    back: str | None = None,
    verify: bool = False,
) -> Report:
    """Converts a checkpoint of the original project into ours, or ours back.

    Only one tensor is in memory at a time. The folder appears when all of it is written.

    Args:
        source: A .bin, .pt or .safetensors file, an index, or a folder with these; with `back` a
            checkpoint (or run folder) of ours.
        out: The folder to write; it must not exist, or be empty.
        family: Key of the family table; with `back` the checkpoint says it.
        dtype: float16, bfloat16, float32, or keep.
        config: The original's JSON file; default: config.json beside the tensors, else a preset
            whose sizes fit exactly.
        vocab: The vocabulary file; default: the family's usual name beside the tensors.
        words: How the tokenizer finds words where a family has several ways (bert: lower, cased or
            a regular expression; gpt1: rules, basic or exact, with +marks behind it to add the
            marks of fine-tuning and new rows for them); default: what its files say.
        back: A flavour of the family: hf (safetensors) or another (a file that torch.load reads,
            or what the original's release has), such as openbmb of cpm_bee; megatron:2 of cpm1
            writes two model-parallel shards.
        verify: Read all again and compare checksums of tensors.

    Raises:
        UserError: Something is missing, damaged, refused or does not fit; it is named.
    """
    source, out = Path(source), Path(out)
    check_request(out, dtype)
    if back is not None:
        entries = families.FAMILIES.values()
        known = list(dict.fromkeys(name for entry in entries for name in entry.part("flavours")))
        if back.partition(":")[0] not in known:
            raise ConfigError(f"back={back!r}, accepted: {', '.join(known)}")
        return _to_theirs(source, out, back, dtype, verify)
    given = (config, vocab, words)
    return _to_ours(source, out, families.family(family), family, dtype, given, verify)


# --- theirs to ours -------------------------------------------------------------------------------


def _to_ours(
    source: Path,
    out: Path,
    entry: Family,
    family: str,
    dtype: str,
    given: tuple[str | Path | None, str | Path | None, str | None],
    verify: bool,
) -> Report:
    if (source / files.MANIFEST).is_file() and (source / "model.yaml").is_file():
        raise CheckpointError(
            f"{source} is a checkpoint of this library already; to bring it back into another "
            f"project's form say which: {', '.join(entry.part('flavours'))} (--back)"
        )
    theirs, paths = open_tensors(source, _layouts(entry))
    if are_adapters(theirs):
        raise CheckpointError(
            f"{source} holds LoRA adapters, not a model; use convert_lora (the command line knows "
            "them by itself)"
        )
    flavour = entry.part("flavour_of")(theirs)
    folder = source if source.is_dir() else source.parent
    tokenizer = _tokenizer(entry, folder, given[1], given[2])
    model = _model(entry, family, theirs, flavour, (folder, given[0]), tokenizer.vocab_size)
    rules = entry.part("rules")(model, flavour)
    dropped = _dropped(rules, theirs)
    theirs = typed(theirs, dtype, paths, dropped)
    marks = tokenizer.vocab_size - model.vocab_size
    if marks < 0 or (marks and not (given[2] or "").endswith(WITH_MARKS)):
        raise CheckpointError(
            f"the vocabulary has {tokenizer.vocab_size:,} entries, the model "
            f"{model.vocab_size:,}; give the file that belongs to it (--vocab)"
        )
    shown = bar("convert")
    made = lazy_ours(rules, theirs, entry.part("shapes")(model))
    ours = watched(tensors.with_rows(made, TABLE, marks, model.init_std) if marks else made, shown)
    model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    start = time.perf_counter()
    with shown:
        checkpoint.write(
            out,
            family=family,
            model_config=strict.to_plain(model),
            weights=ours,
            tokenizer_files=tokenizer.files(),
        )
    seconds = time.perf_counter() - start
    report = report_of(family, flavour, out, paths, ours, dropped, seconds)
    if not verify:
        return report
    kept = checkpoint.read(out).lazy_weights(widen=False)
    kept = tensors.with_rows(kept, TABLE, -marks) if marks else kept
    count = _compared(theirs, lazy_theirs(rules, kept), dropped, out)
    return dataclasses.replace(report, verified=count)


def _compared(
    theirs: Mapping[str, LazyArray],
    again: Mapping[str, LazyArray],
    dropped: Sequence[str],
    out: Path,
) -> int:
    """Compares tensors with those that what was written gives; the number of them."""
    count = compare({n: a for n, a in theirs.items() if n not in dropped}, again, out)
    for name in dropped:
        if name in again and (
            theirs[name].shape != again[name].shape
            or digest_of(theirs[name]) != digest_of(again[name])
        ):
            log.warning("%s was dropped but differs from what it should be a copy of", name)
    return count


def _tokenizer(entry: Family, folder: Path, given: str | Path | None, words: str | None) -> Any:
    names = entry.vocab_files
    places = [Path(given)] if given is not None else [folder / name for name in names]
    found = [path for path in places if path.is_file()]
    if not found:
        raise CheckpointError(
            f"no vocabulary: {' or '.join(map(str, places))} is missing; name it (--vocab FILE)"
        )
    options = () if words is None else (words,)
    return entry.part("tokenizer").from_file(found[0], *options)


def _model(
    entry: Family,
    family: str,
    theirs: Mapping[str, LazyArray],
    flavour: str,
    place: tuple[Path, str | Path | None],
    vocab_size: int,
) -> Any:
    """The typed settings: from the file that was named, or config.json, or a preset that fits."""
    folder, given = place
    path = Path(given) if given is not None else folder / "config.json"
    if path.is_file():
        model = _read_config(path, entry, family)
        return entry.part("fitted")(model, theirs) if entry.fitted_ref else model
    if given is not None:
        raise ConfigError(f"{path}: no such file")
    for name, preset in entry.presets.items():
        if not preset.vocab_size:
            preset = dataclasses.replace(preset, vocab_size=vocab_size)
        try:
            lazy_ours(entry.part("rules")(preset, flavour), theirs, entry.part("shapes")(preset))
        except CheckpointError:
            continue
        log.info("%s is missing; the tensors are those of the preset %s", path, name)
        return preset
    raise CheckpointError(
        f"{path} is missing and the tensors fit none of the presets {', '.join(entry.presets)}; "
        "name the original's JSON file (--config FILE)"
    )


def _read_config(path: Path, entry: Family, family: str) -> Any:
    if path.stat().st_size > _MAX_CONFIG:
        raise ConfigError(f"{path} is too large for a configuration")
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {str(error)[:120]}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of names to values")
    for key, value in tree.items():
        if isinstance(value, (int, float)) and "layers" in key and not 0 < value <= _MAX_LAYERS:
            raise ConfigError(f"{path}: {key}={value}, expected 1 to {_MAX_LAYERS}")
    try:
        model = entry.part("from_original")(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise ConfigError(f"{path}: a value is of the wrong kind: {str(error)[:120]}") from None
    # Once more through the strict loader, which knows the declared type of every value.
    return families.model_from_dict(family, strict.to_plain(model), str(path))


def _dropped(rules: Sequence[Rule], theirs: Mapping[str, LazyArray]) -> tuple[str, ...]:
    moves = plan(rules, theirs, back=False)
    return tuple(name for move in moves if isinstance(move.rule, Drop) for name in move.sources)


# --- ours to theirs -------------------------------------------------------------------------------


def _layouts(entry: Family) -> list[FileLayout]:
    return list(entry.part("layouts").values()) if entry.layouts_ref else []


def _flavour_of(back: str, entry: Family) -> tuple[str, FileLayout | None, int]:
    """A flavour, its own layout of files if it has one, and the number of shards asked for."""
    flavour, _, number = back.partition(":")
    layout = entry.part("layouts").get(flavour) if entry.layouts_ref else None
    if flavour not in entry.part("flavours"):
        raise ConfigError(f"back={back!r}, accepted: {', '.join(entry.part('flavours'))}")
    if number and not (number.isdecimal() and int(number) > 0 and flavour == "megatron"):
        raise ConfigError(
            f"back={back!r}: a number of shards, at least 1, goes with megatron: megatron:2"
        )
    return flavour, layout, int(number or 0)


def _vocab_back(saved: checkpoint.Checkpoint, entry: Family, flavour: str) -> Any:
    """The vocabulary files that go beside the original's tensors."""
    if not entry.vocab_back_ref:
        return {name: (saved.folder / name).read_bytes() for name in saved.tokenizer_files}
    tokenizer = entry.part("tokenizer").from_file(saved.folder / saved.tokenizer_files[0])
    return entry.part("vocab_back")(tokenizer, flavour)


def _to_theirs(source: Path, out: Path, back: str, dtype: str, verify: bool) -> Report:
    saved = checkpoint.read(source)
    try:
        entry, model = families.family(saved.family), saved.model()
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{saved.folder / 'model.yaml'} is damaged") from None
    flavour, layout, ranks = _flavour_of(back, entry)
    rules = entry.part("rules")(model, flavour)
    kept = saved.lazy_weights(widen=False)
    shapes = {name: tuple(shape) for name, shape in entry.part("shapes")(model).items()}
    if {name: array.shape for name, array in kept.items()} != shapes:
        raise CheckpointError(f"{saved.folder}: its tensors are not those that model.yaml tells of")
    ours = typed(kept, dtype, [saved.folder])
    shown = bar("convert")
    theirs = lazy_theirs(rules, watched(ours, shown))
    kinds = {dtype_name(array.dtype) for array in ours.values()}
    start = time.perf_counter()
    with shown, files.new_folder(out, tensors.num_bytes(theirs) + (64 << 10)) as writer:
        for name, data in _vocab_back(saved, entry, flavour).items():
            writer.write(name, [data])
        settings = entry.part("to_original")(model, flavour, half=kinds == {"float16"})
        if flavour == "hf":
            settings["torch_dtype"] = min(kinds) if len(kinds) == 1 else "float32"
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        writer.write("config.json", [text.encode()])
        if layout is not None:
            layout.write(writer, theirs, ranks)
        elif flavour == "hf":
            tensors.write_arrays(writer, "model", theirs, tensors.SHARD_BYTES, reader="pt")
        else:
            writer.write("pytorch_model.bin", torch_chunks(theirs, "pytorch_model"))
    seconds = time.perf_counter() - start
    form = "weights*.safetensors" if saved.parts is None else "parts/*.safetensors"
    paths = sorted(saved.folder.glob(form))
    report = report_of(saved.family, flavour, out, paths, theirs, (), seconds)
    if not verify:
        return report
    files.verify(out)
    again = lazy_ours(rules, open_tensors(out, _layouts(entry))[0], shapes)
    return dataclasses.replace(report, verified=compare(ours, again, out))
