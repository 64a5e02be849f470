"""A made-up batch and made-up weights of CPM-Bee, the same in every framework; NumPy only."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

NUM_SEGMENTS, NUM_EXT, IGNORE = 8, 8, -100


def weight(name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """fp32 values that depend on the name alone; norms are near 1."""
    drawn = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    values = drawn.standard_normal(shape, np.float32)
    return 1 + np.float32(0.1) * values if len(shape) == 1 else values * np.float32(std)


def shapes(sizes: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], float]]:
    """Our names of all weights to (shape, deviation).

    Args:
        sizes: Fields of `CpmBeeConfig`, all layers whole.
    """
    hidden, inner = sizes["hidden_size"], sizes["num_heads"] * sizes["head_dim"]
    ffn, rows = sizes["ffn_size"], sizes["num_distance_buckets"] + sizes["num_segment_buckets"]
    result = {
        "embed.weight": ((sizes["vocab_size"], hidden), sizes["init_std"]),
        "position_bias.weight": ((rows, sizes["num_heads"]), 1.0),
        "final_norm.weight": ((hidden,), 1.0),
    }
    for layer in range(sizes["num_layers"]):
        for name, shape in {
            "attn_norm": (hidden,),
            "attn.q": (inner, hidden),
            "attn.k": (inner, hidden),
            "attn.v": (inner, hidden),
            "attn.o": (hidden, inner),
            "ffn_norm": (hidden,),
            "ffn.gate": (ffn, hidden),
            "ffn.up": (ffn, hidden),
            "ffn.down": (hidden, ffn),
        }.items():
            result[f"blocks.{layer}.{name}.weight"] = (shape, 1.0)
    return result


def fill(cell: Any, sizes: dict[str, Any]) -> None:
    """Sets all weights of our network."""
    from mindspore import Tensor

    wanted = shapes(sizes)
    for parameter in cell.get_parameters():
        values = Tensor(weight(parameter.name, *wanted.pop(parameter.name)))
        parameter.set_data(values.astype(parameter.dtype))
    assert not wanted, sorted(wanted)


def columns(sizes: dict[str, Any], rows: int, seq_len: int, targets: int) -> dict[str, np.ndarray]:
    """A batch of whole rows, two instances each, the last `targets` positions predicted.

    Returns:
        The columns of `mindplm.data.packing.COLUMNS`, int32.
    """
    drawn = np.random.default_rng(0)
    vocab, place = sizes["vocab_size"], np.arange(seq_len)
    spread = np.broadcast_to
    spans = spread(2 * place // seq_len, (rows, seq_len))
    segments = spread(NUM_SEGMENTS * place // seq_len, (rows, seq_len))
    relation = drawn.integers(1, sizes["max_depth"] ** 2, (rows, NUM_SEGMENTS, NUM_SEGMENTS))
    relation[:, np.arange(NUM_SEGMENTS), np.arange(NUM_SEGMENTS)] = 0
    wanted = spread(place[seq_len - targets :], (rows, targets))
    labels = drawn.integers(0, vocab, (rows, targets))
    labels[:, ::7] = vocab + drawn.integers(0, NUM_EXT, labels[:, ::7].shape)
    made = {
        "ids": drawn.integers(0, vocab, (rows, seq_len)),
        "subs": drawn.integers(0, 4, (rows, seq_len)),
        "context": spread(place < seq_len - targets, (rows, seq_len)),
        "sample_ids": np.zeros((rows, seq_len)),
        "segment_ids": segments,
        "spans": spans,
        "num_segments": np.full((rows, seq_len), NUM_SEGMENTS),
        "rel_offset": np.zeros((rows, seq_len)),
        "length": np.full(rows, seq_len),
        "segment_rel": relation.reshape(rows, -1),
        "target_pos": wanted,
        "targets": labels,
        "ext_ids": drawn.integers(0, vocab, NUM_EXT),
        "ext_sub": np.arange(NUM_EXT),
        "num_ext": np.array([NUM_EXT]),
    }
    return {name: np.ascontiguousarray(array, np.int32) for name, array in made.items()}
