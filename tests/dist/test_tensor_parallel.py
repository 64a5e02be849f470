"""Four processes, two by two, that cut a network by its shard plan, against one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensor_parallel
from conftest import ROOT
from mindspore import Tensor

from mindplm.families import family
from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
from mindplm.models.cpm_bee.plan import PLAN
from mindplm.slices import Cutter, unify_all

PATIENCE_S = 400


def launched(folder: Path, data: int, model: int) -> dict[int, dict[str, np.ndarray]]:
    """What each process found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = str(data * model)
    msrun = Path(sys.executable).with_name("msrun")
    command = [
        *(str(msrun), f"--worker_num={world}", f"--local_worker_num={world}", "--join=True"),
        *("--master_addr=127.0.0.1", f"--master_port={port}", f"--log_dir={folder / 'logs'}"),
        *(str(ROOT / "tests" / "tensor_parallel.py"), str(folder), str(data), str(model)),
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


def alone() -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the plain training cell in this process."""
    import mindspore as ms
    from mindspore import ops

    from mindplm.nn.init import initialise

    config = tensor_parallel.settings(1, 1)
    # As many rows as the cut table has, so that the same seed gives the same weights.
    sharded = tensor_parallel.settings(2, 2)
    net = tensor_parallel.ShardedCpmBeeLoss(
        sharded.model, ms.float32, tensor_parallel.vocab_rows(50, sharded.parallel), (0, 0, 0)
    )
    initialise(net.model, 1)
    plain = CpmBee(config.model)
    values = {weight.name: weight.asnumpy() for weight in net.trainable_params()}
    for weight in plain.get_parameters():
        array = values[weight.name]
        weight.set_data(Tensor(array[:50] if weight.name == "embed.weight" else array))
    loss = CpmBeeLoss(plain)

    def total(*batch):
        return loss(*batch)[0] * tensor_parallel.FACTOR

    weights = list(plain.trainable_params())
    batch = [Tensor(column) for column in tensor_parallel.columns()]
    value, grads = ops.value_and_grad(total, None, weights)(*batch)
    return float(value), {w.name: grad.asnumpy() for w, grad in zip(weights, grads)}


def test_two_by_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """Also of what every process has whole: norms, whose gradients must not be added up twice."""
    found = launched(tmp_path, 2, 2)
    loss, grads = alone()
    for rank, own in found.items():
        np.testing.assert_allclose(own.pop("loss"), [loss], rtol=1e-6, err_msg=str(rank))
    config = tensor_parallel.settings(2, 2)
    cutter = Cutter(PLAN, config, family("cpm_bee").part("shapes"))
    assert found[0]["blocks.0.attn.q.weight"].shape == (16, 32)
    assert found[1]["embed.weight"].shape == (128, 32)
    for name, grad in grads.items():
        scale = np.abs(grad).max()
        for rank, own in found.items():
            place = cutter.places(rank)[name]
            wanted = tensor_parallel.cut(grad, place)
            np.testing.assert_allclose(
                own[name], wanted, rtol=0, atol=2e-6 * scale, err_msg=f"{name} of rank {rank}"
            )
    assert unify_all(cutter, {0: found[0], 1: found[1]}).keys() == grads.keys()
