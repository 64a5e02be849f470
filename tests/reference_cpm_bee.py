"""CPM-Bee in NumPy, one operation per line: what the tests hold the compiled network against.

Weights and config carry the OpenBMB names. float32 by default; float64 for finer comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

LAYER = "encoder.layers.{}."
ATTENTION = LAYER + "self_att.self_attention."


class Reference:
    """The network without a framework.

    Args:
        config: OpenBMB config.
        weights: OpenBMB name to array.
        dtype: Of all arithmetic.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: type = np.float32
    ):
        self.w = {name: np.asarray(array, dtype) for name, array in weights.items()}
        self.dtype = dtype
        self.heads, self.width = config["num_heads"], config["dim_head"]
        self.hidden, self.layers = config["dim_model"], config["num_layers"]
        self.num_buckets = config["position_bias_num_buckets"]
        self.max_distance = config["position_bias_max_distance"]
        self.eps = config.get("eps", 1e-6)
        self.gone = config.get("mask_modules") or [[False, False]] * self.layers

    def embed(self, ids: np.ndarray, subs: np.ndarray) -> np.ndarray:
        half = self.hidden // 2
        values = self.w["input_embedding.weight"][ids] / self.dtype(math.sqrt(self.hidden))
        speed = (10000.0 ** (-2 * np.arange(half) / self.hidden)).astype(self.dtype)
        angle = (16 * subs[..., None]).astype(self.dtype) * np.concatenate([speed, speed])
        turned = np.concatenate([-values[..., half:], values[..., :half]], -1)
        return values * np.cos(angle) + turned * np.sin(angle)

    def bias_index(self, query: Mapping[str, np.ndarray], key: Mapping[str, np.ndarray]) -> Any:
        """Row of the bias table for every pair; fields position, sample, span, segment [B, T];
        the query also num_segments, offset [B, T] and rel [B, R]."""
        same = query["sample"][:, :, None] == key["sample"][:, None]
        same &= query["span"][:, :, None] == key["span"][:, None]
        place = query["segment"] * query["num_segments"] + query["offset"]
        place = np.where(same, place[:, :, None] + key["segment"][:, None], 0)
        flat = place.reshape(len(place), -1)
        group = np.take_along_axis(query["rel"], flat, 1).reshape(place.shape)
        group = np.where(same, group, 1)
        distance = key["position"][:, None] - query["position"][:, :, None]
        return np.where(group == 0, self.distance_bucket(distance), group - 1 + self.num_buckets)

    def distance_bucket(self, distance: np.ndarray) -> np.ndarray:
        half = self.num_buckets // 2
        exact = half // 2
        size = np.abs(distance)
        ratio = np.log(np.maximum(size, 1) / exact) / math.log(self.max_distance / exact)
        far = np.minimum(exact + np.trunc(ratio * (half - exact)).astype(int), half - 1)
        return np.where(distance > 0, half, 0) + np.where(size < exact, size, far)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        square = np.mean(x * x, -1, keepdims=True)
        return x / np.sqrt(square + self.dtype(self.eps)) * self.w[name]

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[name].T / self.dtype(math.sqrt(x.shape[-1]))

    def split(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], self.heads, self.width).transpose(0, 2, 1, 3)

    def attention(self, x: np.ndarray, layer: int, bias, keep, cache) -> tuple:
        name = ATTENTION.format(layer)
        q = self.split(self.linear(x, name + "project_q.weight"))
        k = self.split(self.linear(x, name + "project_k.weight"))
        v = self.split(self.linear(x, name + "project_v.weight"))
        k, v = (k, v) if cache is None else cache(layer, k, v)
        score = q @ k.swapaxes(-1, -2) / self.dtype(math.sqrt(self.width)) + bias
        score = np.where(keep[:, None], score, self.dtype(-1e30))
        p = np.exp(score - score.max(-1, keepdims=True))
        p = np.where(keep[:, None], p / p.sum(-1, keepdims=True), 0).astype(self.dtype)
        out = (p @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        return self.linear(out, name + "attention_out.weight"), (k, v)

    def feed_forward(self, x: np.ndarray, layer: int) -> np.ndarray:
        name = LAYER.format(layer) + "ffn.ffn."
        gate = self.linear(x, name + "w_in.w_0.weight")
        erf = np.vectorize(math.erf, otypes=[self.dtype])
        gate = gate * self.dtype(0.5) * (1 + erf(gate / self.dtype(math.sqrt(2))))
        return self.linear(gate * self.linear(x, name + "w_in.w_1.weight"), name + "w_out.weight")

    def run(self, ids, subs, index, keep, cache=None) -> tuple[list[np.ndarray], list[tuple]]:
        """All states: embeddings, after each layer, after the final norm; keys and values.

        `cache(layer, k, v)` puts new keys and values between the old ones.
        """
        bias = self.w["position_bias.relative_attention_bias"][index].transpose(0, 3, 1, 2)
        x = self.embed(ids, subs)
        states, kept = [x], []
        for layer in range(self.layers):
            no_attention, no_ffn = self.gone[layer]
            prefix = LAYER.format(layer)
            if not no_attention:
                normed = self.norm(x, prefix + "self_att.layernorm_before_attention.weight")
                added, pair = self.attention(normed, layer, bias, keep, cache)
                x = (x + added) / self.dtype(1.05)
                kept.append(pair)
            if not no_ffn:
                normed = self.norm(x, prefix + "ffn.layernorm_before_ffn.weight")
                x = (x + self.feed_forward(normed, layer)) / self.dtype(1.05)
            states.append(x)
        return [*states, self.norm(x, "encoder.output_layernorm.weight")], kept

    def project(self, hidden: np.ndarray, ext_ids: np.ndarray, ext_sub: np.ndarray) -> np.ndarray:
        base = hidden / self.dtype(math.sqrt(self.hidden)) @ self.w["input_embedding.weight"].T
        return np.concatenate([base, hidden @ self.embed(ext_ids, ext_sub).T], -1)

    def training(self, batch: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """States and logits of a packed batch with the names of the golden inputs."""
        where = _fields(batch, np.arange(batch["inputs"].shape[1]))
        context, sample, span = (np.asarray(batch[n]) for n in ("context", "sample_ids", "spans"))
        order = np.arange(context.shape[1])
        real = order < batch["length"][:, None]
        keep = real[:, :, None] & real[:, None] & (span[:, :, None] == span[:, None])
        keep &= _sees_sample(sample, sample)
        keep &= context[:, None].astype(bool) | (
            ~context[:, :, None].astype(bool) & (order <= order[:, None])
        )
        index = self.bias_index(where, where)
        states, _ = self.run(batch["inputs"], batch["inputs_sub"], index, keep)
        return states, self.project(states[-1], batch["ext_ids"], batch["ext_sub"])


class ReferenceNetwork:
    """The engine's network (`mindplm.generate.engine.Network`) over a Reference."""

    def __init__(self, model: Reference):
        self.model = model
        self.shapes: dict[str, set] = {"start": set(), "step": set()}
        self.num_attentions = sum(not no_attention for no_attention, _ in model.gone)

    def put(self, array: np.ndarray) -> np.ndarray:
        assert array.dtype == np.int32
        return array

    def start(self, columns, rows, first, rest):
        self.shapes["start"].add((*(c.shape for c in (*columns, rows, first, rest)),))
        length = len(first) + len(rest)
        logits, kept, _ = self.prefill(*columns)
        spread = []
        for array in (a for pair in kept for a in pair):
            empty = np.zeros((len(rows), array.shape[1], length - array.shape[2], self.model.width))
            spread.append(np.concatenate([array[rows], empty.astype(array.dtype)], 2))
        return logits[:, -1], spread

    def prefill(self, ids, subs, positions, context, sample_ids, segment_ids, num_segments,
                rel_offset, segment_rel, ext_ids, ext_sub, num_ext):  # fmt: skip
        where = {
            **{"position": positions, "sample": sample_ids, "span": np.zeros_like(ids)},
            **{"segment": segment_ids, "num_segments": num_segments},
            **{"offset": rel_offset, "rel": segment_rel},
        }
        keep = (num_segments != 0)[:, None] & _sees_sample(sample_ids, sample_ids)
        later = positions[:, None] > positions[:, :, None]
        keep &= (context != 0)[:, None] | ((context == 0)[:, :, None] & ~later)
        states, kept = self.model.run(ids, subs, self.model.bias_index(where, where), keep)
        return self._logits(states[-1], ext_ids, ext_sub, num_ext), kept, states[-1]

    def step(self, columns, caches):
        self.shapes["step"].add(tuple(c.shape for c in (*columns, *caches)))
        ids, subs, segment_ids, positions, slot = columns[:5]
        key_positions, key_samples, key_segments, key_num_segments = columns[5:9]
        num_segments, rel_offset, segment_rel, ext_ids, ext_sub, num_ext, parents = columns[9:]
        assert len(caches) == 2 * self.num_attentions
        query = {
            **{"position": positions[:, None], "sample": np.zeros_like(ids)[:, None]},
            **{"span": np.zeros_like(ids)[:, None], "segment": segment_ids[:, None]},
            **{"num_segments": num_segments[:, None], "offset": rel_offset[:, None]},
            "rel": segment_rel,
        }
        key = {
            **{"position": key_positions, "sample": key_samples, "segment": key_segments},
            "span": np.zeros_like(key_positions),
        }
        keep = (key_num_segments != 0)[:, None] & _sees_sample(query["sample"], key_samples)
        olds = iter(caches)

        def cache(layer, k, v):
            pair = []
            for new in (k, v):
                whole = next(olds)[parents]
                whole[:, :, slot[0]] = new[:, :, 0]
                pair.append(whole)
            return pair

        index = self.model.bias_index(query, key)
        states, kept = self.model.run(ids[:, None], subs[:, None], index, keep, cache)
        logits = self._logits(states[-1], ext_ids, ext_sub, num_ext)[:, 0]
        return logits, [array for pair in kept for array in pair]

    def _logits(self, hidden, ext_ids, ext_sub, num_ext):
        logits = self.model.project(hidden, ext_ids, ext_sub)
        logits[..., logits.shape[-1] - len(ext_ids) + num_ext[0] :] = -np.inf
        return logits


def _sees_sample(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return (query == 0)[:, :, None] | (query[:, :, None] == key[:, None])


def _fields(batch: Mapping[str, np.ndarray], positions: np.ndarray) -> dict[str, np.ndarray]:
    names = {
        **{"sample": "sample_ids", "span": "spans", "segment": "segment_ids"},
        **{"num_segments": "num_segments", "offset": "segment_rel_offset", "rel": "segment_rel"},
    }
    fields = {ours: np.asarray(batch[theirs]) for ours, theirs in names.items()}
    fields["position"] = np.broadcast_to(positions, fields["sample"].shape)
    return fields


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file."""
    return load_file(str(path))


def random_weights(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Weights with the OpenBMB names, drawn as a new model's (norms near one)."""
    rng = np.random.default_rng(seed)
    hidden, heads = config["dim_model"], config["num_heads"] * config["dim_head"]
    rows = config["position_bias_num_buckets"] + config["position_bias_num_segment_buckets"]
    weights = {
        "input_embedding.weight": rng.normal(size=(config["vocab_size"], hidden)),
        "position_bias.relative_attention_bias": rng.normal(size=(rows, config["num_heads"])),
        "encoder.output_layernorm.weight": 1 + 0.1 * rng.normal(size=hidden),
    }
    masks = config.get("mask_modules") or [[False, False]] * config["num_layers"]
    for layer, (no_attention, no_ffn) in enumerate(masks):
        prefix = LAYER.format(layer)
        if not no_attention:
            name = prefix + "self_att.layernorm_before_attention.weight"
            weights[name] = 1 + 0.1 * rng.normal(size=hidden)
            for part in ("project_q", "project_k", "project_v"):
                name = ATTENTION.format(layer) + part + ".weight"
                weights[name] = rng.normal(size=(heads, hidden))
            name = ATTENTION.format(layer) + "attention_out.weight"
            weights[name] = rng.normal(size=(hidden, heads))
        if not no_ffn:
            name = prefix + "ffn.layernorm_before_ffn.weight"
            weights[name] = 1 + 0.1 * rng.normal(size=hidden)
            for part in ("w_in.w_0", "w_in.w_1"):
                name = f"{prefix}ffn.ffn.{part}.weight"
                weights[name] = rng.normal(size=(config["dim_ff"], hidden))
            weights[prefix + "ffn.ffn.w_out.weight"] = rng.normal(size=(hidden, config["dim_ff"]))
    return {name: array.astype(np.float32) for name, array in weights.items()}
