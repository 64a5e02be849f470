"""Layouts are checked against shard plans by our own code, with our own words."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from mindplm.config import ParallelConfig
from mindplm.errors import ConfigError
from mindplm.families import FAMILIES, check_layout, config_from_dict, family
from mindplm.shards import ShardPlan, check, check_cards, operand, stages_of, vocab_rows

PLANNED = [name for name, entry in FAMILIES.items() if entry.plan_ref]
TINY = {"preset": "tiny", "vocab_size": 1000, "num_layers": 2}


def settings(parallel, name="cpm_bee", model=None, seq_len=512, **train):
    tree = {
        "family": name,
        "model": model or {"preset": "10b"},
        "train": {"steps": 1, "output": "runs/x", "batch_size": 64, **train},
        "data": {"train": [{"path": "a.txt"}], "folder": "f", "seq_len": seq_len},
        "parallel": parallel,
    }
    return config_from_dict(tree)


@pytest.mark.parametrize(
    "parallel",
    [
        {"data": 8},
        {"data": 8, "optimizer_shard": True},
        {"data": 8, "model": 8, "optimizer_shard": True, "sequence": True},
        {"data": 8, "model": 2, "pipeline": 4, "micro_batches": 8, "recompute": True},
        {"model": 8, "vocab_rows": 88064},
    ],
)
def test_layouts_that_fit_are_accepted(parallel):
    check_layout(settings(parallel))


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"model": 3}, ["parallel.model=3", "model.num_heads=32", "accepted: 1, 2, 4, 8, 16, 32"]),
        ({"model": 8, "vocab_rows": 86583}, ["parallel.vocab_rows=86583", "8 x 128", "87040"]),
        ({"model": 8, "vocab_rows": 86016}, ["parallel.vocab_rows=86016", "vocabulary of 86583"]),
        ({"vocab_rows": 100, "data": 2, "optimizer_shard": True}, ["parallel.vocab_rows=100"]),
        ({"pipeline": 50, "micro_batches": 64}, ["parallel.pipeline=50", "num_layers=48"]),
        ({"pipeline": 4}, ["parallel.pipeline=4", "micro-batches", "parallel.micro_batches=4"]),
    ],
)
def test_mistakes_are_named(parallel, words):
    with pytest.raises(ConfigError) as caught:
        check_layout(settings(parallel))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"sequence": True}, ["parallel.sequence=true", "parallel.model > 1"]),
        ({"optimizer_shard": True}, ["parallel.optimizer_shard=true", "parallel.data > 1"]),
        ({"pipeline": 4, "micro_batches": 2}, ["parallel.micro_batches=2", "parallel.pipeline=4"]),
        ({"data": 4, "micro_batches": 5}, ["parallel.micro_batches = 4 x 5", "batch_size=64"]),
    ],
)
def test_mistakes_that_need_no_plan_are_named_on_reading(parallel, words):
    with pytest.raises(ConfigError) as caught:
        settings(parallel)
    for word in words:
        assert word in str(caught.value)


def test_an_inner_width_that_is_not_divided_is_named():
    model = {"preset": "10b", "ffn_size": 10241}
    with pytest.raises(ConfigError, match=r"model.ffn_size=10241; accepted: 1, "):
        check_layout(settings({"model": 2}, model=model))


def test_dropout_is_for_whole_weights_only():
    model = {"preset": "10b", "dropout": 0.1}
    with pytest.raises(ConfigError, match=r"model.dropout=0.1 is for parallel.data only"):
        check_layout(settings({"model": 2}, model=model))
    check_layout(settings({"data": 2}, model=model))


def test_rows_are_cut_evenly_for_sequence_parallel():
    config = settings({"model": 8, "sequence": True})
    odd = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=500))
    with pytest.raises(ConfigError, match=r"data.seq_len=500 .* parallel.model=8"):
        check_layout(odd)


def test_a_family_without_a_plan_says_so(monkeypatch):
    without = dataclasses.replace(FAMILIES["cpm_bee"], plan_ref="")
    monkeypatch.setitem(FAMILIES, "cpm_bee", without)
    with pytest.raises(ConfigError, match="family cpm_bee has no shard plan"):
        check_layout(settings({"model": 2}))
    check_layout(settings({"data": 2}))


@pytest.mark.parametrize("cards", [1, 4, 15, 32])
def test_the_number_of_cards_must_be_the_product(cards):
    layout = ParallelConfig(data=4, model=2, pipeline=2, micro_batches=2)
    check_cards(layout, 16)
    with pytest.raises(ConfigError, match=rf"4 x 2 x 2 = 16, but .* is {cards}"):
        check_cards(layout, cards)


@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_that_names_what_is_not_there_is_refused(name):
    plan: ShardPlan = family(name).part("plan")
    config = settings({"model": 2}, name, TINY, 64)
    padded = vocab_rows(config.model.vocab_size, config.parallel)
    rows = family(name).part("shapes")(dataclasses.replace(config.model, vocab_size=padded))
    check(plan, config, rows)
    more = dataclasses.replace(plan, weights={**plan.weights, "blocks.{i}.gone": "d"})
    with pytest.raises(ConfigError, match=r"no weight has the name blocks.\{i\}.gone"):
        check(more, config, rows)
    with pytest.raises(ConfigError, match="0 entries fit the weight extra.weight"):
        check(plan, config, {**rows, "extra.weight": (4, 4)})


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(
    ("parallel", "model", "words"),
    [
        ({"model": 8}, {"num_heads": 4}, "parallel.model=8 does not divide model.num_heads=4"),
        ({"model": 2}, {"ffn_size": 333}, "parallel.model=2 does not divide model.ffn_size=333"),
        ({"model": 2, "vocab_rows": 1000}, {}, "2 x 128 = 256; nearest: 1024"),
        ({"model": 2}, {"dropout": 0.1}, "model.dropout=0.1 is for parallel.data only"),
    ],
)
def test_every_family_names_mistakes(name, parallel, model, words):
    with pytest.raises(ConfigError) as caught:
        check_layout(settings(parallel, name, {**TINY, **model}, 64))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [n for n in PLANNED if not family(n).part("plan").staged])
def test_a_family_that_is_not_cut_into_stages_says_so(name):
    wanted = f"parallel.pipeline=2: {name} is not cut into stages, only cpm_bee is; accepted: 1"
    with pytest.raises(ConfigError, match=wanted):
        check_layout(settings({"pipeline": 2, "micro_batches": 2}, name, TINY, 64))


def test_axes_are_read():
    assert operand("(bt)d1") == ("(bt)", "d", "1")
    assert operand("") == ()
    with pytest.raises(ConfigError, match="not made of letters"):
        operand("b-t")


def test_padded_rows_hold_the_vocabulary():
    for size, model in itertools.product((1, 127, 1024, 86583), (1, 2, 8)):
        rows = vocab_rows(size, ParallelConfig(model=model))
        assert rows >= size
        assert rows == size if model == 1 else rows % (model * 128) == 0
        assert rows - size < model * 128


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_stages_are_as_even_as_can_be(num_stages):
    costs = [3, 0, 5, 1, 4, 1, 2, 6]

    def dearest(stages):
        sums = [0] * num_stages
        for stage, cost in zip(stages, costs):
            sums[stage] += cost
        sums[-1] += costs[-1]
        return max(sums)

    found = stages_of(costs, num_stages)
    blocks = len(costs) - 1
    assert list(found) == sorted(found) and set(found) == set(range(num_stages))
    assert len(found) == blocks
    every = itertools.combinations(range(1, blocks), num_stages - 1)
    ways = ([sum(i >= cut for cut in cuts) for i in range(blocks)] for cuts in every)
    assert dearest(found) == min(dearest(way) for way in ways)
