"""The rows of a run: prepared from its settings, and opened again after checking that they fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindplm.config import RunConfig, SourceConfig
from mindplm.data.fingerprint import check_fresh, is_fresh
from mindplm.data.kinds import RowKind
from mindplm.data.loader import RowStream
from mindplm.data.mixture import Entry, MixtureFile, read_mixture
from mindplm.data.preprocess import preprocess
from mindplm.data.records import REPORT, RowFolder, open_folder, read_manifest, verify_folder
from mindplm.data.segments import StreamPlan
from mindplm.data.sources import SourceReader
from mindplm.data.streaming import StreamedRows, StreamRows
from mindplm.errors import ConfigError
from mindplm.runtime import log

SPLITS = ("train", "valid")


def run(config: RunConfig, tokenizer: Any, kind: RowKind) -> dict[str, dict[str, Any]]:
    """Prepares the training and validation rows of a run; rows that fit already are left.

    Args:
        config: The run's settings.
        tokenizer: The family's.
        kind: What the family's rows are.

    Returns:
        The report of each part that was prepared now.
    """
    reports = {}
    for split in SPLITS:
        sources, folder = sources_of(config, split), _folder(config, split)
        if not sources:
            continue
        settings, data = kind.settings(config, split), config.data
        if data.stream and split == "train":
            names = stream_rows(config, tokenizer, kind).task_names
            log.info("%s: training rows are drawn while training: %s", folder, ", ".join(names))
            continue
        if is_fresh(folder, sources, tokenizer, settings, kind, data.dedup):
            rows = read_manifest(folder)["rows"]
            log.info("%s: %d rows are there and up to date", folder, rows)
            continue
        reports[split] = preprocess(
            sources,
            tokenizer,
            settings,
            folder,
            kind=kind,
            workers=data.workers,
            strict=data.strict,
            dedup=data.dedup,
        )
        _tell(folder, reports[split])
    return reports


def rows(
    config: RunConfig, tokenizer: Any, split: str, kind: RowKind, *, verify: bool = True
) -> RowFolder:
    """Opens the prepared rows of a run.

    Args:
        config: The run's settings.
        tokenizer: The family's.
        split: train or valid.
        kind: What the family's rows are.
        verify: Compare checksums; without, `verify` must do it before rows are read.

    Raises:
        DataError: They are not there, damaged, or made from something else.
    """
    sources, folder = sources_of(config, split), _folder(config, split)
    if not sources:
        raise ConfigError(f"data.{split} names no sources")
    settings = kind.settings(config, split)
    check_fresh(folder, sources, tokenizer, settings, kind, config.data.dedup)
    return open_folder(folder, kind=kind, verify=verify)


def verify(config: RunConfig) -> None:
    """Compares the prepared rows of a run with their checksums.

    Raises:
        DataError: A file is missing or damaged.
    """
    for split in SPLITS:
        if sources_of(config, split) and not (config.data.stream and split == "train"):
            verify_folder(_folder(config, split))


def train_rows(
    config: RunConfig, tokenizer: Any, kind: RowKind, *, verify: bool = True
) -> RowFolder | StreamRows:
    """The prepared training rows of a run, or the stream that they come from."""
    if config.data.stream:
        return stream_rows(config, tokenizer, kind)
    return rows(config, tokenizer, "train", kind, verify=verify)


def stream_rows(config: RunConfig, tokenizer: Any, kind: RowKind) -> StreamRows:
    """The stream of a run's training rows; its mixture file is watched.

    Raises:
        UserError: A source or the mixture cannot be used.
    """
    data = config.data
    if data.dedup:
        raise ConfigError("data.dedup=true needs prepared rows (data.stream=false)")
    mixture = MixtureFile(data.mixture) if data.mixture else None

    def sources() -> list[SourceConfig]:
        if mixture is not None:
            mixture.refresh()
        entries = mixture.entries if mixture is not None else []
        return kind.sources([*data.train, *map(source_of, entries)])

    for source in sources():
        SourceReader(source)
    plan = StreamPlan(
        Path(data.folder) / "stream",
        sources,
        tokenizer,
        kind.settings(config, "train"),
        kind,
        data.workers,
        data.strict,
    )
    return StreamRows(plan)


def open_stream(rows: RowFolder | StreamRows, **keys: Any) -> RowStream:
    """The training batches of one rank; the arguments are those of `RowStream`."""
    if isinstance(rows, StreamRows):
        return StreamedRows(rows, **keys)
    return RowStream(rows, **keys)


def report_of(config: RunConfig, split: str) -> dict[str, Any]:
    """What was counted when the rows of a split were prepared."""
    return json.loads((_folder(config, split) / REPORT).read_text(encoding="utf-8"))


def sources_of(config: RunConfig, split: str) -> list[SourceConfig]:
    """The sources of a split; to those of training the entries of the mixture file are added."""
    if split != "train":
        return config.data.valid
    entries = read_mixture(config.data.mixture) if config.data.mixture else []
    return [*config.data.train, *map(source_of, entries)]


def source_of(entry: Entry) -> SourceConfig:
    """An entry of a mixture as a source: its objects are records, or become records."""
    return SourceConfig(
        path=entry.path,
        name=entry.name,
        weight=entry.weight,
        tasks={"record": 1.0},
        task_name=entry.task_name,
        transforms=entry.transforms,
        incontext_weight=entry.incontext_weight,
    )


def _folder(config: RunConfig, split: str) -> Path:
    return Path(config.data.folder) / split


def _tell(folder: Path, report: dict[str, Any]) -> None:
    """Says what was read and written, and what could not be used."""
    log.info(
        "%s: %s documents, %s records, %s rows, %s tokens (%.0f %% full), %.0f s",
        folder,
        *(f"{report[name]:,}" for name in ("documents", "instances", "rows", "tokens")),
        100 * report["fill"],
        report["seconds"],
    )
    if report["duplicates"]:
        log.info("%s: %s documents were met before", folder, f"{report['duplicates']:,}")
    for name, number in report["notes"].items():
        log.info("%s: %s: %s", folder, name, f"{number:,}")
    for reason, entry in report["invalid"].items():
        log.warning("%s: %d not used: %s", folder, entry["count"], reason)
        for example in entry["first"]:
            log.warning("    %s", example)
