"""Token losses over a table whose rows are spread over devices.

The same losses as `mindplm.nn.loss.ProjectedNll`, composed of operators that a compiler can cut:
products and lookups in the table, a maximum and a sum over its rows; the cells between them need
no communication. Gradients are the framework's.

Suffixes of tensor names: n rows, d hidden, v rows of the table, e extra classes.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.nn.block import Merge
from mindplm.nn.kernels import masked, one_below
from mindplm.nn.layers import Flatten
from mindplm.nn.loss import IGNORE


class Scale(nn.Cell):
    """x * scale."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def construct(self, x):
        return x * self.scale


class MaskColumns(nn.Cell):
    """Logits in fp32, those of rows beyond the vocabulary out of the race."""

    def construct(self, logits_nv, real_v):
        return masked(logits_nv, real_v.expand_dims(0) > 0)


class ShiftedExp(nn.Cell):
    """exp(x - top), where top is constant in the backward pass."""

    def construct(self, x_nv, top_n1):
        return ops.exp(x_nv - ops.stop_gradient(top_n1))


class InTable(nn.Cell):
    """Rows of the table to look labels up in; 0 for extra classes and where there is no label."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num = num_classes

    def construct(self, labels_n):
        inside = ops.logical_and(labels_n >= 0, labels_n < self.num)
        return ops.where(inside, labels_n, ops.zeros_like(labels_n))


class CloseNll(nn.Cell):
    """Losses from the sum over the table, the label's own row, and the extra classes."""

    def __init__(self, scale: float, num_classes: int):
        super().__init__()
        self.scale, self.num = scale, num_classes
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, hidden_nd, extra_ed, num_extra_1, labels_n, own_nd, top_n1, total_n1):
        real = one_below(extra_ed.shape[0], num_extra_1)
        extra = masked(self.product(hidden_nd, extra_ed), real.expand_dims(0))
        shift = ops.stop_gradient(ops.maximum(top_n1, ops.amax(extra, -1, True)))
        from_table = total_n1 * ops.exp(ops.stop_gradient(top_n1) - shift)
        lse = shift + ops.log(from_table + ops.exp(extra - shift).sum(-1, keepdims=True))
        in_table = (labels_n < self.num).expand_dims(1)
        wide = hidden_nd.astype(ms.float32) * own_nd.astype(ms.float32)
        of_table = wide.sum(-1, keepdims=True) * self.scale
        place = ops.clamp(labels_n - self.num, min=0).expand_dims(1)
        own = ops.where(in_table, of_table, ops.gather_d(extra, 1, place))
        return (lse - own).squeeze(1)


class FinishNll(nn.Cell):
    """Losses from the sum over the table and the label's own row."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def construct(self, hidden_nd, own_nd, top_n1, total_n1):
        wide = hidden_nd.astype(ms.float32) * own_nd.astype(ms.float32)
        lse = ops.stop_gradient(top_n1) + ops.log(total_n1)
        return (lse - wide.sum(-1, keepdims=True) * self.scale).squeeze(1)


class Column(nn.Cell):
    """Numbers of the classes, [V] or [1, V], as a table of width 1."""

    def construct(self, bias_v):
        return bias_v.reshape((-1, 1))


class Less(nn.Cell):
    """Losses [N] less numbers [N, 1]."""

    def construct(self, nll_n, own_n1):
        return nll_n - own_n1.astype(ms.float32).squeeze(1)


class TableNll(nn.Cell):
    """Losses of rows under a table [V, D], and a second small one or biases.

    Args:
        scale: Factor on the products with the first table.
        num_classes: Classes of the first table.
        num_rows: Its rows; those from num_classes on are padding.
        extended: Whether there is a second table.
        biased: Whether the classes of the first table have biases; not with a second one.
    """

    def __init__(
        self,
        scale: float,
        num_classes: int,
        num_rows: int,
        *,
        extended: bool = False,
        biased: bool = False,
    ):
        super().__init__()
        self.extended, self.biased = extended, biased
        self.real_v = Tensor((np.arange(num_rows) < num_classes).astype(np.int32))
        self.scaled = Scale(scale)
        self.product = ops.MatMul(transpose_b=True)
        self.real = MaskColumns()
        self.top = ops.ReduceMax(keep_dims=True)
        self.exp = ShiftedExp()
        self.total = ops.ReduceSum(keep_dims=True)
        self.in_table = InTable(num_classes)
        self.gather = ops.Gather()
        if extended:
            self.close = CloseNll(scale, num_classes)
        else:
            self.finish = FinishNll(scale)
        if biased:
            self.add_bias, self.less = Merge(), Less()
            self.column, self.gather_bias = Column(), ops.Gather()

    def construct(self, hidden_nd, table_vd, labels_n, *more):
        """fp32 [N].

        Args:
            hidden_nd: Rows to project.
            table_vd: The first table.
            labels_n: int32; they count the classes of the second table from num_classes on.
            more: The second table [E, D] and its number of classes, int32 [1]; or biases [V].
        """
        logits_nv = self.product(self.scaled(hidden_nd), table_vd)
        if self.biased:
            logits_nv = self.add_bias(logits_nv, more[0])
        logits_nv = self.real(logits_nv, self.real_v)
        top_n1 = self.top(ops.stop_gradient(logits_nv), 1)
        total_n1 = self.total(self.exp(logits_nv, top_n1), 1)
        place_n = self.in_table(labels_n)
        own_nd = self.gather(table_vd, place_n, 0)
        if self.extended:
            return self.close(hidden_nd, more[0], more[1], labels_n, own_nd, top_n1, total_n1)
        nll_n = self.finish(hidden_nd, own_nd, top_n1, total_n1)
        if self.biased:
            nll_n = self.less(nll_n, self.gather_bias(self.column(more[0]), place_n, 0))
        return nll_n


class Weigh(nn.Cell):
    """Losses times the first of some numbers, zero where there is no label."""

    def construct(self, nll_n, labels_n, numbers):
        return ops.where(labels_n != IGNORE, nll_n * numbers[:1], ops.zeros_like(nll_n))


class ShardedLoss(nn.Cell):
    """The training cell that the shard plans of most families are laid over.

    The sum of the token losses times a factor, as one scalar: the factor multiplies every loss, for
    a scalar, the sum, must be what the network ends with.

    Args:
        model: Network with `wanted`, columns -> (rows to project [N, D], labels [N]), `classes`,
            () -> (table, and what `TableNll` takes more), and `blocks`.
        num_classes: Classes of the table, which may have more rows.
        scale: Factor on the products with it.
        extended, biased: As of `TableNll`.
    """

    def __init__(
        self,
        model: Any,
        num_classes: int,
        *,
        scale: float = 1.0,
        extended: bool = False,
        biased: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.model = model
        rows = model.classes()[0].shape[0]
        self.nll = TableNll(scale, num_classes, rows, extended=extended, biased=biased)
        self.weigh, self.total = Weigh(), ops.ReduceSum()
        for _, cell in model.cells_and_names():
            if isinstance(cell, Flatten):
                cell.on = True

    def construct(self, numbers, *columns):
        """fp32 scalar.

        Args:
            numbers: fp32 vector, its first value a factor on every loss.
            columns: Those of the family's batches, in their order.
        """
        wanted_nd, labels_n = self.model.wanted(*columns)
        classes = self.model.classes()
        nll_n = self.nll(wanted_nd, classes[0], labels_n, *classes[1:])
        return self.total(self.weigh(nll_n, labels_n, numbers))
