"""Compiles rows one after the other, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascend_check.rows import Row, stage_layers
from mindplm.errors import ConfigError
from mindplm.families import family
from mindplm.shards import held_shapes

COMPILED, REFUSED, FAILED = "compiled", "refused", "failed"
_ROOT = Path(__file__).resolve().parents[2]
_LAUNCHER = ("MS_", "RANK_", "DEVICE_ID")


def describe(row: Row) -> dict[str, Any]:
    """The columns that name a row."""
    layout = row.layout
    return {
        "size": row.name,
        "cards": layout.cards,
        "layout": layout.name,
        "options": layout.options,
        "type": layout.dtype,
        "graph": row.graph,
        "rank": row.rank,
        "note": row.note,
    }


def compile_row(row: Row, environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """One line of the table: what `describe` gives, seconds, peak_gb, result and why."""
    found: dict[str, Any] = {**describe(row), "seconds": 0.0, "peak_gb": 0.0}
    try:
        config = row.config()
    except ConfigError as error:
        return {**found, "result": REFUSED, "why": str(error)}
    layers = stage_layers(config)
    found["stage"] = f"{row.stage + 1}/{len(layers)}: {layers[row.stage]} layers"
    answer = _process(row, environment, timeout_s)
    found.update({key: answer[key] for key in ("seconds", "peak_gb") if key in answer})
    if "error" in answer:
        return {**found, "result": FAILED, "why": answer["error"]}
    wrong = _wrong_slices(row, config, answer.get("slices", {}))
    if wrong:
        return {**found, "result": FAILED, "why": f"not cut as planned: {wrong}"}
    return {**found, "result": COMPILED, "why": ""}


def _process(row: Row, environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER)}
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tools"), inherited.get("PYTHONPATH", "")])
    env = {
        **inherited,
        **environment,
        "PYTHONPATH": path,
        "RANK_ID": str(row.rank),
        "RANK_SIZE": str(row.layout.cards),
        "GLOG_v": "4",
    }
    asked = json.dumps({"config": row.tree, "graph": row.graph})
    with tempfile.TemporaryDirectory() as folder:  # the compiler leaves files where it is started
        try:
            done = subprocess.run(
                [sys.executable, "-m", "ascend_check.compile_one"],
                input=asked,
                cwd=folder,
                env={**env, "MS_OM_PATH": folder},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not finished after {timeout_s:.0f} s", "seconds": timeout_s}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    text = " ".join(done.stderr.split())[-400:]
    return {"error": f"the process ended with status {done.returncode}: {text}"}


def _wrong_slices(row: Row, config: Any, slices: Mapping[str, list[int]]) -> str:
    """The first weight of which the compiler gives this device another part than our plan."""
    parts = family(config.family)
    if not slices:
        return ""
    planned = held_shapes(parts.part("plan"), config, parts.part("shapes"), row.rank)
    for name, shape in slices.items():
        if name in planned and list(planned[name]) != shape:
            return f"{name} is {shape}, the plan says {list(planned[name])}"
    absent = [name for name in planned if name not in slices]
    return f"{absent[0]} is not on this device" if absent else ""
