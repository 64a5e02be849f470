"""Compiled graphs that are kept between runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny_run

from mindplm import cli
from mindplm.graph_cache import GraphCache


def test_whatever_changes_a_graph_changes_its_folder() -> None:
    """MindSpore looks at none of this itself: it would run the old graph."""
    one, other = np.zeros((2, 3), np.int32), np.zeros((2, 4), np.int32)
    weight = SimpleNamespace(name="w", shape=(3,), dtype="float32")
    longer = SimpleNamespace(name="w", shape=(4,), dtype="float32")
    keys = [
        GraphCache("x", {"beta": 0.9}, [weight]).key(one),
        GraphCache("x", {"beta": 0.8}, [weight]).key(one),
        GraphCache("x", {"beta": 0.9}, [longer]).key(one),
        GraphCache("x", {"beta": 0.9}, [weight]).key(other),
        GraphCache("x", {"beta": 0.9}, [weight]).key(one.astype(np.float32)),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == GraphCache("y", {"beta": 0.9}, [weight]).key(one + 1)


def test_a_run_on_kept_graphs_is_the_same(tmp_path: Path) -> None:
    """The second start reads the graph of the step: it changes no kept file."""
    config = tiny_run.write_run(tmp_path, steps=3)
    cache = tmp_path / "graphs"
    common = ("model.num_layers=1", f"runtime.compile_cache={cache}", "train.keep_last=1")
    assert cli.main(["preprocess", "-c", str(config), *common]) == 0
    found, kept = [], []
    for name in ("first", "second"):
        output = tmp_path / name
        tiny_run.run("pretrain", config, f"train.output={output}", *common)
        found.append(tiny_run.numbers(output))
        kept.append({path: path.stat().st_mtime_ns for path in cache.rglob("*.mindir")})
    assert found[0] == found[1]
    assert len(kept[0]) == 1 and kept[0] == kept[1]
