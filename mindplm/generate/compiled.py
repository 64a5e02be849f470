"""The engine's network on MindSpore: one graph per prompt bucket, one for the step."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.graph_cache import GraphCache


class _Start(nn.Cell):
    """Reads the prompts and spreads their keys and values over the rows of a longer cache."""

    def __init__(self, prefill: nn.Cell):
        super().__init__(auto_prefix=False)
        self.prefill = prefill

    def construct(self, rows_r, room_s, *columns):
        outputs = self.prefill(*columns)
        num_rows, cache_len = rows_r.shape[0], room_s.shape[0]
        caches: tuple[Tensor, ...] = ()
        for cache_bhtk in outputs[1:]:
            num_heads, width, head_dim = cache_bhtk.shape[1:]
            rest = (num_rows, num_heads, cache_len - width, head_dim)
            rows_rhtk = ops.gather(cache_bhtk, rows_r, 0)
            caches += (ops.concat((rows_rhtk, ops.zeros(rest, cache_bhtk.dtype)), 2),)
        return (outputs[0].astype(ms.float32),) + caches


class _Step(nn.Cell):
    """One token of every row; logits in fp32 so that they can leave the device."""

    def __init__(self, step: nn.Cell):
        super().__init__(auto_prefix=False)
        self.step = step

    def construct(self, *columns):
        outputs = self.step(*columns)
        return (outputs[0].astype(ms.float32),) + outputs[1:]


class CompiledNetwork:
    """The two calls of `mindplm.generate.engine.Network` over two cells that share weights.

    Args:
        prefill: (columns of a prompt batch) -> (logits [B, classes], k_0, v_0, k_1, ...), the
            caches [B, H, at most the cache's length, K].
        step: (columns of a step, k_0, v_0, ...) -> (logits [R, classes], k_0, v_0, ...).
        cache: Keeps the graphs of the first batch between runs; none: they are compiled anew.
    """

    def __init__(self, prefill: nn.Cell, step: nn.Cell, cache: GraphCache | None = None):
        self._start = _Start(prefill)
        self._step = _Step(step)
        self._cache = cache or GraphCache("", None)

    @property
    def num_graphs(self) -> tuple[int, int]:
        """How many graphs were compiled: (prompts, step)."""
        return len(self._start.compile_cache), len(self._step.compile_cache)

    def put(self, array: np.ndarray) -> Tensor:
        """Brings an int32 array to the device."""
        return Tensor(array, ms.int32)

    def start(
        self, columns: Sequence[Tensor], rows: Tensor, room: Tensor
    ) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Reads prompts."""
        inputs = (rows, room, *columns)
        self._cache.close()  # a step before this one was read already, or never comes
        with self._cache.first(*inputs):
            logits, *caches = self._start(*inputs)
        return logits.asnumpy(), caches

    def step(
        self, columns: Sequence[Tensor], caches: Sequence[Tensor]
    ) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Reads one token per row."""
        with self._cache.second():
            logits, *caches = self._step(*columns, *caches)
        return logits.asnumpy(), caches
