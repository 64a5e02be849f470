"""The GPT-1 network, and the cell of its fine-tuning tasks.

Suffixes of tensor names: b examples, a sequences of an example, t positions, d hidden, n flattened.
"""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
from mindspore import nn, ops

from mindplm.models.gpt1.config import Gpt1Config
from mindplm.models.parts import causal_model, post_norm_blocks
from mindplm.nn.causal import CausalLoss, CausalModel
from mindplm.nn.dropout import Dropout
from mindplm.nn.kernels import gelu_tanh
from mindplm.nn.layers import Linear
from mindplm.nn.table_loss import ShardedLoss


def network(config: Gpt1Config, dtype=ms.float32) -> CausalModel:
    """The model: post-norm blocks, no norm at the end.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".
    """
    blocks = post_norm_blocks(config, gelu_tanh, dtype)
    classes = config.position_classes
    return causal_model(config, blocks, None, position_classes=classes, dtype=dtype)


def sharded(config: Gpt1Config, dtype, vocab_rows: int, stages: tuple[int, ...]) -> ShardedLoss:
    """The training cell that a shard plan is laid over."""
    model = network(replace(config, vocab_size=vocab_rows), dtype)
    return ShardedLoss(model, config.vocab_size, extended=config.position_classes)


class TaskModel(nn.Cell):
    """A language model with a linear head on the states at the extract marks.

    Args:
        model: The language model; its parameters keep their names.
        num_outputs: Width of the head.
        choose: The head scores each sequence of an example and they compete; otherwise the states
            of an example's sequences are added and the head scores the classes.
        std: Standard deviation of the head's first weights.
    """

    def __init__(self, model: CausalModel, num_outputs: int, *, choose: bool, std: float = 0.02):
        super().__init__(auto_prefix=False)
        self.model = model
        width = model.embed.weight.shape[1]
        self.head = Linear(width, num_outputs, bias=True, std=std, dtype=model.dtype)
        self.head.update_parameters_name("head.")
        self.choose, self.drop = choose, Dropout()

    @property
    def blocks(self):
        """The language model's blocks, for whoever recomputes them."""
        return self.model.blocks

    def hidden(self, ids_bat, length_ba):
        """Hidden states of all sequences, [B * A, T, D]."""
        num = ids_bat.shape[2]
        ids_nt = ids_bat.reshape((-1, num))
        order_1t = ops.arange(num).astype(ms.int32).expand_dims(0)
        real_nt = (order_1t < length_ba.reshape((-1, 1))).astype(ms.int32)
        return self.model(ids_nt, order_1t.broadcast_to(ids_nt.shape), real_nt)

    def scores(self, hidden_ntd, extract_ba):
        """Scores of the classes or choices, fp32 [B, C]."""
        batch, num = extract_ba.shape
        width = hidden_ntd.shape[2]
        place = extract_ba.reshape((-1, 1, 1)).broadcast_to((batch * num, 1, width))
        state_bad = ops.gather_d(hidden_ntd, 1, place).reshape((batch, num, width))
        if self.choose:
            return self.head(self.drop(state_bad)).reshape((batch, -1)).astype(ms.float32)
        return self.head(self.drop(state_bad.sum(1))).astype(ms.float32)

    def construct(self, ids_bat, length_ba, extract_ba):
        """Scores of the classes or choices, fp32 [B, C].

        Args:
            ids_bat: Sequences of the examples, padded with anything.
            length_ba: Their tokens.
            extract_ba: The place of each one's extract mark.
        """
        return self.scores(self.hidden(ids_bat, length_ba), extract_ba)


class TaskLoss(nn.Cell):
    """L3 = L2 + lambda * L1 summed over examples, and their number; the fine-tuning cell.

    L2 is the cross-entropy of the label, or the squared error of one output; L1 the mean loss of
    a sequence's tokens after the first, averaged over the example's sequences. construct takes ids
    int32 [B, A, T]; length, extract int32 [B, A]; label [B], int32 (-100: no example) or fp32.

    Args:
        model: The network with its head.
        lm_weight: Lambda; 0: no L1.
        regression: The head has one output that should equal the label.

    Source: Radford et al. 2018, section 3.2; averages as in openai/finetune-transformer-lm.
    """

    def __init__(self, model: TaskModel, *, lm_weight: float = 0.5, regression: bool = False):
        super().__init__(auto_prefix=False)
        self.model = model
        self.lm = CausalLoss(model.model)
        self.lm_weight, self.regression = lm_weight, regression

    def language(self, hidden_ntd, ids_bat, length_ba):
        """Mean token loss of every sequence, fp32 [B, A]."""
        batch, num, count = ids_bat.shape
        labels_nt = ids_bat.reshape((batch * num, count))[:, 1:]
        states_nd = hidden_ntd[:, :-1].reshape((-1, hidden_ntd.shape[2]))
        nll = self.lm.losses(states_nd, labels_nt.reshape((-1,))).reshape(labels_nt.shape)
        order_1t = ops.arange(count - 1).astype(ms.int32).expand_dims(0)
        last_n1 = length_ba.reshape((-1, 1)) - 1
        real_nt = (order_1t < last_n1).astype(ms.float32)
        mean_n = (nll * real_nt).sum(-1) / ops.maximum(real_nt.sum(-1), 1.0)
        return mean_n.reshape((batch, num))

    def supervised(self, scores_bc, label_b):
        """Loss of every example, fp32 [B]."""
        if self.regression:
            error = scores_bc[:, 0] - label_b.astype(ms.float32)
            return error * error
        top = scores_bc.max(-1, keepdims=True)
        total = ops.log(ops.exp(scores_bc - top).sum(-1)) + top[:, 0]
        label = ops.clamp(label_b, min=0).expand_dims(1)
        return total - ops.gather_d(scores_bc, 1, label)[:, 0]

    def parts(self, ids_bat, length_ba, extract_ba, label_b):
        """(L2 of every example, L1 of every example), fp32 [B] each."""
        hidden = self.model.hidden(ids_bat, length_ba)
        supervised = self.supervised(self.model.scores(hidden, extract_ba), label_b)
        if self.lm_weight == 0:
            return supervised, ops.zeros_like(supervised)
        return supervised, self.language(hidden, ids_bat, length_ba).mean(-1)

    def construct(self, ids_bat, length_ba, extract_ba, label_b):
        task, language = self.parts(ids_bat, length_ba, extract_ba, label_b)
        real = (label_b != -100).astype(ms.float32)
        return ((task + language * self.lm_weight) * real).sum(), real.sum()
