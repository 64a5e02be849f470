"""The table of the compile check, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mindplm import memory
from mindplm.errors import ConfigError
from mindplm.families import load_config

_KEY = ("size", "cards", "layout", "options", "type", "graph", "rank", "note")
_HEADS = {
    **{"size": "size", "graph": "graph", "cards": "cards", "layout": "layout"},
    **{"options": "with", "type": "type", "rank": "rank", "stage": "stage"},
    **{"seconds": "s", "peak_gb": "GB", "result": "result", "note": "note"},
}
_RIGHT = {"cards", "rank", "seconds", "peak_gb"}
BEGIN, END = "<!-- compile check: begin -->", "<!-- compile check: end -->"

MEMORY_BEGIN, MEMORY_END = "<!-- memory: begin -->", "<!-- memory: end -->"
_ROOM = 0.9

Result = Mapping[str, Any]


def key(result: Result) -> tuple[Any, ...]:
    """What makes two results the same row."""
    return tuple(result[name] for name in _KEY)


def markdown(results: Sequence[Result]) -> str:
    """The table and what it says in all."""
    counts = {
        word: sum(r["result"] == word for r in results)
        for word in ("compiled", "refused", "failed")
    }
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    lines = [
        f"{len(results)} rows: {told}. MindSpore {metadata.version('mindspore')}. s and GB are "
        "those of the compiling process on a CPU, not of a card.",
        "",
        "| " + " | ".join(_HEADS.values()) + " |",
        "|" + "|".join("---:" if name in _RIGHT else "---" for name in _HEADS) + "|",
    ]
    lines += ["| " + " | ".join(_cell(r, name) for name in _HEADS) + " |" for r in results]
    return "\n".join(lines) + "\n"


def _cell(result: Result, name: str) -> str:
    value = result.get(name, "")
    if name == "result" and result.get("why"):
        value = f"{value}: {result['why']}"
    if isinstance(value, float):
        return f"{value:.1f}"
    return " ".join(str(value).split()).replace("|", "/")


def fitting(path: str, cards: Sequence[int]) -> str:
    """Layouts of a run's model whose counted memory fits cards of 32 and of 64 GiB."""
    config = load_config(path)
    lines = [
        f"Counted by `mindplm.memory` for {Path(path).name}: {config.runtime.dtype}, rows of "
        f"{config.data.seq_len}, one row a pass, recompute; a tenth of a card is left for the "
        "framework. No card was there to measure.",
        "",
        "| cards | data | model | pipeline | optimizer shard | GiB | fits |",
        "|---:|---:|---:|---:|---|---:|---|",
    ]
    for count in cards:
        for made, peak in memory.fitting(config, count, int(_ROOM * 64 * memory.GIB)):
            way = made.parallel
            fits = "32 and 64" if peak <= _ROOM * 32 * memory.GIB else "64"
            shard = "yes" if way.optimizer_shard else "no"
            lines.append(
                f"| {count} | {way.data} | {way.model} | {way.pipeline} | {shard} | "
                f"{peak / memory.GIB:.1f} | {fits} |"
            )
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Results that were written before; none if there is no file."""
    place = path.with_suffix(".json")
    if not place.is_file():
        return []
    try:
        return list(json.loads(place.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{place}: no results of this program: {error}") from None


def write(path: Path, results: Sequence[Result]) -> None:
    """The JSON file beside the table, and the table between the marks of the markdown file.

    What stands outside the marks is left as it is.
    """
    path.with_suffix(".json").write_text(json.dumps(list(results), indent=0) + "\n")
    put(path, markdown(results), BEGIN, END)


def put(path: Path, text: str, begin: str, end: str) -> None:
    """Replaces what is between two marks of a file; adds them at its end if it has none."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, mark, rest = old.partition(begin)
    tail = rest.partition(end)[2] if mark else "\n"
    if not mark and head:
        head = head.rstrip("\n") + "\n\n"
    path.write_text(f"{head}{begin}\n{text}{end}{tail}", encoding="utf-8")
