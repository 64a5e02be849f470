"""The weight rules: round trips and refused mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from mindplm.errors import CheckpointError
from mindplm.weights.rules import (
    Drop,
    Rename,
    Split,
    Stack,
    iter_ours,
    to_ours,
    to_theirs,
)

RULES = [
    Rename("tokens.weight", "embed.weight"),
    Split("h.{i}.qkv.weight", [f"blocks.{{i}}.attn.{n}.weight" for n in "qkv"], transpose=True),
    Stack(["h.{i}.w_0", "h.{i}.w_1"], "blocks.{i}.ffn.up.weight", sizes=[3, 5]),
    Rename("h.{i}.out", "blocks.{i}.attn.o.weight", transpose=True),
    Drop("h.{i}.causal_mask"),
    Drop("lm_head.weight", make=lambda ours: ours["embed.weight"]),
]


def foreign(layers: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    arrays = {"tokens.weight": rng.normal(size=(7, 4)).astype(np.float16)}
    for i in range(layers):
        arrays[f"h.{i}.qkv.weight"] = rng.normal(size=(4, 18)).astype(np.float32)
        arrays[f"h.{i}.out"] = rng.normal(size=(6, 4)).astype(np.float32)
        if i != 1:
            arrays[f"h.{i}.w_0"] = rng.normal(size=(3, 4))
            arrays[f"h.{i}.w_1"] = rng.normal(size=(5, 4))
    arrays["lm_head.weight"] = arrays["tokens.weight"].copy()
    return arrays


def shapes(layers: int = 3) -> dict[str, tuple[int, ...]]:
    result: dict[str, tuple[int, ...]] = {"embed.weight": (7, 4)}
    for i in range(layers):
        result |= {f"blocks.{i}.attn.{n}.weight": (6, 4) for n in "qkv"}
        result[f"blocks.{i}.attn.o.weight"] = (4, 6)
        if i != 1:
            result[f"blocks.{i}.ffn.up.weight"] = (8, 4)
    return result


def test_round_trip_is_bitwise_and_keeps_dtypes() -> None:
    theirs = foreign()
    theirs["h.0.causal_mask"] = np.ones((2, 2), bool)
    ours = to_ours(RULES, theirs, shapes())
    back = to_theirs(RULES, ours)
    assert list(ours) == list(shapes())
    assert set(back) == set(foreign())
    for name, array in back.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])
    again = to_ours(RULES, back, shapes())
    for name, array in again.items():
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, ours[name])


def test_split_takes_the_parts_in_order() -> None:
    theirs = foreign()
    ours = to_ours(RULES, theirs, shapes())
    np.testing.assert_array_equal(
        ours["blocks.2.attn.k.weight"], theirs["h.2.qkv.weight"][:, 6:12].T
    )
    np.testing.assert_array_equal(ours["blocks.0.ffn.up.weight"][3:], theirs["h.0.w_1"])


def test_a_scalar_keeps_its_shape() -> None:
    rules = [Rename("a", "b")]
    assert to_ours(rules, {"a": np.float32(3)}, {"b": ()})["b"].shape == ()


def test_a_tensor_is_read_when_its_rule_runs() -> None:
    read: list[str] = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    first = next(iter_ours(RULES, Lazy(foreign()), shapes()))
    assert first[0] == "embed.weight"
    assert read == ["tokens.weight"]


def refused(theirs, *words, rules=RULES, wanted=None) -> None:
    with pytest.raises(CheckpointError) as error:
        to_ours(rules, theirs, wanted or shapes())
    for word in words:
        assert word in str(error.value)


def test_extra_tensors_are_named() -> None:
    theirs = foreign()
    theirs |= {f"h.{i}.norm": np.ones(4) for i in range(12)}
    refused(theirs, "12 tensor(s) matched no rule", "h.0.norm", "and 4 more")


def test_a_missing_tensor_is_named() -> None:
    theirs = foreign()
    del theirs["h.2.out"]
    refused(theirs, "blocks.2.attn.o.weight", "would get no value")


def test_a_missing_half_of_a_stack_is_named() -> None:
    theirs = foreign()
    del theirs["h.2.w_1"]
    refused(theirs, "h.2.w_1", "are missing for the rule Stack")


def test_layers_beyond_the_config_are_named() -> None:
    refused(foreign(4), "blocks.3.attn.q.weight", "no place in a model")


def test_a_wrong_shape_is_named() -> None:
    theirs = foreign()
    theirs["h.0.out"] = np.zeros((6, 5), np.float32)
    refused(theirs, "blocks.0.attn.o.weight", "(4, 6)", "h.0.out", "(5, 6)")


def test_parts_that_do_not_fit_are_refused() -> None:
    theirs = foreign()
    theirs["h.0.qkv.weight"] = np.zeros((4, 17), np.float32)
    refused(theirs, "h.0.qkv.weight", "3 equal parts")
    ours = to_ours(RULES, foreign(), shapes())
    ours["blocks.0.ffn.up.weight"] = np.zeros((9, 4))
    with pytest.raises(CheckpointError, match=r"not made of parts \[3, 5\]"):
        to_theirs(RULES, ours)


def test_stacked_tensors_must_agree() -> None:
    theirs = foreign()
    theirs["h.0.w_1"] = np.zeros((5, 3))
    refused(theirs, "joined along axis 0", "h.0.w_1 (5, 3)")
    theirs["h.0.w_1"] = np.zeros((5, 4), np.float32)
    refused(theirs, "h.0.w_0, h.0.w_1 have different dtypes")


def test_two_rules_for_one_tensor_are_refused() -> None:
    rules = [*RULES, Rename("h.1.out", "blocks.1.attn.o.weight")]
    refused(foreign(), "h.1.out (Rename h.{i}.out; Rename h.1.out)", rules=rules)
    ours = to_ours(RULES, foreign(), shapes())
    with pytest.raises(CheckpointError, match="several rules: blocks.1.attn.o.weight"):
        to_theirs(rules, ours)


def test_two_tensors_for_one_place_are_refused() -> None:
    rules = [*RULES, Rename("other", "embed.weight")]
    refused({**foreign(), "other": np.zeros((7, 4))}, "embed.weight", "several rules", rules=rules)


def test_a_made_tensor_that_another_rule_writes_is_refused() -> None:
    rules = [Rename("a", "b"), Drop("a", make=lambda ours: ours["b"])]
    with pytest.raises(CheckpointError, match="several rules"):
        to_theirs(rules, {"b": np.zeros(2)})


def test_layer_numbers_have_no_leading_zeros() -> None:
    refused({**foreign(), "h.00.out": np.zeros((6, 4))}, "matched no rule", "h.00.out")


def test_only_matrices_are_transposed() -> None:
    theirs = foreign()
    theirs["h.0.out"] = np.zeros(6)
    refused(theirs, "h.0.out", "only a matrix")
