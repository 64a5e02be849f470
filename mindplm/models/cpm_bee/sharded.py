"""The CPM-Bee training cell that a shard plan is laid over; see `plan.PLAN`."""

from __future__ import annotations

from mindspore import Parameter, nn, ops

from mindplm.models.cpm_bee.cell import CpmBee, SubRows
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.nn.loss import Pick
from mindplm.nn.table_loss import TableNll, Weigh


class ShardedCpmBeeLoss(nn.Cell):
    """Sum of the token losses times a factor, as one scalar.

    The factor multiplies every loss: a scalar, the sum, must be what the network ends with.

    Args:
        config: Sizes.
        dtype: Type of weights and activations.
        vocab_rows: Rows of the embedding.
        stages: Pipeline stage of each block.
    """

    def __init__(self, config: CpmBeeConfig, dtype, vocab_rows: int, stages: tuple[int, ...]):
        super().__init__(auto_prefix=False)
        self.model = CpmBee(config, dtype, vocab_rows=vocab_rows, stages=stages)
        self.pick = Pick()
        self.ext_rows = SubRows(config.hidden_size, dtype)
        self.nll = TableNll(self.model.root, config.vocab_size, vocab_rows, extended=True)
        self.weigh = Weigh()
        self.total = ops.ReduceSum()
        self.set_stages(stages)

    def shared_weights(self) -> list[Parameter]:
        """Weights of the first pipeline stage that later ones use too."""
        return [self.model.embed.weight, self.model.position_bias.weight]

    def set_stages(self, stages: tuple[int, ...]) -> None:
        """Marks the pipeline stage of every part."""
        last = max(stages)
        if not last:
            return
        for block, stage in zip(self.model.blocks, stages):
            block.pipeline_stage = stage
        for stage, frame in enumerate(self.model.frames):
            frame.pipeline_stage = stage
        self.model.embed.pipeline_stage = 0
        for cell in (self.model.final_norm, self.pick, self.ext_rows, self.nll, self.weigh):
            cell.pipeline_stage = last

    def construct(self, numbers, *columns):
        """fp32 scalar.

        Args:
            numbers: fp32 vector, its first value a factor on every loss.
            columns: Those of `mindplm.data.packing.COLUMNS` in their order.
        """
        hidden_nd = self.model.encode(columns[:10])
        target_pos, targets, ext_ids, ext_sub, num_ext = columns[10:]
        wanted, labels = self.pick(hidden_nd, target_pos, targets)
        table = self.model.embed.weight
        extra = self.ext_rows(table, ext_ids, ext_sub)
        nll = self.nll(wanted, table, labels, extra, num_ext)
        return self.total(self.weigh(nll, labels, numbers))
