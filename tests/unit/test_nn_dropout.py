"""Dropout masks: as many zeros as asked for, independent, and the same again for a step."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindplm.nn.dropout import OFF, Dropout, step_parameter

SIZE = 40_000


def masks(p: float, steps: list[int], salt: int = 7) -> np.ndarray:
    step = step_parameter()
    cell = Dropout(p, step, salt)

    @ms.jit
    def run(x):
        return cell(x)

    x, found = Tensor(np.ones((40, 1000), np.float32)), []
    for number in steps:
        ops.assign(step, Tensor([number], ms.int32))
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


def test_nothing_is_dropped_when_it_is_off() -> None:
    assert (masks(0.5, [OFF]) == 1).all()
