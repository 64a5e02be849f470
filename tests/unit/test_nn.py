"""Layers and kernels against plain formulas: values and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindplm.models.cpm_bee.cell import MaskedBias, bias_rows
from mindplm.nn.attention import Attention
from mindplm.nn.init import initialise
from mindplm.nn.kernels import (
    MASKED,
    Softmax,
    column_sum,
    gelu,
    masked,
    row_max,
    spread,
    sum_squares,
    swapped,
)
from mindplm.nn.layers import LayerNorm, Linear, RMSNorm, turn_products
from mindplm.nn.loss import IGNORE, ProjectedNll, TokenNll, masked_sums, take_positions
from mindplm.nn.mask import packed_mask, span_mask

ROWS, WIDTH, CLASSES, EXTRA = 7, 12, 19, 4
NO_BIAS = Tensor(np.zeros(1, np.float32))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape).astype(np.float32)


def gradients(function, *arrays: np.ndarray, others: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    """Gradients of a scalar function of (*arrays, *others) by the arrays, compiled."""
    places = tuple(range(len(arrays)))
    run = ms.jit(ops.grad(function, places))
    found = run(*(Tensor(array) for array in (*arrays, *others)))
    found = found if isinstance(found, tuple) else (found,)
    return [item.asnumpy() for item in found]


def finite_differences(function, arrays: list[np.ndarray], step: float = 1e-6) -> list[np.ndarray]:
    """Central differences of a scalar NumPy function, in float64."""
    arrays = [array.astype(np.float64) for array in arrays]
    found = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for place in np.ndindex(*array.shape):
            kept = array[place]
            array[place] = kept + step
            above = function(*arrays)
            array[place] = kept - step
            below = function(*arrays)
            array[place] = kept
            gradient[place] = (above - below) / (2 * step)
        found.append(gradient)
    return found


# --- elementary functions -------------------------------------------------------------------------


def test_gelu_is_that_of_the_error_function():
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    erf = np.vectorize(math.erf)
    wide = x.astype(np.float64)
    wanted = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
    np.testing.assert_allclose(gelu(Tensor(x)).asnumpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(gelu(Tensor(x), 0.25).asnumpy(), wanted / 4, atol=1e-6)


def test_the_gradient_of_gelu_is_exact():
    x = np.linspace(-6, 6, 801, dtype=np.float32)
    wide = x.astype(np.float64)
    phi = 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
    wanted = phi + wide * np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)

    def loss(x):
        return gelu(x).sum()

    (found,) = gradients(loss, x)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
@pytest.mark.parametrize("shape", [(256, 1), (256,), (1, 256)])
def test_what_is_spread_combines_to_the_same_values(shape, dtype):
    """Large enough for what a CPU does with large operands."""
    wide, narrow = Tensor(normal(256, 256), dtype), Tensor(normal(*shape, seed=1), dtype)
    found = spread(narrow, wide.shape)
    assert found.shape == wide.shape and spread(narrow, (1, *shape)).shape == shape
    np.testing.assert_array_equal((wide * found).asnumpy(), (wide * narrow).asnumpy())


def test_swapped_axes_are_those_of_a_transpose_forward_and_backward():
    x, weight = normal(2, 64, 8, 64), normal(2, 8, 64, 64, seed=1)

    def total(x, weight):
        return (swapped(x) * weight).sum()

    np.testing.assert_array_equal(swapped(Tensor(x)).asnumpy(), x.transpose(0, 2, 1, 3))
    found = gradients(total, x, weight)
    np.testing.assert_array_equal(found[0], weight.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(found[1], x.transpose(0, 2, 1, 3))


def test_a_mask_in_the_table_gives_the_bias_and_gradient_of_a_choice():
    table, weight = normal(9, 3), normal(2, 3, 5, 5, seed=1)
    index = rng(2).integers(0, 9, (2, 5, 5)).astype(np.int32)
    mask = rng(3).random((2, 5, 5)) < 0.6
    bias = MaskedBias()

    def own(table, weight, index, mask):
        return (bias(table, index, mask) * weight).sum()

    def chosen(table, weight, index, mask):
        return (masked(bias_rows(table, index), mask.expand_dims(1)) * weight).sum()

    found, wanted = (
        gradients(function, table, weight, others=[index, mask]) for function in (own, chosen)
    )
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-6)


def test_sums_and_maxima_are_the_same_as_plain_ones():
    x = normal(33, 57)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(sum_squares(Tensor(x)).asnumpy(), (wide**2).sum(), rtol=1e-6)
    sums = column_sum(Tensor(x)).asnumpy()
    assert sums.shape == (57,) and sums.dtype == np.float32
    np.testing.assert_allclose(sums, wide.sum(0), atol=1e-5)
    np.testing.assert_array_equal(row_max(Tensor(x)).asnumpy(), x.max(-1, keepdims=True))
    half = Tensor(x).astype(ms.float16)
    assert sum_squares(half).dtype == column_sum(half).dtype == ms.float32


# --- softmax --------------------------------------------------------------------------------------


@pytest.fixture
def logits() -> np.ndarray:
    array = normal(2, 3, 5, 8) * 3
    array[:, :, 1, 2:] = MASKED  # most of a row masked
    array[:, :, 3, :] = MASKED  # all of it
    return array


def test_softmax_agrees_with_the_framework_forward_and_backward(logits):
    weights = Tensor(normal(*logits.shape, seed=1))
    ours = Softmax()

    def own(x):
        return (ours(x) * weights).sum()

    def plain(x):
        return (ops.softmax(x, axis=-1) * weights).sum()

    value = ours(Tensor(logits)).asnumpy()
    np.testing.assert_allclose(value, ops.softmax(Tensor(logits), axis=-1).asnumpy(), atol=1e-6)
    assert (value[:, :, 1, 2:] == 0).all()
    (found,), (wanted,) = gradients(own, logits), gradients(plain, logits)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (found[:, :, 1, 2:] == 0).all()


def test_softmax_of_half_precision_is_computed_in_fp32():
    x = normal(1, 1, 2, 6).astype(np.float16)
    softmax = Softmax()
    assert softmax(Tensor(x)).dtype == ms.float32

    def loss(x):
        return (softmax(x) ** 2).sum()

    (found,) = gradients(loss, x)
    assert found.dtype == np.float16 and np.isfinite(found).all()


# --- RMSNorm --------------------------------------------------------------------------------------


def numpy_rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, scale: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight * scale


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_rms_norm_and_its_gradient(scale):
    eps = 1e-3
    norm = RMSNorm(WIDTH, eps, scale=scale, dtype=ms.float32)
    weight, x, probe = (
        1 + 0.3 * normal(WIDTH, seed=2),
        normal(3, 4, WIDTH),
        normal(3, 4, WIDTH, seed=3),
    )
    norm.weight.set_data(Tensor(weight))
    wide = [a.astype(np.float64) for a in (x, weight)]
    np.testing.assert_allclose(
        norm(Tensor(x)).asnumpy(), numpy_rms_norm(*wide, eps, scale), atol=2e-6
    )

    fixed = Tensor(probe)

    def loss(x):
        return (norm(x) * fixed).sum()

    run = ms.jit(ops.grad(loss, 0, [norm.weight]))
    d_x, (d_weight,) = run(Tensor(x))
    wanted = finite_differences(
        lambda x, weight: (numpy_rms_norm(x, weight, eps, scale) * probe).sum(), [x, weight]
    )
    np.testing.assert_allclose(d_x.asnumpy(), wanted[0], atol=1e-5)
    np.testing.assert_allclose(d_weight.asnumpy(), wanted[1], atol=1e-5)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient():
    norm = RMSNorm(WIDTH, 1e-6, dtype=ms.float32)
    initialise(norm, 0)
    x = np.zeros((2, WIDTH), np.float32)
    assert (norm(Tensor(x)).asnumpy() == 0).all()

    def loss(x):
        return norm(x).sum()

    (found,) = gradients(loss, x)
    assert np.isfinite(found).all()


# --- LayerNorm and biases -------------------------------------------------------------------------


def numpy_layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * weight + bias


def test_layer_norm_and_its_gradient():
    norm = LayerNorm(WIDTH, 1e-3, dtype=ms.float32)
    weight, bias = 1 + 0.3 * normal(WIDTH, seed=2), normal(WIDTH, seed=4)
    x, probe = 2 + normal(3, 4, WIDTH), normal(3, 4, WIDTH, seed=3)
    norm.weight.set_data(Tensor(weight))
    norm.bias.set_data(Tensor(bias))
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    np.testing.assert_allclose(norm(Tensor(x)).asnumpy(), numpy_layer_norm(*wide), atol=2e-6)
    fixed = Tensor(probe)

    def loss(x):
        return (norm(x) * fixed).sum()

    d_x, (d_weight, d_bias) = ms.jit(ops.grad(loss, 0, [norm.weight, norm.bias]))(Tensor(x))
    wanted = finite_differences(lambda *a: (numpy_layer_norm(*a) * probe).sum(), [x, weight, bias])
    for found, expected in zip((d_x, d_weight, d_bias), wanted):
        np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [(2, 3), (4, 5)], ids=["few", "turned round"])
def test_a_linear_layer_with_bias_and_its_gradient(rows):
    layer = Linear(WIDTH, 5, bias=True, std=1.0, dtype=ms.float32)
    turn_products(layer)
    initialise(layer, 0)
    assert not layer.bias.asnumpy().any()
    weight, bias, x = layer.weight.asnumpy(), normal(5, seed=2), normal(*rows, WIDTH)
    layer.bias.set_data(Tensor(bias))
    probe = normal(*rows, 5, seed=1)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), x @ weight.T + bias, atol=1e-5)
    fixed = Tensor(probe)

    def loss(x):
        return (layer(x) * fixed).sum()

    d_x, (d_weight, d_bias) = ms.jit(ops.grad(loss, 0, [layer.weight, layer.bias]))(Tensor(x))
    np.testing.assert_allclose(d_x.asnumpy(), probe @ weight, atol=1e-5)
    flat = probe.reshape(-1, 5)
    np.testing.assert_allclose(d_weight.asnumpy(), flat.T @ x.reshape(-1, WIDTH), atol=1e-5)
    np.testing.assert_allclose(d_bias.asnumpy(), flat.sum(0), atol=1e-5)


def test_positions_are_taken_from_their_own_rows():
    hidden, places = normal(2, 5, 3), np.array([[4, 0], [1, 1]], np.int32)
    found = take_positions(Tensor(hidden), Tensor(places)).asnumpy()
    assert (found == np.stack([hidden[0, 4], hidden[0, 0], hidden[1, 1], hidden[1, 1]])).all()


# --- projected loss -------------------------------------------------------------------------------


class PlainNll(nn.Cell):
    """The same losses by joining the tables, log_softmax and the framework's gradient."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def construct(self, hidden, table, extra, mask, labels):
        base = ops.matmul(hidden * self.scale, table.T)
        more = ops.where(mask, ops.matmul(hidden, extra.T), Tensor(-1e30, ms.float32))
        scores = ops.log_softmax(ops.concat((base, more), 1), -1)
        return -ops.gather_d(scores, 1, labels.expand_dims(1)).squeeze(1)


def nll_case():
    hidden, table = normal(ROWS, WIDTH), normal(CLASSES, WIDTH, seed=1)
    extra = normal(EXTRA, WIDTH, seed=2)
    mask = np.array([True, True, True, False])
    labels = np.array([0, CLASSES - 1, 5, CLASSES, CLASSES + 2, 5, CLASSES + 2], np.int32)
    weights = np.array([0.5, 1.0, 0.0, 2.0, 0.25, 1.0, 0.0], np.float32)
    return hidden, table, extra, mask, labels, weights


def nll_gradients(cell, with_parts: bool):
    case = nll_case()

    def loss(hidden, table, extra, mask, labels, weights):
        if with_parts:
            losses = cell(hidden, table, extra, mask, labels, NO_BIAS)[0]
        else:
            losses = cell(hidden, table, extra, mask, labels)
        return (losses * weights).sum()

    return gradients(loss, *case[:3], others=case[3:])


def exact_nll(scale: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses and gradients of the case by their formulas in float64."""
    *inputs, mask, labels, weights = nll_case()
    hidden, table, extra = (a.astype(np.float64) for a in inputs)
    classes = np.concatenate([table * scale, extra])
    logits = hidden @ classes.T
    logits[:, CLASSES:][:, ~mask] = -np.inf
    logits -= logits.max(1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    at = np.arange(ROWS), labels
    losses = -np.log(p[at])
    p[at] -= 1
    p *= weights[:, None]
    d_classes = p.T @ hidden
    return losses, [p @ classes, d_classes[:CLASSES] * scale, d_classes[CLASSES:]]


def test_projected_losses_and_gradients_are_those_of_log_softmax():
    """The bound allows for the rounding of logits near 20 in fp32."""
    hidden, table, extra, mask, labels, _ = nll_case()
    inputs = [Tensor(a) for a in (hidden, table, extra, mask, labels)]
    ours, plain = ProjectedNll(0.7), PlainNll(0.7)
    losses, exact = exact_nll(0.7)
    np.testing.assert_allclose(ours(*inputs, NO_BIAS)[0].asnumpy(), losses, atol=5e-6)
    np.testing.assert_allclose(plain(*inputs).asnumpy(), losses, atol=5e-6)
    found, framework = nll_gradients(ours, True), nll_gradients(plain, False)
    for own, theirs, wanted in zip(found, framework, exact):
        np.testing.assert_allclose(own, wanted, atol=3e-6)
        np.testing.assert_allclose(theirs, wanted, atol=1e-5)


def test_rows_without_weight_and_classes_that_do_not_exist_get_no_gradient():
    d_hidden, d_table, d_extra = nll_gradients(ProjectedNll(0.7), True)
    assert (d_hidden[[2, 6]] == 0).all()
    assert (d_extra[3] == 0).all()
    assert (np.abs(d_table).max(1) > 0).all() and (np.abs(d_extra[:3]).max(1) > 0).all()


def test_huge_logits_are_no_trouble():
    hidden, *others = nll_case()
    cell = ProjectedNll(1.0)

    def loss(hidden, table, extra, mask, labels, weights):
        return (cell(hidden, table, extra, mask, labels, NO_BIAS)[0] * weights).sum()

    (found,) = gradients(loss, hidden * 1e4, others=others)
    assert np.isfinite(found).all()


def test_a_table_with_biases_has_the_losses_and_gradients_of_log_softmax():
    hidden, table, *_ = nll_case()
    bias = normal(CLASSES, seed=3)
    labels = np.array([0, CLASSES - 1, 5, IGNORE, 2, 5, 1], np.int32)
    cell = TokenNll(0.7, biased=True)

    def loss(hidden, table, bias, labels):
        return masked_sums(cell(hidden, table, labels, bias), labels)[0]

    found = gradients(loss, hidden, table, bias, others=[labels])
    real = labels != IGNORE
    logits = hidden.astype(np.float64) @ table.T * 0.7 + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    losses = cell(*map(Tensor, (hidden, table, labels, bias))).asnumpy()
    picked = p[np.arange(ROWS), np.maximum(labels, 0)]
    np.testing.assert_allclose(losses[real], -np.log(picked)[real], atol=5e-6)
    p[np.arange(ROWS)[real], labels[real]] -= 1
    p[~real] = 0
    for own, wanted in zip(found, (p @ table * 0.7, p.T @ hidden * 0.7, p.sum(0))):
        np.testing.assert_allclose(own, wanted, atol=3e-6)


def test_sums_count_labelled_rows_only():
    labels = np.array([3, IGNORE, 0, IGNORE], np.int32)
    total, count = masked_sums(Tensor(normal(4)), Tensor(labels))
    assert float(count.asnumpy()) == 2
    assert float(total.asnumpy()) == pytest.approx(float(normal(4)[[0, 2]].sum()), rel=1e-6)


# --- masks ----------------------------------------------------------------------------------------


def test_span_mask_follows_its_rule_pair_by_pair():
    spans = np.array([[1, 1, 2, 2, 0], [1, 0, 0, 0, 0]], np.int32)
    found = span_mask(Tensor(spans)).asnumpy()
    for b, q, k in np.ndindex(2, 5, 5):
        sees = spans[b, k] > 0 and spans[b, q] in (0, spans[b, k])
        assert found[b, q, k] == sees, (b, q, k)


def test_packed_mask_follows_its_rule_pair_by_pair():
    random = rng(4)
    num, batch = 9, 3
    context = random.random((batch, num)) < 0.5
    samples = random.integers(0, 3, (batch, num)).astype(np.int32)
    spans = np.sort(random.integers(0, 2, (batch, num)), axis=1).astype(np.int32)
    length = np.array([9, 5, 0], np.int32)
    found = packed_mask(*map(Tensor, (context, samples, spans, length))).asnumpy()
    for b, q, k in np.ndindex(batch, num, num):
        real = q < length[b] and k < length[b]
        same_span = spans[b, q] == spans[b, k]
        sample = samples[b, q] in (0, samples[b, k])
        sees = context[b, k] or (not context[b, q] and k <= q)
        assert found[b, q, k] == (real and same_span and sample and sees), (b, q, k)


def test_rows_that_see_nothing_give_nothing_and_get_no_gradient():
    batch, num, dead = 2, 6, 4
    attention = Attention(8, 2, 4, std=0.5, out_std=0.5, dtype=ms.float32)
    initialise(attention, 3)
    sees = np.ones((batch, 1, num, num), bool)
    sees[:, :, dead:] = sees[..., dead:] = False
    row = np.ones((batch, num, 1), np.float32)
    row[:, dead:] = 0
    sees, row = Tensor(sees), Tensor(row)
    x, bias = normal(batch, num, 8), normal(1, 2, num, num, seed=6)
    weights = list(attention.trainable_params())

    def forward(x, bias):
        return attention(x, masked(bias, sees), row)

    def loss(x, bias):
        return (forward(x, bias) ** 2).sum()

    run = ms.jit(ops.grad(loss, (0, 1), weights))
    out = forward(Tensor(x), Tensor(bias)).asnumpy()
    assert (out[:, dead:] == 0).all() and (out[:, :dead] != 0).all()
    (d_x, d_bias), d_weights = run(Tensor(x), Tensor(bias))
    assert (d_x.asnumpy()[:, dead:] == 0).all()
    assert (d_bias.asnumpy()[:, :, dead:] == 0).all()
    assert (d_bias.asnumpy()[..., dead:] == 0).all()
    other = x.copy()
    other[:, dead:] = 100 * normal(batch, num - dead, 8, seed=7)
    assert (forward(Tensor(other), Tensor(bias)).asnumpy() == out).all()
    _, again = run(Tensor(other), Tensor(bias))
    for weight, one, two in zip(weights, d_weights, again):
        np.testing.assert_array_equal(one.asnumpy(), two.asnumpy(), weight.name)


# --- first values ---------------------------------------------------------------------------------


def test_first_values_depend_on_seed_and_name_only():
    def made(seed: int) -> dict[str, np.ndarray]:
        cell = Attention(8, 2, 4, std=0.5, out_std=0.1, dtype=ms.float32)
        initialise(cell, seed)
        return {p.name: p.asnumpy() for p in cell.get_parameters()}

    one, same, other = made(1), made(1), made(2)
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
        assert (array != other[name]).all()
    assert not np.array_equal(one["q.weight"], one["k.weight"])
    assert np.std(one["o.weight"]) < 0.2 < np.std(one["q.weight"])
