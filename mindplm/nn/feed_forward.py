"""Feed-forward layers."""

from __future__ import annotations

from mindspore import nn

from mindplm.nn.dropout import Dropout
from mindplm.nn.kernels import gelu
from mindplm.nn.layers import Linear


class Gate(nn.Cell):
    """activation(gate) * up * scale; the activation takes the scale."""

    def __init__(self, scale: float, activation=gelu):
        super().__init__()
        self.scale, self.activation = scale, activation

    def construct(self, gate, up):
        return self.activation(gate, self.scale) * up


class GatedFeedForward(nn.Cell):
    """down(gelu(gate(x)) * up(x)) * out_scale.

    Source: Shazeer, "GLU Variants Improve Transformer", GEGLU.
    """

    def __init__(
        self, hidden_size, ffn_size, *, out_scale=1.0, std, out_std, activation=gelu, dtype
    ):
        super().__init__()
        self.gate = Linear(hidden_size, ffn_size, std=std, dtype=dtype)
        self.up = Linear(hidden_size, ffn_size, std=std, dtype=dtype)
        self.down = Linear(ffn_size, hidden_size, std=out_std, dtype=dtype)
        self.act, self.inside = Gate(out_scale, activation), Dropout()

    def construct(self, x_btd):
        return self.down(self.inside(self.act(self.gate(x_btd), self.up(x_btd))))


class Activate(nn.Cell):
    """A function of `mindplm.nn.kernels` as a cell."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def construct(self, x):
        return self.activation(x)


class FeedForward(nn.Cell):
    """down(activation(up(x))).

    Args:
        hidden_size: Width of the residual stream.
        ffn_size: Inner width.
        activation: Function of a tensor, of `mindplm.nn.kernels`.
        std: Standard deviation of the initial weights.
        out_std: The same for the second projection.
        bias: Whether the two projections have biases.
        dtype: Type of weights and activations.
    """

    def __init__(self, hidden_size, ffn_size, *, activation=gelu, std, out_std, bias=False, dtype):
        super().__init__()
        self.up = Linear(hidden_size, ffn_size, bias=bias, std=std, dtype=dtype)
        self.down = Linear(ffn_size, hidden_size, bias=bias, std=out_std, dtype=dtype)
        self.activate, self.inside = Activate(activation), Dropout()

    def construct(self, x_btd):
        return self.down(self.inside(self.activate(self.up(x_btd))))
