"""One process of a network cut by its shard plan, with collectives written by hand.

MindSpore cuts networks itself on Ascend only. Here the same plan is read by a few lines, which put
sums over the processes where the plan's letters say they belong, from the one collective operation
that the CPU has. So the plan's arithmetic is proven, not the compiler's.

    msrun ... tensor_parallel.py FOLDER FAMILY DATA MODEL       writes FOLDER/rank_<n>.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.config import RuntimeConfig
from mindplm.families import config_from_dict, family
from mindplm.models.plans import AXES
from mindplm.nn.init import initialise
from mindplm.nn.layers import Linear
from mindplm.shards import Part, vocab_rows
from mindplm.slices import Cutter, cut
from mindplm.strict import to_plain
from mindplm.train.sharding import find_parts

sys.path.insert(0, str(Path(__file__).parent / "contract"))
from tiny_families import MAKERS  # noqa: E402

SEQ, TARGETS, REL, EXT, ROWS = 12, 5, 9, 4, 4
FACTOR = 0.125


BEE = {
    **{"vocab_size": 50, "hidden_size": 32, "num_heads": 4, "head_dim": 8, "ffn_size": 48},
    **{"num_layers": 3, "num_segment_buckets": 64, "max_distance": 128},
    **{"no_attention": [1], "no_ffn": [2]},
}


def settings(name: str, data: int, model: int):
    """A run of a family; those but CPM-Bee have the tiny models of the contract."""
    tree = {
        "family": name,
        "model": BEE if name == "cpm_bee" else to_plain(MAKERS[name]().config),
        "train": {"steps": 1, "output": "unused", "batch_size": ROWS},
        "data": {"train": [{"path": "unused"}], "folder": "unused", "seq_len": SEQ},
        "parallel": {"data": data, "model": model},
        "runtime": {"device": "cpu"},
    }
    return config_from_dict(tree)


def columns(name: str) -> dict[str, np.ndarray]:
    """The first four rows of a batch."""
    if name != "cpm_bee":
        made = MAKERS[name]()
        return made.first_rows(made.columns(), ROWS)
    names = family(name).part("rows").columns
    return dict(zip(names, bee_columns()))


def bee_columns() -> list[np.ndarray]:
    """Four rows; the extension table is shared by all."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 52, (ROWS, TARGETS))
    targets[:, -1] = -100
    values = [
        random.integers(0, 50, (ROWS, SEQ)),
        random.integers(0, 3, (ROWS, SEQ)),
        random.integers(0, 2, (ROWS, SEQ)),
        np.zeros((ROWS, SEQ)),
        random.integers(0, 3, (ROWS, SEQ)),
        np.zeros((ROWS, SEQ)),
        np.full((ROWS, SEQ), 3),
        np.zeros((ROWS, SEQ)),
        [SEQ, SEQ - 2, SEQ, SEQ - 5],
        random.integers(0, 60, (ROWS, REL)),
        np.sort(random.integers(0, SEQ, (ROWS, TARGETS))),
        targets,
        [3, 4, 0, 0],
        [1, 2, 0, 0],
        [2],
    ]
    return [np.asarray(value, np.int32) for value in values]


class Enter(nn.Cell):
    """What every process has, used by each for a part: the gradients add up."""

    def __init__(self, group: str):
        super().__init__()
        self.reduce = ops.AllReduce(group=group)

    def construct(self, x):
        return x * 1

    def bprop(self, x, out, grad):
        return (self.reduce(grad),)


class Leave(nn.Cell):
    """Parts of a sum added up."""

    def __init__(self, group: str):
        super().__init__()
        self.reduce = ops.AllReduce(group=group)

    def construct(self, x):
        return self.reduce(x)

    def bprop(self, x, out, grad):
        return (grad,)


class Largest(nn.Cell):
    """The largest of what the processes have, from a sum: each puts its own in its place."""

    def __init__(self, operator, group: str, index: int, count: int):
        super().__init__()
        self.operator, self.reduce = operator, ops.AllReduce(group=group)
        self.own = Tensor(np.eye(count, dtype=np.float32)[:, index].reshape((count, 1, 1)))

    def construct(self, x, axis):
        top = self.operator(x, axis).expand_dims(0) * self.own
        return self.reduce(top).max(0)


class Lookup(nn.Cell):
    """Rows of a table of which each process has a part."""

    def __init__(self, group: str, index: int):
        super().__init__()
        self.index, self.leave = index, Leave(group)

    def construct(self, table, ids, axis):
        own = ids - self.index * table.shape[0]
        inside = ops.logical_and(own >= 0, own < table.shape[0])
        rows = ops.gather(table, ops.where(inside, own, ops.zeros_like(own)), 0)
        return self.leave(rows * inside.astype(rows.dtype).expand_dims(-1))


class Cut(nn.Cell):
    """An operator or a cell on parts: sums where a letter that is cut comes or goes."""

    def __init__(self, part: Part, found, group: str):
        super().__init__(auto_prefix=False)
        whole = [not over_model(axes) for axes in part.inputs]
        enters = any(over_model(axes) for axes in part.outputs)
        gone = letters(part.inputs) - letters(part.outputs)
        self.found, self.enter, self.leave = found, Enter(group), Leave(group)
        self.entering = tuple(here and enters for here in whole)
        self.leaves = bool(gone)

    def construct(self, *values):
        given: tuple = ()
        for i in range(len(values)):
            x = values[i]
            if i < len(self.entering) and self.entering[i] and x.dtype == ms.float32:
                x = self.enter(x)
            given = given + (x,)
        out = self.found(*given)
        return self.leave(out) if self.leaves else out


def over_model(axes) -> bool:
    return bool(letters([axes]))


def letters(operands) -> set[str]:
    text = "".join("".join(axes) for axes in operands)
    return {letter for letter in text if AXES.get(letter) == "model"}


def whole_cell(config):
    """The training cell of the plan with its first values."""
    rows, layers = vocab_rows(config.model.vocab_size, config.parallel), config.model.num_layers
    net = family(config.family).part("sharded")(config.model, ms.float32, rows, (0,) * layers)
    initialise(net.model, 1)
    return net


def cut_network(config, rank: int, groups: tuple[str, str]):
    """The training cell with this process's part of every weight, and sums between processes."""
    parts, model = family(config.family), rank % config.parallel.model
    plan, net = parts.part("plan"), whole_cell(config)
    rows = vocab_rows(config.model.vocab_size, config.parallel)
    places = Cutter(plan, config, parts.part("shapes")).places(rank)
    for weight in net.get_parameters():
        part = cut(weight.asnumpy(), places[weight.name])
        weight.set_data(Tensor(part), slice_shape=True)
    for _, cell in net.cells_and_names():
        if isinstance(cell, Linear):
            cell.num_out, cell.num_in = cell.weight.shape
    each = rows // config.parallel.model
    net.nll.real_v = Tensor(net.nll.real_v.asnumpy()[model * each : (model + 1) * each])
    for part, owner, attribute in list(find_parts(net, plan)):
        found = getattr(owner, attribute)
        if not letters((*part.inputs, *part.outputs)) or config.parallel.model == 1:
            continue
        if isinstance(found, ops.Gather):
            made: nn.Cell = Lookup(groups[1], model)
        elif isinstance(found, ops.ReduceMax):
            made = Largest(found, groups[1], model, config.parallel.model)
        else:
            made = Cut(part, found, groups[1])
        delattr(owner, attribute)
        setattr(owner, attribute, made)
    return net


def run(folder: Path, config, rank: int, groups: tuple[str, str]) -> None:
    """Loss and gradients of the whole batch, from this process's part of it."""
    net = cut_network(config, rank, groups)
    ways, index = config.parallel.data, rank // config.parallel.model
    each = ROWS // ways
    shared = family(config.family).part("shared_columns")
    batch = [
        Tensor(c if name in shared else c[index * each : (index + 1) * each])
        for name, c in columns(config.family).items()
    ]
    weights = ms.ParameterTuple(net.trainable_params())
    gradient = ops.value_and_grad(net, None, weights)
    factor = Tensor([FACTOR], ms.float32)
    add = (lambda x: x) if ways == 1 else Leave(groups[0])
    loss, grads = gradient(factor, *batch)
    found = {w.name: add(grad).asnumpy() for w, grad in zip(weights, grads)}
    found["loss"] = add(loss.reshape((1,))).asnumpy()
    np.savez(folder / f"rank_{rank}.npz", **found)


def main() -> None:
    from mindspore.communication import create_group

    from mindplm import runtime

    folder, name, data, model = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    found = runtime.setup(RuntimeConfig(device="cpu", threads=1))
    data_index, model_index = divmod(found.rank, model)
    create_group("model", [data_index * model + m for m in range(model)])
    create_group("data", [d * model + model_index for d in range(data)])
    run(folder, settings(name, data, model), found.rank, ("data", "model"))


if __name__ == "__main__":
    main()
