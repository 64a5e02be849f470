"""Feed-forward layers."""

from __future__ import annotations

from mindspore import nn

from mindplm.nn.kernels import gelu
from mindplm.nn.layers import Linear


class GatedFeedForward(nn.Cell):
    """down(gelu(gate(x)) * up(x)).

    Source: Shazeer, "GLU Variants Improve Transformer", GEGLU.
    """

    def __init__(self, hidden_size, ffn_size, *, fan_in_scale, std, dtype):
        super().__init__()
        scale = hidden_size**-0.5 if fan_in_scale else 1.0
        down = ffn_size**-0.5 if fan_in_scale else 1.0
        self.gate = Linear(hidden_size, ffn_size, scale=scale, std=std, dtype=dtype)
        self.up = Linear(hidden_size, ffn_size, scale=scale, std=std, dtype=dtype)
        self.down = Linear(ffn_size, hidden_size, scale=down, std=std, dtype=dtype)

    def construct(self, x_btd):
        return self.down(gelu(self.gate(x_btd)) * self.up(x_btd))
