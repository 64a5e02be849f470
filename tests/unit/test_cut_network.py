"""A run whose layout cuts the network: rows, steps, checkpoints in parts, and going on from them.

The compiled step is replaced by the same cell without the framework's cutting, which CPU lacks.
"""

from __future__ import annotations

import dataclasses
import threading
from functools import partial
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import tiny_run
from mindspore import Tensor
from tiny_run import numbers

from mindplm import adapters, checkpoint, cli, files, parts, runtime
from mindplm.checkpoint import RunFolder, TrainState
from mindplm.config import ParallelConfig, RunConfig, TrainConfig, require_trainable
from mindplm.data import prepare
from mindplm.errors import CheckpointError, ConfigError
from mindplm.families import family, load_config
from mindplm.finetune import prepare_rows
from mindplm.nn.init import initialise
from mindplm.parts import MOMENTS
from mindplm.shards import data_rank
from mindplm.slices import Cutter, cut
from mindplm.train import cut_network, loop, trainer
from mindplm.train.cut_network import CutNetwork
from mindplm.train.optim import Adam
from mindplm.train.saving import Moments
from mindplm.train.scaler import LossScale
from mindplm.train.sharded_step import ShardedStep

ROWS_MORE = 24
"""Rows of padding in the embedding."""


class Uncut:
    """The step on one device, with what `AutoParallel` shows of itself."""

    def __init__(self, config: RunConfig, shapes: Any = None):
        sizes = config.model
        made, rows = family(config.family).part("sharded"), sizes.vocab_size + ROWS_MORE
        loss = made(sizes, ms.float32, rows, (0,) * sizes.num_layers)
        initialise(loss.model, 99)  # must be replaced
        weights = list(loss.trainable_params())
        for weight in weights if shapes else ():
            weight.set_data(Tensor(np.zeros(shapes[weight.name], np.float32)))
        self.network = ShardedStep(
            loss,
            Adam(weights, config.optim),
            LossScale(config.optim, dynamic=False),
            clip_norm=config.optim.clip_norm,
            num_micro=config.accumulation,
            num_rates=runtime.steps_ahead() + 1,
            parallel=ParallelConfig(),
            copies=[1] * len(weights),
        )
        self.parallel_parameter_name_list = [p.name for p in self.get_parameters()]

    def get_parameters(self) -> Any:
        return self.network.get_parameters()

    def __call__(self, *values: Any) -> Any:
        return self.network(*values)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: Any) -> Path:
    path = tiny_run.write_run(tmp_path_factory.mktemp("cut"), steps=4)
    text = path.read_text()
    path.write_text(text.replace("log_every: 1", "log_every: 1, micro_batch_size: 2"))
    assert cli.main(["preprocess", "-c", str(path)]) == 0
    return path


def pretrain(monkeypatch: Any, path: Path, *overrides: str, by_plan: bool) -> Path:
    """Trains in this process; with `by_plan` as a run that is cut, but on one device."""
    config = load_config(path, ["model.num_layers=1", *overrides])
    with monkeypatch.context() as changed:
        if by_plan:
            padded = config.model.vocab_size + ROWS_MORE
            parallel = dataclasses.replace(config.parallel, vocab_rows=padded)
            config = dataclasses.replace(config, parallel=parallel)
            changed.setattr(ParallelConfig, "by_plan", property(lambda _: True))
            changed.setattr(trainer, "CutNetwork", partial(CutNetwork, compile=Uncut))
        return loop.pretrain(config).checkpoint


def told(folder: Path, key: str, first: int = 0) -> list[float]:
    return [line[key] for line in numbers(folder) if key in line and line["step"] > first]


def test_a_cut_run_is_the_plain_run_saved_in_parts(settings: Path, monkeypatch, tmp_path) -> None:
    """Losses, validation, weights, moments; and it goes on from its parts as if never stopped."""
    plain = pretrain(monkeypatch, settings, f"train.output={tmp_path}/plain", by_plan=False)
    words = ["train.save_every=2", "train.eval_every=2"]
    output = f"train.output={tmp_path}/cut"
    saved = pretrain(monkeypatch, settings, output, *words, by_plan=True)
    losses, valid = (told(tmp_path / "cut", key) for key in ("train/loss", "valid/loss"))
    assert losses == pytest.approx(told(tmp_path / "plain", "train/loss"), rel=2e-5)
    assert valid[-1] == pytest.approx(told(tmp_path / "plain", "valid/loss")[-1], rel=2e-5)
    assert len(losses) == 4 and len(valid) == 2
    one, other = checkpoint.read(saved), checkpoint.read(plain)
    assert one.parts is not None and other.parts is None
    assert_near(one.weights(), other.weights())
    ours, theirs = one.train(), other.train()
    assert ours is not None and theirs is not None and ours.step == theirs.step == 4
    assert_near(ours.arrays, theirs.arrays)
    place = (slice(3, 5), slice(0, 8))
    for kind in ("", "adam_v."):
        pair = [c.part("blocks.0.attn.q.weight", place, kind) for c in (one, other)]
        np.testing.assert_allclose(*pair, atol=2e-4)

    middle = RunFolder(tmp_path / "cut").path_of(2)
    assert adapters.weights_digest(middle) != adapters.weights_digest(saved)
    output = f"train.output={tmp_path}/again"
    words += [output, f"train.resume={middle}", "finetune={}"]
    again = checkpoint.read(pretrain(monkeypatch, settings, *words, by_plan=True))
    best = checkpoint.read(tmp_path / "again" / "best")
    assert best.train() is None and best.parts is not None
    tiny_run.assert_same_arrays(best.weights(), again.weights())
    assert_same_but_for_best(again, one)
    assert told(tmp_path / "again", "train/loss") == losses[2:]


CPT = """\
family: cpt
model: {{preset: tiny, num_layers: 2}}
runtime: {{device: cpu}}
data: {{folder: "{folder}/rows", seq_len: 48, train: [{{path: "{folder}/train.jsonl"}}]}}
optim: {{lr: 2e-3, eps: 1e-3, schedule: constant}}
train: {{output: "{folder}/plain", steps: 2, batch_size: 4, log_every: 1, save_every: 1}}
"""


def test_weights_that_are_not_trained_are_in_the_parts_without_moments(
    monkeypatch, tmp_path: Path
) -> None:
    """A run of CPT, whose output bias is such a weight; held whole it goes on from the parts."""
    tiny_run.write_lines(tmp_path / "train.jsonl", tiny_run.texts(40))
    path = tmp_path / "run.yaml"
    path.write_text(CPT.format(folder=tmp_path), encoding="utf-8")
    prepare_rows(load_config(path))
    words = ["model.num_layers=2", f"train.output={tmp_path}/cut", "train.keep_last=0"]
    saved = checkpoint.read(pretrain(monkeypatch, path, *words, by_plan=True))
    assert saved.parts is not None and "logits_bias" in saved.parts.whole()
    assert "adam_m.logits_bias" not in saved.parts.whole("adam_m.")
    middle = RunFolder(tmp_path / "cut").path_of(1)
    words = ["model.num_layers=2", f"train.resume={middle}"]
    whole = checkpoint.read(pretrain(monkeypatch, path, *words, by_plan=False))
    assert told(tmp_path / "cut", "train/loss", 1) == pytest.approx(
        told(tmp_path / "plain", "train/loss"), rel=2e-5
    )
    one, other = saved.train(), whole.train()
    assert one is not None and other is not None
    assert_near(saved.weights(), whole.weights())
    assert_near(one.arrays, other.arrays)


def assert_same_but_for_best(one: Any, other: Any) -> None:
    """The run that goes on keeps the best state too."""
    left, right = one.train(), other.train()
    for meta in (left.meta, right.meta):
        meta.pop("best")
    assert (left.step, left.meta) == (right.step, right.meta)
    tiny_run.assert_same_arrays(left.arrays, right.arrays)
    tiny_run.assert_same_arrays(one.weights(), other.weights())


def assert_near(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], atol=2e-4, err_msg=name)


# --- parts of many processes ----------------------------------------------------------------------


def cut_config(settings: Path, **parallel: Any) -> RunConfig:
    config = load_config(settings, ["model.num_heads=4", "train.batch_size=8"])
    return dataclasses.replace(config, parallel=ParallelConfig(**parallel))


def cutter_of(config: RunConfig) -> Cutter:
    table = family("cpm_bee")
    return Cutter(table.part("plan"), config, table.part("shapes"))


def random_arrays(cutter: Cutter) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        kind + name: random.normal(size=shape).astype(np.float32)
        for name, shape in cutter.shapes(cutter.config.model).items()
        for kind in ("", *MOMENTS)
    }


def test_processes_write_one_folder_and_any_layout_reads_it(settings: Path, tmp_path) -> None:
    config = cut_config(settings, data=2, model=2, pipeline=2, optimizer_shard=True)
    cutter = cutter_of(config)
    arrays, first = random_arrays(cutter), cutter.first_places()
    assert sum(
        np.prod([p.stop - p.start for p in q]) for own in first for q in own.values()
    ) == sum(np.prod(cutter.whole(name)) for name in cutter.shapes(config.model)), (
        "each number is written once"
    )
    target = tmp_path / "step-00000003"
    new = files.NewFolder(target, 1000)
    shared = files.shared_folder(target, new.number)
    assert shared == new.folder

    def write(rank: int) -> None:
        own = {k + n: cut(arrays[k + n], p) for n, p in first[rank].items() for k in ("", *MOMENTS)}
        parts.write_part(shared, rank, own)

    others = [threading.Timer(0.1, write, [rank]) for rank in range(1, 8)]
    for thread in others:
        thread.start()
    with new.build() as writer:
        write(0)
        checkpoint.write_head(writer, "cpm_bee", {"preset": "tiny"}, {}, None)
        TrainState(3, {"updates": np.float32(3)}, {}).write(writer)
        parts.collect(writer, first, cutter.shapes(config.model), {"data": 2})
        assert not target.exists()
    for thread in others:
        thread.join()
    saved = checkpoint.read(target)
    assert sorted(p.name for p in (target / "parts").iterdir())[:2] == [
        "layout.json",
        "rank_0.safetensors",
    ]
    state = saved.train()
    assert state is not None and state.arrays.pop("updates") == 3
    found = {**saved.weights(), **state.arrays}
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    for layout in ({"model": 4}, {"data": 4, "pipeline": 2, "optimizer_shard": True}):
        other = cutter_of(cut_config(settings, **layout))
        for name, place in other.places(other.config.parallel.devices - 1).items():
            for kind in ("", *MOMENTS):
                wanted = cut(arrays[kind + name], place)
                assert np.array_equal(saved.part(name, place, kind), wanted), name
    (target / "parts" / "rank_3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"parts/rank_3.safetensors is missing"):
        checkpoint.read(target)


def test_a_part_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("a file")
    with pytest.raises(CheckpointError, match="the part of process 2 cannot be written"):
        parts.write_part(tmp_path, 2, {"x": np.zeros(1)})


def test_parts_of_another_size_than_planned_are_refused_when_compiled(settings: Path) -> None:
    config = cut_config(settings, data=2, model=2)
    held = {name: [2] for name in cutter_of(config).shapes(config.model)}
    with pytest.raises(RuntimeError, match=r"embed.weight has shape \(2,\) here, the plan says"):
        CutNetwork(config, 0, lambda *_: np.zeros(1), lambda c: Uncut(c, held))


def test_a_pipeline_is_told_by_its_last_process(settings: Path) -> None:
    net = object.__new__(CutNetwork)
    net.config = cut_config(settings, pipeline=2)
    all_of_them = np.array([[0, 9, 1, 1, 4, 0], [2.5, 9, 1, 1, 4, 0]])
    given: list[tuple[float, ...]] = []

    def gather(*values: float) -> np.ndarray:
        given.append(values)
        return all_of_them

    net._gather = gather
    for net.rank in (0, 1):
        assert net.report(np.float32([7, 9, 1, 1, 4, 0])).loss == 2.5
    assert given == [(0,) * 6, (7, 9, 1, 1, 4, 0)], "what the first stage knows is not told"


# --- rows -----------------------------------------------------------------------------------------


def test_processes_that_share_layers_get_the_same_rows(settings: Path) -> None:
    parallel = ParallelConfig(data=2, model=2, pipeline=2)
    shares = [data_rank(rank, parallel) for rank in range(8)]
    assert shares == [0, 0, 1, 1, 0, 0, 1, 1]
    config = cut_config(settings)
    kind = family("cpm_bee").part("rows")
    tokenizer = family("cpm_bee").part("tokenizer").from_file(Path(config.tokenizer.path))
    rows = prepare.train_rows(config, tokenizer, kind)
    made = []
    for share in (0, 1):
        with prepare.open_stream(rows, seed=1, batch_size=8, rank=share, world=2) as stream:
            made.append(next(stream)[0])
    with prepare.open_stream(rows, seed=1, batch_size=8, rank=0, world=1) as stream:
        whole = next(stream)[0]
    both = np.concatenate([columns["ids"] for columns in made])
    assert np.array_equal(both, whole["ids"]), "together they are the global batch"


def test_the_empty_batch_has_the_sizes_of_real_ones(settings: Path) -> None:
    config = cut_config(settings)
    kind = family("cpm_bee").part("rows")
    tokenizer = family("cpm_bee").part("tokenizer").from_file(Path(config.tokenizer.path))
    rows = prepare.train_rows(config, tokenizer, kind)
    with prepare.open_stream(rows, seed=1, batch_size=8) as stream:
        real = next(stream)[0]
    empty = cut_network.empty_batch(config, 8)
    assert {n: (a.shape, a.dtype) for n, a in empty.items()} == {
        n: (a.shape, a.dtype) for n, a in real.items()
    }


# --- what is refused, and when is saved -----------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "overrides", "message"),
    [
        ("cpu", ["parallel.model=2"], "parallel.model=2 runs on Ascend only, this is CPU"),
        ("GPU", ["parallel.data=2", "parallel.optimizer_shard=true"], "optimizer_shard=true runs"),
        ("Ascend", ["parallel.model=2", "lora={rank: 4}"], "lora does not go with parallel.model"),
        ("Ascend", ["parallel.model=2", "train.inspect_every=1"], "train.inspect_every does not"),
        ("Ascend", ["parallel.model=2", "runtime.mode=pynative"], "runtime.mode=pynative does"),
    ],
)
def test_what_a_cut_run_cannot_do_is_refused(settings, device, overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        require_trainable(load_config(settings, overrides), device)


def test_the_clock_of_the_first_process_counts_for_all() -> None:
    config = TrainConfig(steps=9, output="x", save_every=0, save_every_minutes=1, log_every=2)
    asked: list[float] = []

    def share(late: float) -> np.ndarray:
        asked.append(late)
        return np.array([[len(asked) == 3], [True]])

    moments = Moments(config, lambda: 0.0, share)
    assert [step for step in range(1, 10) if moments.due(step)] == [6]
    assert asked == [False] * 4
