"""Token losses, returned as sums and counts."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindplm.nn.kernels import column_sum, row_max, spread

IGNORE = -100


class ProjectedNll(nn.Cell):
    """Negative log-likelihood of labels under a projection, in nats, with its own gradient.

    The classes are the rows of a table and, behind them, the rows of a second small one. The two
    sets of logits are never joined and the one-hot labels never made: the gradient of the label
    goes straight to the row it belongs to. That leaves one pass over all logits in the backward
    direction; the framework's own gradient takes five.

    The incoming gradient must be >= 0, as that of a weighted sum with weights >= 0 is.

    Args:
        scale: Factor on the products with the first table.
        biased: Whether the classes of the first table have biases; if not, the tensor given for
            them is of any size and gets zeros for its gradient.
    """

    def __init__(self, scale: float, biased: bool = False):
        super().__init__()
        self.scale, self.biased = scale, biased
        self.product = ops.MatMul(transpose_b=True)
        self.plain = ops.MatMul()
        self.transposed = ops.MatMul(transpose_a=True)

    def construct(self, hidden_nd, table_vd, extra_ed, extra_mask_e, labels_n, bias_v):
        """Losses of all rows.

        Args:
            hidden_nd: Rows to project.
            table_vd: Table of the classes 0 .. V-1.
            extra_ed: Table of the classes V .. V+E-1; not scaled.
            extra_mask_e: Boolean, False for classes that do not exist.
            labels_n: int32, 0 .. V+E-1.
            bias_v: Biases of the classes 0 .. V-1.

        Returns:
            (losses fp32 [N], and what the backward pass needs: logits, extra logits, log-sum-exp).
        """
        num = table_vd.shape[0]
        base = self.product(hidden_nd * self.scale, table_vd)
        if self.biased:
            base = base + spread(bias_v, base.shape)
        extra = self.product(hidden_nd, extra_ed).astype(ms.float32)
        extra = ops.where(extra_mask_e.expand_dims(0), extra, Tensor(-1e30, ms.float32))
        base32 = base.astype(ms.float32)
        top = ops.maximum(row_max(base32), row_max(extra))
        total = ops.exp(base32 - spread(top, base32.shape)).sum(-1, keepdims=True)
        total = total + ops.exp(extra - top).sum(-1, keepdims=True)
        lse = top + ops.log(total)
        in_base = labels_n < num
        own_base = ops.gather_d(base, 1, ops.where(in_base, labels_n, 0).expand_dims(1))
        own_extra = ops.gather_d(extra, 1, ops.where(in_base, 0, labels_n - num).expand_dims(1))
        own = ops.where(in_base.expand_dims(1), own_base.astype(ms.float32), own_extra)
        return (lse - own).squeeze(1), base, extra, lse

    def bprop(self, hidden_nd, table_vd, extra_ed, extra_mask_e, labels_n, bias_v, out, grads):
        num = table_vd.shape[0]
        _, base, extra, lse = out
        grad_n1 = grads[0].expand_dims(1)
        # exp(logit - shift) is the probability times the incoming gradient
        log_grad = ops.log(ops.maximum(grad_n1, Tensor(1e-37, ms.float32)))
        shift = ops.where(grad_n1 > 0, lse - log_grad, Tensor(1e30, ms.float32))
        p_base = ops.exp(base.astype(ms.float32) - spread(shift, base.shape)).astype(base.dtype)
        p_extra = ops.exp(extra - shift).astype(hidden_nd.dtype)
        in_base = labels_n < num
        row = ops.where(in_base, labels_n, 0)
        extra_row = ops.where(in_base, 0, labels_n - num)
        weight = grad_n1.astype(hidden_nd.dtype)
        base_weight = ops.where(in_base.expand_dims(1), weight, 0.0) * self.scale
        extra_weight = ops.where(in_base.expand_dims(1), 0.0, weight)
        d_hidden = self.plain(p_base, table_vd) * self.scale + self.plain(p_extra, extra_ed)
        d_hidden = d_hidden - ops.gather(table_vd, row, 0) * base_weight
        d_hidden = d_hidden - ops.gather(extra_ed, extra_row, 0) * extra_weight
        d_table = self.transposed(p_base, hidden_nd * self.scale)
        d_table = ops.tensor_scatter_add(d_table, row.expand_dims(1), hidden_nd * -base_weight)
        d_extra = self.transposed(p_extra, hidden_nd)
        d_extra = ops.tensor_scatter_add(
            d_extra, extra_row.expand_dims(1), hidden_nd * -extra_weight
        )
        d_bias = ops.zeros_like(bias_v)
        if self.biased:
            own = ops.where(in_base, -grads[0], 0.0)
            d_bias = ops.tensor_scatter_add(column_sum(p_base), row.expand_dims(1), own)
            d_bias = d_bias.astype(bias_v.dtype)
        none = ops.zeros_like(extra_mask_e), ops.zeros_like(labels_n)
        return (d_hidden, d_table, d_extra, *none, d_bias)


class TokenNll(nn.Cell):
    """`ProjectedNll` over one table alone: logits = hidden W^T * scale, or + b.

    Args:
        scale: Factor on the products.
        biased: Whether the classes have biases.
    """

    def __init__(self, scale: float = 1.0, biased: bool = False):
        super().__init__()
        self.nll = ProjectedNll(scale, biased)
        self.nothing = Tensor([False], ms.bool_)
        self.no_bias = Tensor([0.0], ms.float32)

    def construct(self, hidden_nd, table_vd, labels_n, bias_v=None):
        """Losses fp32 [N] in nats; those of rows whose label is IGNORE mean nothing."""
        bias_v = self.no_bias if bias_v is None else bias_v
        extra = ops.zeros((1, hidden_nd.shape[1]), hidden_nd.dtype)
        labels_n = ops.clamp(labels_n, min=0)
        return self.nll(hidden_nd, table_vd, extra, self.nothing, labels_n, bias_v)[0]


def take_positions(hidden_btd, positions_bp):
    """Rows of a batch at chosen positions, flat [B * P, D]."""
    batch, num = positions_bp.shape
    width = hidden_btd.shape[2]
    place = positions_bp.expand_dims(2).broadcast_to((batch, num, width))
    return ops.gather_d(hidden_btd, 1, place).reshape((batch * num, width))


class Pick(nn.Cell):
    """Rows that have a target, [B * P, D], and the labels of all places, [B * P]."""

    def construct(self, hidden_btd, target_pos_bp, targets_bp):
        """Of states [B, T, D] or [B * T, D]."""
        width = hidden_btd.shape[-1]
        hidden_btd = hidden_btd.reshape((target_pos_bp.shape[0], -1, width))
        return take_positions(hidden_btd, target_pos_bp), targets_bp.reshape((-1,))


class Labels(nn.Cell):
    """The labels of all places, [B * T]."""

    def construct(self, targets_bt):
        return targets_bt.reshape((-1,))


def masked_sums(nll_n, labels_n):
    """Sums the losses of labelled rows.

    The sum and the count are returned apart: dividing once, after all micro-batches and devices
    are added up, weighs every token equally however the batch was cut.

    Returns:
        (loss_sum, num_tokens), two fp32 scalars; the loss is in nats.
    """
    real = (labels_n != IGNORE).astype(ms.float32)
    return (nll_n * real).sum(), real.sum()


def distance(logits_nv, wanted_nv, temperature: float = 1.0):
    """Divergence KL(wanted || own) of two distributions times the squared temperature, fp32 [N].

    Args:
        logits_nv: Scores of the model that learns.
        wanted_nv: Scores of the model that it follows.
        temperature: Divisor of both.
    """
    own = ops.log_softmax(logits_nv.astype(ms.float32) / temperature, -1)
    wanted = ops.log_softmax(wanted_nv.astype(ms.float32) / temperature, -1)
    return (ops.exp(wanted) * (wanted - own)).sum(-1) * (temperature * temperature)


def soft_nll(logits_nv, wanted_nv):
    """Cross-entropy -sum(p_wanted log p_own) of two distributions, fp32 [N]."""
    own = ops.log_softmax(logits_nv.astype(ms.float32), -1)
    return -(ops.softmax(wanted_nv.astype(ms.float32), -1) * own).sum(-1)
