"""A pre-norm residual block whose two halves are each optional."""

from __future__ import annotations

from typing import Any

from mindspore import nn


class Block(nn.Cell):
    """x -> (x + part(norm(x))) * keep for attention, then for feed-forward.

    Args:
        attn_norm, attn: Norm and attention, both None if the block has none.
        ffn_norm, ffn: Norm and feed-forward, both None if the block has none.
        keep: Factor on each residual sum; CPM-Bee divides by 1.05.
    """

    def __init__(
        self,
        attn_norm: nn.Cell | None,
        attn: nn.Cell | None,
        ffn_norm: nn.Cell | None,
        ffn: nn.Cell | None,
        *,
        keep: float = 1.0,
    ):
        super().__init__()
        self.attn_norm: Any = attn_norm
        self.attn: Any = attn
        self.ffn_norm: Any = ffn_norm
        self.ffn: Any = ffn
        self.has_attn, self.has_ffn = attn is not None, ffn is not None
        self.keep = keep

    def attend(self, x_btd, bias_bhts, row_bt1):
        """The attention half over whole rows."""
        if self.has_attn:
            return (x_btd + self.attn(self.attn_norm(x_btd), bias_bhts, row_bt1)) * self.keep
        return x_btd

    def feed(self, x_btd):
        """The feed-forward half."""
        if self.has_ffn:
            return (x_btd + self.ffn(self.ffn_norm(x_btd))) * self.keep
        return x_btd

    def construct(self, x_btd, bias_bhts, row_bt1):
        return self.feed(self.attend(x_btd, bias_bhts, row_bt1))
