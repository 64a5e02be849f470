"""Four processes, two by two, that cut a network by its shard plan, against one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensor_parallel
from conftest import ROOT, SELDOM
from mindspore import Tensor

from mindplm.families import FAMILIES, family
from mindplm.slices import Cutter, unify_all

PATIENCE_S = 400


def launched(folder: Path, name: str, data: int, model: int) -> dict[int, dict[str, np.ndarray]]:
    """What each process found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = str(data * model)
    msrun = Path(sys.executable).with_name("msrun")
    command = [
        *(str(msrun), f"--worker_num={world}", f"--local_worker_num={world}", "--join=True"),
        *("--master_addr=127.0.0.1", f"--master_port={port}", f"--log_dir={folder / 'logs'}"),
        *(str(ROOT / "tests" / "tensor_parallel.py"), str(folder), name, str(data), str(model)),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "PATH": f"{msrun.parent}:{os.environ['PATH']}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    logs = "".join(p.read_text()[-1500:] for p in (folder / "logs").glob("worker_*.log"))
    assert done.returncode == 0, done.stdout[-500:] + logs
    return {
        rank: dict(np.load(folder / f"rank_{rank}.npz")) for rank in range(data * model)
    }


def alone(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the plain training cell in this process."""
    import mindspore as ms
    from mindspore import ops

    config, parts = tensor_parallel.settings(name, 1, 1), family(name)
    # As many rows as the cut table has, so that the same seed gives the same weights.
    net = tensor_parallel.whole_cell(tensor_parallel.settings(name, 2, 2))
    plain = parts.part("cell")(config.model, ms.float32)
    values = {weight.name: weight.asnumpy() for weight in net.get_parameters()}
    for weight in plain.get_parameters():
        inside = tuple(slice(0, size) for size in weight.shape)
        weight.set_data(Tensor(values[weight.name][inside]))
    loss = parts.part("loss")(plain)

    def total(*batch):
        return loss(*batch)[0] * tensor_parallel.FACTOR

    weights = list(plain.trainable_params())
    batch = [Tensor(column) for column in tensor_parallel.columns(name).values()]
    value, grads = ops.value_and_grad(total, None, weights)(*batch)
    return float(value), {w.name: grad.asnumpy() for w, grad in zip(weights, grads)}


OFTEN = ("cpm_bee", "t5")
"""Families that are run by default."""


@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=SELDOM) for n in FAMILIES]
)
def test_two_by_two_processes_have_the_loss_and_gradients_of_one(name: str, tmp_path: Path) -> None:
    """Also of what every process has whole: norms, whose gradients must not be added up twice."""
    found = launched(tmp_path, name, 2, 2)
    loss, grads = alone(name)
    for rank, own in found.items():
        np.testing.assert_allclose(own.pop("loss"), [loss], rtol=1e-6, err_msg=str(rank))
    config = tensor_parallel.settings(name, 2, 2)
    cutter = Cutter(family(name).part("plan"), config, family(name).part("shapes"))
    halved = [w for w, grad in grads.items() if found[0][w].size < grad.size]
    assert any(".attn.q.weight" in w for w in halved) and any("ffn.up" in w for w in halved)
    if name == "cpm_bee":
        assert found[0]["blocks.0.attn.q.weight"].shape == (16, 32)
        assert found[1]["embed.weight"].shape == (128, 32)
        assert unify_all(cutter, {0: found[0], 1: found[1]}).keys() == grads.keys()
    for weight, grad in grads.items():
        # A bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
        scale = max(np.abs(grad).max(), 1e-3 if weight.endswith(".k.bias") else 0.0)
        for rank, own in found.items():
            place = cutter.places(rank)[weight]
            wanted = tensor_parallel.cut(grad, place)
            np.testing.assert_allclose(
                own[weight], wanted, rtol=0, atol=2e-6 * scale, err_msg=f"{weight} of rank {rank}"
            )
