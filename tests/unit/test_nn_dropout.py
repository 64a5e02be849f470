"""Dropout masks: as many zeros as asked for, independent, and the same again for a step."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindplm.nn.dropout import OFF, Dropout, Moment, step_parameter, told, turn_on

SIZE = 40_000


def masks(
    p: float, steps: list[int], salt: int = 7, parts: tuple[int, ...] = (0,), rows: int = 40
) -> np.ndarray:
    """Ones after each step's dropout; with several parts, those of one step."""
    step = step_parameter()
    cell = Dropout()
    cell.turn_on(p, step, salt)

    @ms.jit
    def run(x):
        return cell(x)

    x, found = Tensor(np.ones((rows, 2, 500), np.float32)), []
    for number in steps:
        for part in parts:
            ops.assign(step, Tensor(told(number, part)))
            found.append(run(x).asnumpy().reshape(-1))
    return np.stack(found)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_of_the_values_is_dropped_and_the_mean_stays(p: float) -> None:
    (found,) = masks(p, [12])
    assert set(np.unique(found)) == {0.0, np.float32(1 / (1 - p))}
    error = np.sqrt(p * (1 - p) / SIZE)
    assert abs((found == 0).mean() - p) < 4 * error
    rows = (found.reshape(40, 1000) == 0).mean(1)
    assert abs(rows - p).max() < 5 * np.sqrt(p * (1 - p) / 1000)


def test_masks_follow_from_step_and_salt_and_are_unrelated_otherwise() -> None:
    dropped = masks(0.5, [0, 1, 2, 3, 1000, 1001, 0]) == 0
    assert np.array_equal(dropped[0], dropped[-1])
    others = masks(0.5, [0, 1], salt=8) == 0
    all_of_them = np.concatenate([dropped[:-1], others])
    agree = np.corrcoef(all_of_them) - np.eye(len(all_of_them))
    assert abs(agree).max() < 5 / np.sqrt(SIZE)
    for shift in (1, 2, 3, 64, 1000):  # neighbours in a row and in a column
        a, b = dropped[0][:-shift], dropped[0][shift:]
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(SIZE)


def test_no_two_columns_or_rows_are_related() -> None:
    dropped = masks(0.1, [3], rows=1000).reshape(2000, 500) == 0
    for lines in (dropped, dropped.T):
        agree = np.corrcoef(lines) - np.eye(len(lines))
        assert abs(agree).max() < 8 / np.sqrt(lines.shape[1])  # 2 million pairs come near 6


def test_nothing_is_dropped_when_it_is_off() -> None:
    assert (masks(0.5, [OFF]) == 1).all()


def test_cutting_a_batch_into_parts_changes_no_mask() -> None:
    whole = masks(0.3, [5]).reshape(40, -1)
    parts = masks(0.3, [5], parts=(0, 1, 2, 3), rows=10).reshape(40, -1)
    assert np.array_equal(whole, parts)


class Pair(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.spared = Dropout(), Dropout(), Dropout()

    def construct(self, x):
        return self.first(x), self.second(x), self.spared(x)


def test_dropouts_of_a_network_differ_and_are_told_the_step_together() -> None:
    x = Tensor(np.ones((20, 300), np.float32))
    assert all((y.asnumpy() == 1).all() for y in Pair()(x))
    network = Pair()
    turn_on(network, 0.0, seed=1)
    assert not list(network.get_parameters())
    turn_on(network, 0.5, seed=1, spared=("spa*",))
    assert len(list(network.get_parameters())) == 1
    moment = Moment(network, first=2)
    assert all((y.asnumpy() == 1).all() for y in network(x))
    moment.begin(4, 1)
    first, second, spared = (y.asnumpy() for y in network(x))
    assert (spared == 1).all() and abs((first == second).mean() - 0.5) < 0.05
    moment.end()
    assert all((y.asnumpy() == 1).all() for y in network(x))
