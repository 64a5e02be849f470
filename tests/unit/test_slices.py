"""Weights are cut for the processes of a layout and put together again, exactly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from mindplm.errors import CheckpointError
from mindplm.families import config_from_dict, family
from mindplm.parts import MOMENTS
from mindplm.slices import Cutter, cut, unify, unify_all

sys.path.insert(0, str(ROOT / "tools"))
import reshard

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


def test_a_checkpoint_moves_between_layouts_by_the_tool(tmp_path: Path, capsys) -> None:
    """Cut for 2 x 4 with optimizer shard, unified, cut for two stages, unified: the same.

    So are the moments and the rest of the state of training.
    """
    from mindplm import assets, checkpoint
    from mindplm.config import to_dict
    from mindplm.yaml_io import dump_yaml

    made = cutter({})
    vocab = assets.path(assets.DEFAULT_VOCAB)
    size = family("cpm_bee").part("vocab_size")(vocab)
    tree = to_dict(made.config)
    tree["model"]["vocab_size"] = size
    config = config_from_dict(tree)
    arrays = weights(Cutter(made.plan, config, made.shapes))
    state = {kind + name: array + 1 for name, array in arrays.items() for kind in MOMENTS}
    state["updates"] = np.array(7, np.float32)
    (tmp_path / "run.yaml").write_text(dump_yaml(tree))
    checkpoint.write(
        tmp_path / "first",
        family="cpm_bee",
        model_config=tree["model"],
        weights=arrays,
        tokenizer_files={"vocab.txt": vocab.read_bytes()},
        train=checkpoint.TrainState(7, state, {"seed": 1}),
    )
    layouts = (
        ["parallel.data=2", "parallel.model=4", "parallel.optimizer_shard=true"],
        ["parallel.model=2", "parallel.pipeline=2", "parallel.micro_batches=2"],
    )
    source = tmp_path / "first"
    for number, layout in enumerate(layouts):
        parts, target = tmp_path / f"parts{number}", tmp_path / f"whole{number}"
        common = ["-c", str(tmp_path / "run.yaml"), *layout]
        assert reshard.main(["cut", str(source), *common, "--out", str(parts)]) == 0
        assert reshard.main(["unify", str(parts), *common, "--out", str(target)]) == 0
        found = checkpoint.read(target)
        assert found.model() == config.model
        again = found.weights()
        assert all(np.array_equal(again[name], array) for name, array in arrays.items())
        train = found.train()
        assert train is not None and (train.step, train.meta) == (7, {"seed": 1})
        assert train.arrays.keys() == state.keys()
        assert all(np.array_equal(train.arrays[name], array) for name, array in state.items())
        source = target
    (tmp_path / "parts0" / "rank_3.safetensors").unlink()
    words = ["unify", str(tmp_path / "parts0"), "-c", str(tmp_path / "run.yaml"), *layouts[0]]
    assert reshard.main([*words, "--out", str(tmp_path / "none")]) == 2
    assert "parts of 7 processes, the layout has 8; missing: [3]" in capsys.readouterr().err
    for words, message in [
        (["cut", str(source)], "cut needs -c FILE, which names the layout"),
        (["unify", str(source)], "holds whole weights already"),
    ]:
        assert reshard.main([*words, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
