"""The step beyond its formula: numbers that are none, loss scale, late reports, tasks."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindplm.config import OptimConfig
from mindplm.train.optim import Adam
from mindplm.train.scaler import LossScale
from mindplm.train.step import LARGEST, Numbers, Report, TrainStep

SHAPE = (3, 4)


class Squares(nn.Cell):
    """A loss by row: half of the squared distance between the weight and the row's values."""

    def __init__(self, dtype=ms.float32):
        super().__init__()
        values = np.linspace(-1, 1, 12).reshape(SHAPE).astype(np.float32)
        self.weight = Parameter(Tensor(values).astype(dtype), name="blocks.0.weight")

    def tokens(self, rows_bn, labels_b):
        distance = self.weight.reshape((1, -1)) - rows_bn
        nll = (distance * distance).astype(ms.float32).sum(-1) * 0.5
        return nll, (labels_b >= 0).astype(ms.float32)

    def construct(self, rows_bn, labels_b):
        nll, real = self.tokens(rows_bn, labels_b)
        return (nll * real).sum(), real.sum()


class Run:
    """A network with its step, and the numbers that the trainer would give it."""

    def __init__(self, dtype=ms.float32, num_micro=1, num_tasks=0, **settings):
        self.config = OptimConfig(**{"lr": 0.1, "clip_norm": 1.0, "weight_decay": 0.1, **settings})
        self.cell = Squares(dtype)
        self.optimizer = Adam([self.cell.weight], self.config)
        self.scaler = LossScale(self.config, dynamic=dtype == ms.float16)
        self.step = TrainStep(
            self.cell,
            self.optimizer,
            clip_norm=self.config.clip_norm,
            num_micro=num_micro,
            scaler=self.scaler,
            num_tasks=num_tasks,
        )
        self.updates = 0

    def __call__(self, columns, *, rates=1, limit=LARGEST):
        updates = range(self.updates, self.updates + rates)
        given = [self.optimizer.rates(self.config.lr / (1 + n), n) for n in updates]
        targets = int((columns["labels"] >= 0).sum())
        numbers = Numbers(targets, given, self.updates, limit)
        return Report.of(self.step(columns, set(), numbers).asnumpy())

    def state(self):
        kept = [self.cell.weight, *self.optimizer.moment1, *self.optimizer.moment2]
        return [p.asnumpy().copy() for p in [*kept, *self.optimizer.masters]]


def columns(seed, size=4, dtype=np.float32, bad=None):
    rows = np.random.default_rng(seed).standard_normal((size, 12)).astype(dtype)
    if bad is not None:
        rows[1, 2] = bad
    return {"rows": rows, "labels": np.arange(size, dtype=np.int32)}


def assert_same(left, right):
    for one, other in zip(left, right):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_micro", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_with_a_number_that_is_none_moves_nothing(bad, num_micro):
    run, clean = Run(num_micro=num_micro), Run(num_micro=num_micro)
    for made in (run, clean):
        first = made(columns(0))
        made.updates = first.updates
    before = run.state()
    report = run(columns(1, bad=bad))
    assert not report.moved and report.updates == 1
    assert not (np.isfinite(report.loss) and np.isfinite(report.norm))
    assert_same(run.state(), before)
    assert run(columns(2))[:5] == clean(columns(2))[:5]
    assert_same(run.state(), clean.state())


def test_a_loss_above_the_limit_moves_nothing():
    run = Run()
    before = run.state()
    loss = run(columns(0), limit=1e-3).loss
    assert np.isfinite(loss)
    assert_same(run.state(), before)
    assert run(columns(0), limit=loss).moved


def test_the_rates_are_those_of_the_updates_that_were_made():
    """With reports read late the step gets rates for each possible number of updates."""
    late, known = Run(), Run()
    for seed, bad in enumerate([None, np.nan, None, None]):
        late.updates = max(0, known.updates - (bad is None and seed > 0))
        told = late(columns(seed, bad=bad), rates=2)
        report = known(columns(seed, bad=bad))
        known.updates = report.updates
        assert told.updates == report.updates
    assert known.updates == 3
    assert_same(late.state(), known.state())


# --- half precision -------------------------------------------------------------------------------


def test_half_weights_are_their_rounded_masters():
    run, wide = Run(ms.float16, loss_scale=256), Run()
    for seed in range(5):
        told = run(columns(seed, dtype=np.float16))
        report = wide(columns(seed))
        assert told.loss == pytest.approx(report.loss, rel=5e-3)
        assert told.norm == pytest.approx(report.norm, rel=5e-3)
        run.updates, wide.updates = told.updates, report.updates
    weight, *_, master = run.state()
    assert weight.dtype == np.float16 and master.dtype == np.float32
    np.testing.assert_array_equal(weight, master.astype(np.float16))
    assert (weight != master).any()
    np.testing.assert_allclose(master, wide.state()[0], atol=5e-3)


def test_an_overflow_lowers_the_scale_until_the_gradients_fit():
    run = Run(ms.float16, loss_scale=2.0**24, loss_scale_steps=2)
    before, scales, moved = run.state(), [], []
    for seed in range(14):
        report = run(columns(seed, dtype=np.float16))
        run.updates = report.updates
        scales.append(report.scale)
        moved.append(report.moved)
        if not report.moved:
            assert not np.isfinite(report.norm) and np.isfinite(report.loss)
            assert_same(run.state(), before)
        before = run.state()
    first = moved.index(True)
    assert first > 2 and scales[: first + 1] == [2.0 ** (24 - i) for i in range(first + 1)]
    assert scales[first + 2] == 2 * scales[first + 1], "two good steps raise it again"
    assert run.updates == sum(moved)


def test_the_scale_changes_nothing_else():
    """Powers of two are exact; the gradients lie far from both ends of the range."""
    small, large = (Run(ms.float16, loss_scale=scale) for scale in (2.0**4, 2.0**8))
    for seed in range(4):
        told, report = (made(columns(seed, dtype=np.float16)) for made in (small, large))
        small.updates, large.updates = told.updates, report.updates
        assert (told.loss, told.moved) == (report.loss, True)
    np.testing.assert_allclose(small.state()[-1], large.state()[-1], rtol=1e-6)


def test_half_gradients_add_up_in_fp32():
    one, cut = (Run(ms.float16, loss_scale=256, num_micro=num) for num in (1, 4))
    for seed in range(3):
        told, report = (made(columns(seed, dtype=np.float16)) for made in (one, cut))
        one.updates, cut.updates = told.updates, report.updates
        assert told.loss == pytest.approx(report.loss, rel=1e-6)
    assert cut.step.sums[0].dtype == ms.float32
    np.testing.assert_allclose(one.state()[-1], cut.state()[-1], atol=2e-3)


# --- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_micro", [1, 2])
def test_losses_by_task_are_sums_over_their_targets(num_micro):
    run, plain = Run(num_micro=num_micro, num_tasks=3), Run(num_micro=num_micro)
    batch = columns(0)
    batch["labels"][2] = -1
    nll = np.array(
        [0.5 * ((run.cell.weight.asnumpy().reshape(-1) - row) ** 2).sum() for row in batch["rows"]]
    )
    report = run({**batch, "tasks": np.array([2, 0, -1, 2], np.int32)})
    np.testing.assert_allclose(report.task_nats, [nll[1], 0, nll[0] + nll[3]], rtol=1e-5)
    np.testing.assert_array_equal(report.task_targets, [1, 0, 2])
    assert report.loss == pytest.approx(report.task_nats.sum() / 3, rel=1e-6)
    assert plain(batch).loss == pytest.approx(report.loss, rel=1e-6)
    np.testing.assert_allclose(run.state()[0], plain.state()[0], rtol=1e-6)
