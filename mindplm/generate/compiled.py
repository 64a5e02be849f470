"""The engine's network on MindSpore: one graph per prompt bucket, one for the step."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindplm.graph_cache import GraphCache
from mindplm.nn.cache import take_rows


def _longer(cache_bhtk, length: int):
    """With zeros behind the entries that are there."""
    num_rows, num_heads, width, head_dim = cache_bhtk.shape
    if width == length:
        return cache_bhtk
    rest = ops.zeros((num_rows, num_heads, length - width, head_dim), cache_bhtk.dtype)
    return ops.concat((cache_bhtk, rest), 2)


class _Start(nn.Cell):
    """Reads the prompts; their keys and values get the length that all prompts of a call have.

    Args:
        prefill: See `CompiledNetwork`.
        shares: Whether the rows of a prompt share its keys and values. Otherwise they are spread
            over the rows, with room for what is written behind them.
    """

    def __init__(self, prefill: nn.Cell, *, shares: bool):
        super().__init__(auto_prefix=False)
        self.prefill, self.shares = prefill, shares

    def construct(self, rows_r, first_s, rest_s, *columns):
        outputs = self.prefill(*columns)
        caches: tuple[Tensor, ...] = ()
        for cache_bhtk in outputs[1:]:
            if self.shares:
                caches += (_longer(cache_bhtk, first_s.shape[0]),)
            else:
                rows_rhtk = take_rows(cache_bhtk, rows_r)
                caches += (_longer(rows_rhtk, first_s.shape[0] + rest_s.shape[0]),)
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
        step: (columns of a step, k_0, v_0, ...) -> (logits [R, classes], k_0, v_0, ...). If
            `prefill.shares_prompts`, it takes the caches of the prompts as they are and those of
            what the rows write, and returns the latter, see `mindplm.nn.cache.read_token`.
        cache: Keeps the graphs of the first batch between runs; none: they are compiled anew.
    """

    def __init__(self, prefill: nn.Cell, step: nn.Cell, cache: GraphCache | None = None):
        self._shares = getattr(prefill, "shares_prompts", False)
        self._start = _Start(prefill, shares=self._shares)
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
        self, columns: Sequence[Tensor], rows: Tensor, first: Tensor, rest: Tensor
    ) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Reads prompts."""
        inputs = (rows, first, rest, *columns)
        self._cache.close()  # a step before this one was read already, or never comes
        with self._cache.first(*inputs):
            logits, *caches = self._start(*inputs)
        if self._shares:
            _, num_heads, _, head_dim = caches[0].shape
            shape = (len(rows), num_heads, len(rest), head_dim)
            empty = Tensor(np.zeros(shape, np.float32), caches[0].dtype)
            caches += [empty] * len(caches)
        return logits.asnumpy(), caches

    def step(
        self, columns: Sequence[Tensor], caches: Sequence[Tensor]
    ) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Reads one token per row."""
        kept = caches[: len(caches) // 2] if self._shares else []
        with self._cache.second():
            logits, *changed = self._step(*columns, *caches)
        return logits.asnumpy(), [*kept, *changed]
