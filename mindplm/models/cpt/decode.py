"""CPT's two passes of writing: the text is read once, then one token of every row at a time.

Suffixes of tensor names: b rows, s positions of the text or of the caches, d hidden.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindplm.models.cpt.cell import Cpt
from mindplm.models.cpt.config import OFFSET
from mindplm.nn.decoder import first_token, next_token
from mindplm.nn.kernels import mask_bias
from mindplm.nn.mask import memory_bias


class CptPrefill(nn.Cell):
    """Reads texts and the start token; scores of the first written token, and the caches.

    construct takes ids, real int32 [B, S], padded on the right. The start token is the one that
    each text ends with, [SEP].
    """

    def __init__(self, model: Cpt):
        super().__init__(auto_prefix=False)
        self.model, self.type = model, model.config.write_type

    def construct(self, ids_bs, real_bs):
        model = self.model
        types_bs = ops.ones_like(ids_bs) * self.type
        memory_bsd = model.states(ids_bs, types_bs, real_bs)[model.shared]
        last_b1 = real_bs.sum(1, keepdims=True).astype(ms.int32) - 1
        start_b1 = ops.gather_d(ids_bs, 1, last_b1)
        first_b1 = ops.full_like(start_b1, OFFSET)
        x_b1d = model.decoder.start(model.encoder.embed(start_b1), first_b1)
        bias = ops.zeros((1, 1, 1, 1), ms.float32)
        across = memory_bias(real_bs)
        x_b1d, own, fixed = first_token(model.decoder.blocks, x_b1d, bias, memory_bsd, across)
        return (model.project(x_b1d[:, 0]), *own, *fixed)


class CptStep(nn.Cell):
    """One token of every row in, its scores and the grown caches out.

    construct takes ids int32 [B]; slot [1], its place behind the start token; real [B, S] of the
    text, as long as the caches; parents [B]; then the caches.
    """

    def __init__(self, model: Cpt):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids_b, slot_1, real_bs, parents_b, *old):
        model = self.model
        places_s = ops.arange(old[0].shape[2]).astype(ms.int32)
        bias = mask_bias((places_s <= slot_1).reshape((1, 1, -1)))
        across = memory_bias(real_bs)
        words_b1d = model.encoder.embed(ids_b.expand_dims(1))
        x_b1d = model.decoder.start(words_b1d, slot_1.expand_dims(0) + OFFSET)
        blocks = model.decoder.blocks
        x_b1d, caches = next_token(blocks, x_b1d, bias, across, parents_b, slot_1, old)
        return (model.project(x_b1d[:, 0]), *caches)


def writing_cells(model: Cpt) -> tuple[CptPrefill, CptStep]:
    """The two passes of writing over one network."""
    return CptPrefill(model), CptStep(model)
