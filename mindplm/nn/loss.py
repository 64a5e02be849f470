"""Token losses, returned as sums and counts."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

IGNORE = -100


class TokenNll(nn.Cell):
    """Negative log-likelihood of each row's label, in nats; logits [N, C], labels [N] in range.

    The gradient is composed here: the framework's own costs several times as much on CPU.
    """

    def construct(self, logits_nv, labels_n):
        top = ops.amax(logits_nv, -1, True)
        shifted = logits_nv - top
        total = ops.log(ops.exp(shifted).sum(-1))
        return total - ops.gather_d(shifted, 1, labels_n.expand_dims(1)).squeeze(1)

    def bprop(self, logits_nv, labels_n, out, grad_n):
        own = ops.gather_d(logits_nv, 1, labels_n.expand_dims(1))
        # exp(logit - logsumexp), where logsumexp = out + logit of the label
        grad = ops.exp(logits_nv - (own + out.expand_dims(1))) * grad_n.expand_dims(1)
        classes = ops.arange(logits_nv.shape[1]).astype(labels_n.dtype)
        hit = labels_n.expand_dims(1) == classes.expand_dims(0)
        grad = grad - ops.where(hit, grad_n.expand_dims(1), ops.zeros_like(grad_n).expand_dims(1))
        return grad, ops.zeros_like(labels_n)


def masked_sums(nll_n, labels_n):
    """Sums the losses of labelled rows.

    The sum and the count are returned apart: dividing once, after all micro-batches and devices
    are added up, weighs every token equally however the batch was cut.

    Returns:
        (loss_sum, num_tokens), two fp32 scalars; the loss is in nats.
    """
    real = (labels_n != IGNORE).astype(ms.float32)
    return (nll_n * real).sum(), real.sum()
