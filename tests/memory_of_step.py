"""How much memory a process takes more after three training steps on full rows, in bytes.

python memory_of_step.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np

from mindplm import runtime
from mindplm.data.kinds import Draws
from mindplm.families import config_from_dict, family
from mindplm.nn.init import initialise
from mindplm.train.step import Numbers, plain_step


def resident(name: str = "VmRSS") -> int:
    """Bytes now; VmHWM: the most so far of this program, not of the one that started it."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    with open(sys.argv[1]) as file:
        config = config_from_dict(json.load(file))
    runtime.setup(config.runtime)
    parts = family(config.family)
    kind = parts.part("rows")
    shape = kind.settings(config, "train").shape
    one = np.ones(1, np.int32)
    columns = kind.collate(
        [],
        num_rows=config.train.batch_size,
        shape=shape,
        marks=SimpleNamespace(vocab_size=config.model.vocab_size, bos_id=1, eos_id=1),
        draws=Draws((one, one), 0, []),
    )
    columns["length"][:] = shape.seq_len
    columns["num_segments"][:] = 1
    columns["targets"][:] = 3
    columns["target_pos"][:] = np.arange(shape.max_targets)
    before = resident()
    model = parts.part("cell")(config.model, ms.float32)
    loss = parts.part("loss")(model)
    initialise(model, 1)
    step = plain_step(config, model, loss, world=1)
    shared = set(parts.part("shared_columns"))
    for number in range(3):
        rates = [step.optimizer.rates(1e-3, number)]
        numbers = Numbers(float(columns["targets"].size), rates, number)
        runtime.settle(step(columns, shared, numbers))
    print(json.dumps({"grew": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
