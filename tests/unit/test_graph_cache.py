"""Compiled graphs that are kept between runs; `bench.py compile` and `load` compare results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

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
