"""Int8 projections: small errors of rounding, and otherwise the same network."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from test_nn_lora import Network, X, network

from mindplm.errors import CheckpointError
from mindplm.nn.int8 import Int8Linear, load_int8, quantised
from mindplm.nn.values import load_model, to_arrays


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
    weight[3] = 0
    for made in (weight, weight.astype(np.float16)):
        values, scale = quantised(made)
        assert values.dtype == np.int8 and scale.dtype == np.float32
        error = np.abs(values * scale[:, None] - made.astype(np.float32))
        assert (error <= scale[:, None] * 0.5001).all()
        assert (np.abs(values).max(axis=1)[[0, 1, 2, 4]] == 127).all()


def test_the_network_is_that_of_the_rounded_weights() -> None:
    arrays = {name: array.copy() for name, array in to_arrays(network().get_parameters()).items()}
    small = Network()
    load_int8(small, arrays, "test")
    kinds = {name: cell for name, cell in small.cells_and_names() if isinstance(cell, Int8Linear)}
    assert len(kinds) == 2 * 7 + 1
    rounded = dict(arrays)
    for name in kinds:
        values, scale = quantised(arrays[f"{name}.weight"])
        rounded[f"{name}.weight"] = values * scale[:, None]
    whole = network()
    load_model(whole, rounded, "test")
    out = small(X).asnumpy()
    np.testing.assert_allclose(out, whole(X).asnumpy(), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(out, network()(X).asnumpy())
    assert {p.name for p in small.get_parameters() if p.dtype == ms.int8} == {
        f"{name}.weight" for name in kinds
    }
    assert all("norm" in p.name for p in small.trainable_params())
    half = kinds["head"](Tensor(X.asnumpy().astype(np.float16)))
    assert half.dtype == ms.float16
    np.testing.assert_allclose(half.asnumpy(), kinds["head"](X).asnumpy(), rtol=0.02, atol=0.02)


def test_what_does_not_fit_is_told() -> None:
    arrays = {name: array.copy() for name, array in to_arrays(network().get_parameters()).items()}
    gone = {name: array for name, array in arrays.items() if name != "head.weight"}
    with pytest.raises(CheckpointError, match="head.weight is missing"):
        load_int8(Network(), gone, "test")
    with pytest.raises(CheckpointError, match=r"head.weight is \(8, 5\), expected \(5, 8\)"):
        load_int8(Network(), {**gone, "head.weight": arrays["head.weight"].T}, "test")
    with pytest.raises(CheckpointError, match="no numbers"):
        load_int8(Network(), {**gone, "head.weight": np.full((5, 8), np.nan)}, "test")


def test_a_checkpoint_is_loaded_and_writes(tmp_path: Path) -> None:
    from test_fuzz import records

    import mindplm
    from mindplm.config import RuntimeConfig

    records.write_model(tmp_path / "model")
    cpu = RuntimeConfig(device="cpu")
    model, tokenizer = mindplm.load(tmp_path / "model", cpu, int8=True)
    assert sum(p.dtype == ms.int8 for p in model.cell.get_parameters()) == 7
    filled = mindplm.generate(model, tokenizer, ["w5"], max_new_tokens=4, min_new_tokens=4)
    assert filled[0]["<ans>"]
    given = {"input": "w5", "<ans>": "w7w9"}
    plain = mindplm.load(tmp_path / "model", cpu)
    near = [mindplm.score(m, t, [given])[0].nats for m, t in ((model, tokenizer), plain)]
    assert near[0] == pytest.approx(near[1], rel=0.01)
    assert near[0] != near[1]
