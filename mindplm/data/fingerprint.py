"""What a folder of rows was made from, so that one made from something else is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mindplm.config import SourceConfig
from mindplm.data.bee_rows import ROWS
from mindplm.data.kinds import RowKind, RowSettings
from mindplm.data.records import FORMAT, open_folder, read_manifest
from mindplm.data.sources import find_files
from mindplm.errors import DataError
from mindplm.files import sha256_of
from mindplm.strict import to_plain

PREPARE_AGAIN = "prepare the data again"
_COMPARED = ("path", "weight", "tasks", "text_field", "extra_fields", "shape", "task_name",
             "transforms", "incontext_weight")  # fmt: skip


class Tokenizer(Protocol):
    """What a fingerprint needs of a tokenizer."""

    @property
    def fingerprint(self) -> str:
        """A text that changes with whatever the ids depend on."""


def fingerprint(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    settings: RowSettings,
    *,
    kind: RowKind = ROWS,
    dedup: bool = False,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the rows depend on.

    Args:
        sources: Where the texts come from.
        tokenizer: Its vocabulary counts.
        settings: Shape, repeat, seed.
        kind: What the rows are.
        dedup: Whether equal documents were left out.
        known: An earlier fingerprint: files of the same size and time need not be read, and
            sources whose files are gone are taken from it, since rows are enough to train.
    """
    sources = kind.sources(sources)
    old = {(s["name"], s["path"]): s for s in (known or {}).get("sources", [])}
    described = []
    for name, source in zip(source_names(sources), sources):
        before = old.get((name, source.path), {}).get("files", [])
        try:
            files = _files(source, before)
        except DataError:
            if not before:
                raise
            files = before
        described.append({**to_plain(source), "name": name, "files": files})
    plain = dataclasses.asdict(settings)
    own = {name: value for name, value in plain.items() if name != "shape"}
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "settings": {**settings.shape._asdict(), **own, "dedup": dedup},
        "sources": described,
    }


def check_fresh(
    folder: str | Path,
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    settings: RowSettings,
    kind: RowKind = ROWS,
    dedup: bool = False,
) -> None:
    """Checks that a folder of rows was made from this.

    Raises:
        DataError: It was made from something else; the message names what changed.
    """
    made = read_manifest(folder).get("fingerprint", {})
    now = fingerprint(sources, tokenizer, settings, kind=kind, dedup=dedup, known=made)
    changes = differences(made, now)
    if changes:
        raise DataError(f"{folder}: is stale: {'; '.join(changes)}; {PREPARE_AGAIN}")


def is_fresh(
    folder: str | Path,
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    settings: RowSettings,
    kind: RowKind = ROWS,
    dedup: bool = False,
) -> bool:
    """Whether a folder of rows is there, undamaged, and was made from this."""
    try:
        check_fresh(folder, sources, tokenizer, settings, kind, dedup)
        open_folder(folder, kind=kind)
    except DataError:
        return False
    return True


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two fingerprints, in words."""
    changes = []
    if old.get("tokenizer") != new["tokenizer"]:
        changes.append("it was made with another vocabulary")
    if old.get("format") != new["format"]:
        changes.append(f"format was {old.get('format')}, is {new['format']}")
    before, after = old.get("settings", {}), new["settings"]
    for key in after:
        if before.get(key) != after[key]:
            changes.append(f"{key} was {before.get(key)}, is {after[key]}")
    return changes + _source_differences(old.get("sources", []), new["sources"])


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """A name for each source, different from the others."""
    names: list[str] = []
    for source in sources:
        name = source.name or Path(source.path.split(":")[-1]).name.split(".")[0] or "source"
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}#{number}", number + 1
        names.append(unique)
    return names


def _source_differences(old: list[dict], new: list[dict]) -> list[str]:
    changes = []
    by_name = {source["name"]: source for source in old}
    for source in new:
        before = by_name.pop(source["name"], None)
        if before is None:
            changes.append(f"source {source['name']} was added")
            continue
        for key in _COMPARED:
            if before.get(key) != source[key]:
                what = f"{key} of source {source['name']}"
                changes.append(f"{what} was {before.get(key)}, is {source[key]}")
        if [f["sha256"] for f in before["files"]] != [f["sha256"] for f in source["files"]]:
            changes.append(f"the files of source {source['name']} changed")
    changes += [f"source {name} was removed" for name in by_name]
    if not changes and [s["name"] for s in old] != [s["name"] for s in new]:
        changes.append("the order of the sources changed")
    return changes


def _files(source: SourceConfig, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = {(f["name"], f["bytes"], f["mtime_ns"]): f["sha256"] for f in before}
    files = []
    paths = [path for file in find_files(source.path) for path in file.parts]
    if isinstance(source.transforms, str):
        paths.append(Path(source.transforms))
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        status = path.stat()
        key = (path.name, status.st_size, status.st_mtime_ns)
        sha256 = known.get(key) or sha256_of(path)
        files.append(dict(zip(("name", "bytes", "mtime_ns", "sha256"), (*key, sha256))))
    return files
