"""What every family keeps, whatever is inside; see tiny_families for how one joins."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from graphs import Graphs
from mindspore import Tensor
from tiny_families import MAKERS
from tiny_family import Stepper, Tiny

from mindplm import checkpoint
from mindplm.checkpoint import TrainState
from mindplm.evaluate import Evaluator
from mindplm.families import FAMILIES
from mindplm.generate.model import from_cell
from mindplm.nn.values import from_arrays, load_model, to_arrays
from mindplm.strict import to_plain
from mindplm.weights.rules import to_ours, to_theirs

EVERY = pytest.mark.parametrize("name", FAMILIES)
WRITERS = pytest.mark.parametrize("name", [n for n, entry in FAMILIES.items() if entry.decode_ref])


WITHOUT_EFFECT = ("attn.k.bias", "cross.k.bias")
"""A number added to all keys adds the same to all logits of a query: its gradient is rounding."""


@cache
def tiny(name: str) -> Tiny:
    return MAKERS[name]()


@cache
def plain_gradients(name: str):
    made = tiny(name)
    return made.gradients(made.model(), made.columns())


def test_every_family_is_here():
    assert set(MAKERS) == set(FAMILIES)


# --- loss and gradients ---------------------------------------------------------------------------


@EVERY
def test_the_first_loss_is_that_of_a_uniform_guess(name):
    total, count, _ = plain_gradients(name)
    assert total / count == pytest.approx(math.log(tiny(name).classes), abs=0.1)


@EVERY
def test_the_count_is_that_of_the_labels(name):
    assert plain_gradients(name)[1] == (tiny(name).columns()["targets"] >= 0).sum() > 50


@EVERY
def test_every_parameter_gets_a_gradient(name):
    grads = plain_gradients(name)[2]
    assert set(grads) == {weight.name for weight in tiny(name).model().trainable_params()}
    for weight, grad in grads.items():
        assert np.isfinite(grad).all(), weight
        assert weight.endswith(WITHOUT_EFFECT) or np.abs(grad).max() > 1e-7, weight


@EVERY
def test_four_rows_are_learned_by_heart(name):
    made = tiny(name)
    columns = made.first_rows(made.columns(), 4)
    stepper = Stepper(made, lr=made.fast, beta2=0.98)
    losses = [stepper(columns)[0] for _ in range(150)]
    assert losses[-1] < 0.05 < 4 < losses[0]


BIGGER = [
    (name, sizes)
    for name, make in MAKERS.items()
    for bigger in [make().bigger]
    for sizes in [*({size: more} for size, more in bigger.items()), dict(bigger)]
]


@pytest.mark.parametrize(
    ("name", "sizes"), BIGGER, ids=lambda v: v if isinstance(v, str) else "+".join(v)
)
def test_padding_changes_nothing(name, sizes):
    made = tiny(name)
    total, count, grads = plain_gradients(name)
    more_total, more_count, more_grads = made.gradients(made.model(), made.columns(**sizes))
    assert more_count == count
    assert more_total == pytest.approx(total, rel=1e-6)
    for weight, grad in grads.items():
        bound = 1e-6 * np.abs(grad).max() + 1e-8 * weight.endswith(WITHOUT_EFFECT)
        np.testing.assert_allclose(more_grads[weight], grad, rtol=0, atol=bound, err_msg=weight)


@EVERY
def test_cutting_a_batch_changes_nothing(name):
    """With dropouts, which depend on a value's place in the whole batch.

    Weights differ by at most 5e-5 of their norm: where a gradient is nothing but rounding,
    Adam makes a step of it, so single values may differ by more.
    """
    made = tiny(name)
    columns = made.columns()
    whole, cut = (Stepper(made, num_micro=n, dropout=0.2) for n in (1, 4))
    total, count, _ = plain_gradients(name)
    calm = made.loss(whole.model)(*(Tensor(array) for array in columns.values()))[0]
    assert float(calm.asnumpy()) == pytest.approx(total, rel=1e-6)  # off but for steps
    first = whole(columns)
    assert abs(first[0] - total / count) > 1e-5
    np.testing.assert_allclose(cut(columns), first, rtol=1e-6)
    for _ in range(4):
        np.testing.assert_allclose(cut(columns), whole(columns), rtol=1e-6)
    ours = cut.weights()
    for weight, array in whole.weights().items():
        bound = 5e-5 * np.linalg.norm(array)
        close = np.linalg.norm(ours[weight] - array) <= bound
        assert close or weight.endswith(WITHOUT_EFFECT), weight


# --- generation -----------------------------------------------------------------------------------


@WRITERS
def test_cached_generation_is_the_whole_forward_pass(name):
    made = tiny(name)
    cached, full = made.cached_and_full(made.model())
    np.testing.assert_allclose(cached, full, atol=1e-5 * np.abs(full).max())


# --- graphs ---------------------------------------------------------------------------------------


def copies(parameters) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in to_arrays(parameters).items()}


@EVERY
@pytest.mark.parametrize("num_micro", [1, 2])
def test_training_compiles_once(name, num_micro):
    """One graph for the whole step; with micro-batches one to add up and one to move."""
    made = tiny(name)
    columns = made.columns()
    turned = {n: a if n in made.shared else a[::-1].copy() for n, a in columns.items()}
    with Graphs() as first:
        stepper = Stepper(made, num_micro=num_micro)
        stepper(columns)
    assert first.count == (1 if num_micro == 1 else 2)
    evaluator = Evaluator(made.loss(stepper.model))
    batches = [(columns, {"chars": 1, "rows": [0]}), (turned, {"chars": 1, "rows": [1]})]
    with Graphs() as evaluation:
        evaluator(batches, total=2, progress=False)
    assert evaluation.count == 1
    moments = [*stepper.optimizer.moment1, *stepper.optimizer.moment2, *stepper.step.state()]
    with Graphs() as later:
        stepper(turned)
        evaluator(batches, total=2, progress=False)
        kept, state = copies(stepper.model.get_parameters()), copies(moments)
        after = stepper(columns)
        load_model(stepper.model, kept, "kept")  # as a resumed run does
        from_arrays(moments, state, "kept")
        stepper.done -= 1
        assert stepper(columns) == after
        evaluator(batches, total=2, progress=False)
    assert later.count == 0
    with Graphs() as other:
        stepper(made.columns(seq_len=8))
    assert other.count == 1  # the counter does count


@WRITERS
def test_generation_compiles_one_graph_for_each_bucket_and_one_for_the_step(name):
    made = tiny(name)
    model = from_cell(made.model(), made.config, name)
    short, long = ["床前", "ab"], ["1234567890" * 4] * 2
    with Graphs() as both:
        made.prompts(model, [*short, *long], 5, (32, 64, 128))
    assert both.count == 3 and model.network.num_graphs == (2, 1)
    with Graphs() as again:
        made.prompts(model, [*long, *short, "c"], 7, (32, 64, 128))
    assert again.count == 0


# --- weights --------------------------------------------------------------------------------------


@EVERY
def test_a_checkpoint_gives_the_weights_back_bitwise(name, tmp_path: Path):
    made = tiny(name)
    one, other = made.model(seed=1), made.model(seed=2)
    checkpoint.write(
        tmp_path / "saved",
        family=name,
        model_config=to_plain(made.config),
        weights=to_arrays(one.get_parameters()),
        tokenizer_files=made.files,
        train=TrainState(3),
    )
    found = checkpoint.read(tmp_path / "saved")
    assert found.model() == made.config
    load_model(other, found.weights(), "saved")
    for left, right in zip(one.get_parameters(), other.get_parameters()):
        assert left.name == right.name and left.dtype == right.dtype
        assert left.asnumpy().tobytes() == right.asnumpy().tobytes(), left.name
    columns = [Tensor(array) for array in made.columns().values()]
    losses = [made.loss(model)(*columns)[0].asnumpy() for model in (one, other)]
    assert losses[0] == losses[1]


def flavours() -> list[tuple[str, str]]:
    return [(name, flavour) for name, make in MAKERS.items() for flavour in make().flavours]


@pytest.mark.parametrize(("name", "flavour"), flavours())
def test_weight_rules_cover_every_parameter_both_ways(name, flavour):
    made = tiny(name)
    ours = to_arrays(made.model().get_parameters())
    shapes = made.parts.part("shapes")(made.config)
    assert {weight: array.shape for weight, array in ours.items()} == shapes
    assert made.parts.part("num_parameters")(made.config) == sum(a.size for a in ours.values())
    options = (flavour,) if flavour else ()
    rules = made.parts.part("rules")(made.config, *options)
    theirs = to_theirs(rules, ours)
    again = to_ours(rules, theirs, shapes)
    assert again.keys() == ours.keys()
    for weight, array in ours.items():
        assert array.tobytes() == again[weight].tobytes(), weight
    back = to_theirs(rules, again)
    assert all(back[weight].tobytes() == array.tobytes() for weight, array in theirs.items())


# --- configs --------------------------------------------------------------------------------------


@EVERY
def test_a_family_has_a_tiny_config(name):
    assert (ROOT / "configs" / name / "tiny.yaml").is_file()
