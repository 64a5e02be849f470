"""A conditional random field over the scores of tokens: its loss, and the best legal tags.

Suffixes of tensor names: b rows, t positions, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import nn, ops

from mindplm.nn.layers import parameter

ILLEGAL = -10000.0
"""Score of a step from one tag to another that cannot follow it."""


class Crf(nn.Cell):
    """Scores of a row's tags: those of the tokens, of each step, and of the first and last tag.

    All steps are possible in the loss; only `best_tags` keeps to the legal ones.

    Args:
        num_classes: Tags.
        dtype: Type of the weights, which begin with zeros.

    Source: Lafferty et al. 2001; the form of fastNLP, which CPT's program for names uses.
    """

    def __init__(self, num_classes: int, dtype):
        super().__init__()
        self.steps = parameter((num_classes, num_classes), dtype, 0.0)
        self.begin = parameter((num_classes,), dtype, 0.0)
        self.end = parameter((num_classes,), dtype, 0.0)

    def construct(self, scores_btc, tags_bt, real_bt):
        """Minus the log-probability of each row's tags, fp32 [B].

        Args:
            scores_btc: Log-probabilities of the tags of the tokens, fp32.
            tags_bt: int32 tags; of padding any.
            real_bt: fp32, 1 for tokens, 0 for the padding behind them; the first is a token.
        """
        own_bt = ops.gather_d(scores_btc, 2, tags_bt.expand_dims(2)).squeeze(2) * real_bt
        taken_bt = self.steps[tags_bt[:, :-1], tags_bt[:, 1:]] * real_bt[:, 1:]
        last_b1 = real_bt.sum(1, keepdims=True).astype(tags_bt.dtype) - 1
        last_b = ops.gather_d(tags_bt, 1, last_b1).squeeze(1)
        ends_b = ops.gather(self.begin, tags_bt[:, 0], 0) + ops.gather(self.end, last_b, 0)
        wanted_b = own_bt.sum(1) + taken_bt.sum(1) + ends_b
        total_bc = scores_btc[:, 0] + self.begin
        for place in range(1, scores_btc.shape[1]):
            grown_bcc = total_bc.expand_dims(2) + self.steps.expand_dims(0)
            grown_bc = ops.logsumexp(grown_bcc, 1) + scores_btc[:, place]
            here_b1 = real_bt[:, place].expand_dims(1)
            total_bc = grown_bc * here_b1 + total_bc * (1 - here_b1)
        return ops.logsumexp(total_bc + self.end, 1) - wanted_b


def legal_steps(classes: Sequence[str]) -> np.ndarray:
    """Which tag may follow which: I-x only B-x and I-x.

    Args:
        classes: O, B-x and I-x for each type x.

    Returns:
        fp32 [classes + 1, classes], 0 or ILLEGAL; the last row is for the first tag of all.
    """
    found = np.zeros((len(classes) + 1, len(classes)), np.float32)
    for i, before in enumerate([*classes, ""]):
        for j, after in enumerate(classes):
            if after[:1] == "I" and before[2:] != after[2:]:
                found[i, j] = ILLEGAL
    return found


def best_tags(
    scores_tc: np.ndarray,
    steps_cc: np.ndarray,
    begin_c: np.ndarray,
    end_c: np.ndarray,
    legal: np.ndarray,
) -> tuple[list[int], float]:
    """The likeliest legal tags of a row without padding, and their score (Viterbi).

    Args:
        scores_tc: As of `Crf`.
        steps_cc, begin_c, end_c: Its weights.
        legal: From `legal_steps`.
    """
    steps = steps_cc + legal[:-1]
    total = scores_tc[0] + begin_c + legal[-1]
    links = []
    for own in scores_tc[1:]:
        grown = total[:, None] + steps
        links.append(grown.argmax(0))
        total = grown.max(0) + own
    total = total + end_c
    tags = [int(total.argmax())]
    for link in reversed(links):
        tags.append(int(link[tags[-1]]))
    return tags[::-1], float(total.max())
