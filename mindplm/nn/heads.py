"""Heads over the states of any network: the class of a text, tags of tokens, ends of a span.

Suffixes of tensor names: b rows, t positions, d width of the states, c classes, p targets of a row,
n flattened b*p.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import nn, ops

from mindplm.nn.crf import Crf
from mindplm.nn.dropout import Dropout
from mindplm.nn.layers import Linear
from mindplm.nn.loss import IGNORE, masked_sums, take_positions


class Head(nn.Cell):
    """out(x), or with an inner layer out(tanh(dense(x))); scores are fp32.

    Args:
        width: Of the states.
        num_classes: Scores of a state.
        inner: Whether there is an inner layer.
        std: Standard deviation of the first weights.
        dtype: Type of the weights.

    Source: fastnlp/CPT, the classes of its fine-tuning programs; Devlin et al. 2018, section 4.
    """

    def __init__(self, width: int, num_classes: int, *, inner: bool, std: float, dtype):
        super().__init__()
        sizes: dict[str, Any] = {"bias": True, "std": std, "dtype": dtype}
        self.has_inner, self.drop = inner, Dropout()
        if inner:
            self.dense = Linear(width, width, **sizes)
        self.out = Linear(width, num_classes, **sizes)

    def construct(self, x):
        if self.has_inner:
            x = ops.tanh(self.dense(x))
        return self.out(self.drop(x)).astype(ms.float32)


class HeadedModel(nn.Cell):
    """A network with a head; the network's parameters keep their names, the head's are `task.*`.

    Args:
        states: Cell (ids, spans int32 [B, T]) -> (state of each text [B, D], states of the tokens
            [B, T, D]); its attribute `model` is the network, `width` is D.
        form: text, tokens or span: what is scored.
        num_classes: Scores of a text or token.
        std: Standard deviation of the first weights.
        crf: Whether tags are scored together, by a field that is called `crf.*`.
        dtype: Type of the weights.
    """

    def __init__(
        self, states: Any, form: str, num_classes: int, *, std: float, crf: bool = False, dtype
    ):
        super().__init__(auto_prefix=False)
        self.states, self.model = states, states.model
        self.of_text = form == "text"
        self.task = Head(states.width, num_classes, inner=self.of_text, std=std, dtype=dtype)
        self.task.update_parameters_name("task.")
        field: Any = Crf(num_classes, ms.float32) if crf else None
        self.crf = field
        if crf:
            field.update_parameters_name("crf.")

    @property
    def blocks(self):
        """The network's blocks, for whoever recomputes them."""
        return self.model.blocks

    def construct(self, ids_bt, spans_bt):
        """Scores fp32, [B, C] of texts or [B, T, C] of tokens; spans are 0 for padding, else 1."""
        text_bd, tokens_btd = self.states(ids_bt, spans_bt)
        return self.task(text_bd if self.of_text else tokens_btd)


def class_nll(scores_nc, labels_n):
    """Cross-entropy fp32 [N] in nats; that of rows whose label is IGNORE means nothing."""
    log_nc = ops.log_softmax(scores_nc, -1)
    return -ops.gather_d(log_nc, 1, ops.clamp(labels_n, min=0).expand_dims(1))[:, 0]


class CrfLoss(nn.Cell):
    """Sum of the losses of rows of tags under a conditional random field, and their tokens.

    construct takes what `HeadLoss` takes.

    Args:
        model: The network with its head and field.
    """

    def __init__(self, model: HeadedModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_bt, spans_bt, target_pos, targets):
        scores = self.model(ids_bt, spans_bt)
        taken = take_positions(scores, target_pos).reshape((*target_pos.shape, scores.shape[2]))
        real = (targets != IGNORE).astype(ms.float32)
        nll_b = self.model.crf(ops.log_softmax(taken, -1), ops.clamp(targets, min=0), real)
        return (nll_b * real[:, 0]).sum(), real.sum()


class HeadLoss(nn.Cell):
    """Sum and count of the losses of a head; the training cell.

    construct takes ids, spans int32 [B, T]; target_pos, targets int32 [B, P]. Of a text the first
    target is its class; of tokens target_pos names those with a class; of a span the two targets
    are the places of its ends.

    Args:
        model: The network with its head.
        form: As of the head.
    """

    def __init__(self, model: HeadedModel, form: str):
        super().__init__(auto_prefix=False)
        self.model, self.form = model, form

    def construct(self, ids_bt, spans_bt, target_pos, targets):
        scores = self.model(ids_bt, spans_bt)
        labels_n = targets.reshape((-1,))
        if self.form == "text":
            labels_n = targets[:, 0]
        elif self.form == "tokens":
            scores = take_positions(scores, target_pos)
        else:
            scores = scores.swapaxes(1, 2).reshape((-1, ids_bt.shape[1]))
        return masked_sums(class_nll(scores, labels_n), labels_n)
