"""What `kernels` compares: the framework's operators and our formulation of each computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from mindspore import float32, ops

from mindplm.models.cpm_bee.cell import MaskedBias, bias_rows
from mindplm.nn import kernels
from mindplm.nn.layers import LayerNorm, RMSNorm
from mindplm.nn.loss import TokenNll

_EPS = 1e-6
_HEADS = 12


class Case(NamedTuple):
    """Two ways to the same values.

    Fields:
        name: What is computed.
        plain: By the framework's operators.
        ours: By ours.
        inputs: Arrays; those of floats have gradients.
        backward: Whether the gradients are computed, instead of the values.
    """

    name: str
    plain: Callable[..., Any]
    ours: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    backward: bool


def cases(scale: int) -> Iterator[Case]:
    """All of them, with sizes divided by the scale."""
    drawn = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return drawn.standard_normal(shape, np.float32)

    def below(limit: int, *shape: int) -> np.ndarray:
        return drawn.integers(0, limit, shape, np.int32)

    rows, width, inner, vocab, tokens = (n // scale for n in (2048, 768, 2048, 86583, 512))
    x_nd, x_nf, row_d = normal(rows, width), normal(rows, inner), normal(width)
    pairs = (4, tokens, tokens)
    yield Case("gelu", _gelu, kernels.gelu, (x_nf,), True)
    rms, layer = RMSNorm(width, _EPS, dtype=float32), LayerNorm(width, _EPS, dtype=float32)
    yield Case("RMS norm", _rms_norm, rms.norm, (x_nd, row_d), True)
    yield Case("layer norm", _layer_norm, layer.norm, (x_nd, row_d, normal(width)), True)
    logits = normal(4, _HEADS, tokens, tokens)
    yield Case("softmax", _softmax, kernels.Softmax(), (logits,), True)
    table = (normal(1000, _HEADS), below(1000, *pairs), drawn.random(pairs) < 0.5)
    yield Case("bias with its mask", _masked_bias, MaskedBias(), table, True)
    yield Case("heads apart", _swapped, kernels.swapped, (normal(4, tokens, _HEADS, 64),), False)
    yield Case("rows times a row", _times, _times_spread, (x_nf, normal(inner)), False)
    yield Case("maxima of rows", _row_max, kernels.row_max, (normal(tokens, vocab),), False)
    yield Case("sums of columns", _column_sum, kernels.column_sum, (x_nf,), False)
    table_vd = normal(vocab, width)
    yield Case("sum of squares", _sum_squares, kernels.sum_squares, (x_nd,), False)
    hidden = (normal(tokens, width), table_vd, below(vocab, tokens))
    yield Case("loss and projection", _loss, TokenNll(), hidden, True)
    for few in (8, 16):
        pair = (normal(few, inner), normal(width, inner))
        yield Case(f"product of {few} rows", _product, _projected, pair, False)


_product = ops.MatMul(transpose_b=True)
_standard = ops.LayerNorm(1, 1, _EPS)


def _projected(x_nd, weight_od):
    return kernels.projected(_product, x_nd, weight_od, True)


def _gelu(x):
    return ops.gelu(x, approximate="none")


def _rms_norm(x_nd, weight_d):
    return x_nd * ops.rsqrt(ops.mean(x_nd * x_nd, -1, True) + _EPS) * weight_d


def _layer_norm(x_nd, weight_d, bias_d):
    return _standard(x_nd, weight_d, bias_d)[0]


def _softmax(x_bhts):
    return ops.softmax(x_bhts, -1)


def _masked_bias(table_rh, index_bts, mask_bts):
    return kernels.masked(bias_rows(table_rh, index_bts), mask_bts.expand_dims(1))


def _swapped(x_bthk):
    return x_bthk.transpose((0, 2, 1, 3))


def _times(x_nd, row_d):
    return x_nd * row_d


def _times_spread(x_nd, row_d):
    return x_nd * kernels.spread(row_d, x_nd.shape)


def _row_max(x_nd):
    return ops.amax(x_nd, -1, True)


def _column_sum(x_nd):
    return x_nd.sum(0)


def _sum_squares(x_nd):
    return (x_nd * x_nd).sum()


def _loss(hidden_nd, table_vd, labels_n):
    logits_nv = ops.matmul(hidden_nd, table_vd.T)
    return ops.cross_entropy(logits_nv, labels_n, reduction="none")
