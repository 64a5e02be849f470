"""Feed-forward layers."""

from __future__ import annotations

from mindspore import nn

from mindplm.nn.kernels import gelu
from mindplm.nn.layers import Linear


class GatedFeedForward(nn.Cell):
    """down(gelu(gate(x)) * up(x)) * out_scale.

    Source: Shazeer, "GLU Variants Improve Transformer", GEGLU.
    """

    def __init__(self, hidden_size, ffn_size, *, out_scale=1.0, std, out_std, dtype):
        super().__init__()
        self.gate = Linear(hidden_size, ffn_size, std=std, dtype=dtype)
        self.up = Linear(hidden_size, ffn_size, std=std, dtype=dtype)
        self.down = Linear(ffn_size, hidden_size, std=out_std, dtype=dtype)
        self.out_scale = out_scale

    def construct(self, x_btd):
        return self.down(gelu(self.gate(x_btd), self.out_scale) * self.up(x_btd))
