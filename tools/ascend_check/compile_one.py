"""Compiles one graph for Ascend in a process of its own: python -m ascend_check.compile_one.

Reads one JSON object from its input: `config`, settings of a run; `graph`, "step" for the training
step, "write" for the two graphs of generation. RANK_ID and RANK_SIZE say which device of how many
it stands for. Writes one JSON object, as its last line: seconds, peak_gb, weights_bytes, or error.
Nothing is computed: the system libraries of Ascend are stand-ins, see `ascend_check.stand_ins`.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import traceback
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.communication.management import GlobalComm
from mindspore.nn.utils import no_init_parameters
from mindspore.parallel._tensor import _load_tensor_by_layout

from mindplm import runtime
from mindplm.config import RunConfig
from mindplm.families import config_from_dict, family, vocab_path
from mindplm.generate import generate
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.model import Model
from mindplm.nn.dropout import turn_on
from mindplm.slices import cut
from mindplm.train.cut_network import CutNetwork, empty_batch
from mindplm.train.step import Numbers, plain_step

_NUM_TASKS = 4
_MOST_NUMBERS = 1 << 22
"""Of a weight whose parts are compared; fp32 tells so many apart."""


class _Compiled(nn.Cell):
    """A function of tensors that is already a graph, as a cell, which can be compiled unrun."""

    def __init__(self, function: Any, *cells: nn.Cell):
        super().__init__(auto_prefix=False)
        self.function, self.parts = function, nn.CellList(list(cells))

    def construct(self, *values):
        return self.function(*values)


def step(config: RunConfig, rank: int, world: int) -> dict[str, Any]:
    """The training step of one device, as the trainer builds it."""
    parts = family(config.family)
    if config.parallel.by_plan:
        cut_run = CutNetwork(config, rank, _nothing)
        _check_places(cut_run, rank)
        return {"slices": _slices(cut_run.network, world)}
    columns = empty_batch(config, config.micro_batch_size)
    with no_init_parameters():
        model = parts.part("cell")(config.model, runtime.compute_dtype(config.runtime.dtype))
        spared = config.model.UNDROPPED
        turn_on(model, config.model.dropout, seed=config.runtime.seed, spared=spared)
        loss = parts.part("loss")(model)
        num_tasks = _NUM_TASKS if hasattr(loss, "tokens") and "spans" in columns else 0
        made = plain_step(config, model, loss, world=world, num_tasks=num_tasks)
    tasks = [np.zeros_like(columns["targets"])] * (num_tasks > 0)
    values = [Tensor(array) for array in (*columns.values(), *tasks)]
    rates = [made.optimizer.rates(1e-3, 0)] * (runtime.steps_ahead() + 1)
    numbers = Numbers(1.0, rates).tensor()
    if made.num_micro == 1:
        _Compiled(made.whole, loss, made.optimizer).compile(numbers, *values)
        return {}
    facts = Tensor(np.zeros(1 + 2 * num_tasks, np.float32))
    _Compiled(made.micro, loss).compile(numbers, *values)
    _Compiled(made.finish, made.optimizer).compile(numbers, facts)
    return {}


def _nothing(*_: float) -> np.ndarray:
    raise RuntimeError("there are no other processes to exchange numbers with")


def _check_places(cut_run: CutNetwork, rank: int) -> None:
    """Compares where our parts lie with what MindSpore itself takes of a whole array.

    Raises:
        RuntimeError: A part of a weight, or of a moment, is another one.
    """
    for name, place in cut_run.cutter.places(rank).items():
        whole = cut_run.cutter.whole(name)
        if math.prod(whole) > _MOST_NUMBERS:
            continue
        numbers = np.arange(math.prod(whole), dtype=np.float32).reshape(whole)
        for item in cut_run.held[name].values():
            layout = cut_run.network.parameter_layout_dict[item.name]
            taken = _load_tensor_by_layout(Tensor(numbers), layout, rank).asnumpy()
            if not np.array_equal(taken, cut(numbers, place)):
                raise RuntimeError(f"{item.name}: the part of this device is not at {place}")


def _slices(network: Any, world: int) -> dict[str, list[int]]:
    """Shape of what this device holds of each weight, moment and sum.

    A layout names its shape after the cuts of operators, and, as "4-..." or as that of all devices,
    the group of devices that the optimizer's shard spreads the first axis over.
    """
    found = {}
    for name, layout in network.parameter_layout_dict.items():
        if layout[2]:
            shape, group = list(layout[2]), layout[5]
            everyone = group == GlobalComm.WORLD_COMM_GROUP
            size = world if everyone else int(group.partition("-")[0] or 1)
            found[name] = [shape[0] // size, *shape[1:]]
    return found


class _Unrun(CompiledNetwork):
    """Compiles both graphs of generation when they are asked for, and answers with zeros."""

    def __init__(self, prefill: nn.Cell, decode: nn.Cell, model: nn.Cell, num_classes: int):
        super().__init__(prefill, decode)
        self.model, self.num_classes = model, num_classes
        self.compiled: list[str] = []

    def start(self, columns, rows, first, rest):
        self._start.compile(rows, first, rest, *columns)
        self.compiled.append("prefill")
        config, num_prompts = self.model.config, columns[0].shape[0]
        caches = []
        for num, length in ((num_prompts, first), (rows.shape[0], rest)):
            shape = (num, config.num_heads, length.shape[0], config.head_dim)
            zeros = np.zeros(shape, np.float16)
            caches += [
                _zeros(zeros, self.model.dtype) for _ in config.attention_layers for _ in "kv"
            ]
        return np.zeros((num_prompts, self.num_classes), np.float32), caches

    def step(self, columns, caches):
        if "decode" not in self.compiled:
            self._step.compile(*columns, *caches)
            self.compiled.append("decode")
        return np.zeros((columns[0].shape[0], self.num_classes), np.float32), caches


def _zeros(values: np.ndarray, dtype: Any) -> Tensor:
    if dtype == ms.bfloat16:
        return Tensor(shape=values.shape, dtype=dtype, init="zeros")
    return Tensor(values, dtype)


def write(config: RunConfig) -> dict[str, Any]:
    """The graphs of reading a prompt and of writing a token, two beams."""
    parts = family(config.family)
    tokenizer = parts.part("tokenizer").from_file(vocab_path(config.tokenizer, config.family))
    with no_init_parameters():
        cell = parts.part("cell")(config.model, runtime.compute_dtype(config.runtime.dtype))
    prefill, decode = parts.part("decode")(cell)
    network = _Unrun(prefill, decode, cell, config.model.vocab_size + 32)
    model = Model(config.family, config.model, network)  # type: ignore[arg-type]
    generate(model, tokenizer, [{"input": "one", "<ans>": ""}], beams=2, max_new_tokens=2)
    if network.compiled != ["prefill", "decode"]:
        raise RuntimeError(f"generation compiled {network.compiled}")
    return {}


def _ascend(*_: Any) -> tuple[str, list[str]]:
    return "Ascend", []


def main() -> int:
    """Compiles what the input says."""
    asked = json.loads(sys.stdin.read())
    config = config_from_dict(asked["config"], "row")
    begin = time.perf_counter()
    try:
        GlobalComm.CHECK_ENVS = False  # there is no package of the vendor's here
        vars(runtime)["choose_device"] = _ascend  # the stand-ins show no card
        found = runtime.setup(config.runtime)
        ready = time.perf_counter()
        result = (
            step(config, found.rank, found.world) if asked["graph"] == "step" else write(config)
        )
        result["seconds"] = round(time.perf_counter() - ready, 1)
    except Exception as error:  # any failure is a row of the table
        traceback.print_exc()
        result = {"error": error_text(error), "seconds": round(time.perf_counter() - begin, 1)}
    result["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print("\n" + json.dumps(result), flush=True)
    return 0


def error_text(error: Exception) -> str:
    """The first lines of an error, without the framework's rulers."""
    lines = (line.strip(" -") for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)
    return f"{type(error).__name__}: {text}"[:600]


if __name__ == "__main__":
    sys.exit(main())
