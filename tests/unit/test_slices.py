"""Weights are cut for the processes of a layout and put together again, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from mindplm.errors import CheckpointError
from mindplm.families import config_from_dict, family
from mindplm.slices import Cutter, cut, unify, unify_all

LAYOUTS = [
    {},
    {"data": 2},
    {"data": 2, "optimizer_shard": True},
    {"model": 2},
    {"data": 2, "model": 4, "optimizer_shard": True},
    {"data": 2, "model": 2, "pipeline": 2, "micro_batches": 2, "optimizer_shard": True},
    {"data": 4, "pipeline": 3, "micro_batches": 4},
]


def cutter(parallel: dict) -> Cutter:
    tree = {
        "family": "cpm_bee",
        "model": {
            **{"vocab_size": 1001, "hidden_size": 64, "num_heads": 8, "head_dim": 16},
            **{"ffn_size": 512, "num_layers": 3, "no_attention": [1], "no_ffn": [2]},
        },
        "train": {"steps": 1, "output": "runs/x", "batch_size": 16},
        "data": {"train": [{"path": "a.txt"}], "folder": "f", "seq_len": 64},
        "parallel": parallel,
    }
    parts = family("cpm_bee")
    return Cutter(parts.part("plan"), config_from_dict(tree), parts.part("shapes"))


def weights(made: Cutter) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = made.shapes(made.config.model)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def held(made: Cutter, arrays: dict[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    ranks = range(made.config.parallel.devices)
    return {r: {n: cut(arrays[n], p) for n, p in made.places(r).items()} for r in ranks}


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_parts_make_the_whole_again(parallel) -> None:
    made = cutter(parallel)
    arrays = weights(made)
    parts = held(made, arrays)
    again = unify_all(made, parts)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(again[name], array), name
    if made.config.parallel.optimizer_shard:
        without = cutter({**parallel, "optimizer_shard": False})
        other = held(without, arrays)
        assert sum(a.size for a in parts[0].values()) < sum(a.size for a in other[0].values())


@pytest.mark.parametrize("after", LAYOUTS[1:], ids=str)
def test_weights_move_between_layouts(after) -> None:
    """Cut for one layout, put together, cut for another, put together: the same bits."""
    one, other = cutter(LAYOUTS[4]), cutter(after)
    arrays = weights(one)
    moved = unify_all(other, held(other, unify_all(one, held(one, arrays))))
    assert all(np.array_equal(moved[name], array) for name, array in arrays.items())


def test_what_is_wrong_with_parts_is_named() -> None:
    made = cutter({"data": 2, "model": 2})
    parts = held(made, weights(made))
    name = "blocks.0.attn.q.weight"
    del parts[3]
    assert unify_all(made, parts)  # rank 1 holds the same
    parts[0][name] = parts[0][name] + 1
    with pytest.raises(CheckpointError, match=f"{name}: two processes hold different values"):
        unify_all(made, parts)
    del parts[0], parts[2]
    with pytest.raises(CheckpointError, match=r"embed.weight: 32,768 of 64,064 numbers are in no"):
        unify_all(made, parts)
    with pytest.raises(CheckpointError, match=r"x: a part has shape \(2,\), expected \(3,\)"):
        unify("x", (6,), [((slice(0, 3),), np.zeros(2))])
    del parts[1][name]
    with pytest.raises(CheckpointError, match=f"rank 1 holds no {name}"):
        unify_all(made, parts)
