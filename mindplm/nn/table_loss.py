"""Token losses over a table whose rows are spread over devices.

The same losses as `mindplm.nn.loss.ProjectedNll`, composed of operators that a compiler can cut:
products and lookups in the table, a maximum and a sum over its rows; the cells between them need
no communication. Gradients are the framework's.

Suffixes of tensor names: n rows, d hidden, v rows of the table, e extra classes.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.nn.kernels import masked, one_below


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


class TableNll(nn.Cell):
    """Losses of rows under a table [V, D] and a second small one.

    Args:
        scale: Factor on the products with the first table.
        num_classes: Classes of the first table.
        num_rows: Its rows; those from num_classes on are padding.
    """

    def __init__(self, scale: float, num_classes: int, num_rows: int):
        super().__init__()
        self.real_v = Tensor((np.arange(num_rows) < num_classes).astype(np.int32))
        self.scaled = Scale(scale)
        self.product = ops.MatMul(transpose_b=True)
        self.real = MaskColumns()
        self.top = ops.ReduceMax(keep_dims=True)
        self.exp = ShiftedExp()
        self.total = ops.ReduceSum(keep_dims=True)
        self.in_table = InTable(num_classes)
        self.gather = ops.Gather()
        self.close = CloseNll(scale, num_classes)

    def construct(self, hidden_nd, table_vd, extra_ed, num_extra_1, labels_n):
        """fp32 [N]; labels count the extra classes from num_classes on."""
        logits_nv = self.real(self.product(self.scaled(hidden_nd), table_vd), self.real_v)
        top_n1 = self.top(ops.stop_gradient(logits_nv), 1)
        total_n1 = self.total(self.exp(logits_nv, top_n1), 1)
        own_nd = self.gather(table_vd, self.in_table(labels_n), 0)
        return self.close(hidden_nd, extra_ed, num_extra_1, labels_n, own_nd, top_n1, total_n1)
