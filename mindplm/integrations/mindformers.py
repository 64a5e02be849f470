"""CPM-Bee as parts of MindFormers: config, model, tokenizer, rows and recorder, step and optimizer.

Importing this module registers them, so that a MindFormers YAML can name them as `type`. It imports
MindFormers, which writes logs below the current folder; `mindformers_run` keeps those elsewhere.

| registry | type |
|---|---|
| config, models | MindplmCpmBeeConfig, MindplmCpmBee |
| tokenizer | MindplmCpmBeeTokenizer |
| dataset_loader, dataset | MindplmRows, MindplmDataset |
| lr, optimizer | MindplmSchedule, MindplmAdam |
| wrapper | MindplmTrainStep |
| callback | MindplmRecorder |

Schedule, optimizer and wrapper are in `mindformers_step`.

Source: MindFormers 1.9, the interfaces of `use_legacy: True`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train.callback import Callback

from mindplm import assets
from mindplm.checkpoint import RunFolder, TrainState
from mindplm.data.loader import RowStream
from mindplm.data.packing import COLUMNS
from mindplm.data.records import open_folder
from mindplm.errors import ConfigError, UserError
from mindplm.families import model_from_dict
from mindplm.integrations.mindformers_config import (
    RecorderSection,
    RowsSection,
    missing,
    read_section,
)
from mindplm.integrations.mindformers_step import MindplmAdam
from mindplm.models.cpm_bee.cell import CpmBee, CpmBeeLoss
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.nn.init import initialise
from mindplm.nn.values import to_arrays
from mindplm.strict import suggest, to_plain
from mindplm.tokenizers.cpm_bee import VOCAB_FILE, CpmBeeTokenizer, escape
from mindplm.train.metrics import Metrics
from mindplm.train.scaler import LossScale, scalar

try:
    from mindformers.dataset.base_dataset import BaseDataset
    from mindformers.dataset.dataloader.build_dataloader import build_dataset_loader
    from mindformers.models.configuration_utils import PretrainedConfig
    from mindformers.models.modeling_utils import PreTrainedModel
    from mindformers.models.tokenization_utils import PreTrainedTokenizer
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindformers.tools.utils import get_output_root_path, get_real_group_size, get_real_rank
except ImportError as error:
    raise missing(error) from None

_MOST_SKIPPED = 20
"""Steps in a row without finite numbers before a run ends."""
_SIZES = tuple(field.name for field in dataclasses.fields(CpmBeeConfig))
# What MindFormers adds to a model's section, or reads there.
_THEIRS = (
    "architectures", "batch_size", "calculate_per_token_loss", "checkpoint_name_or_path",
    "dataset_config", "disable_lazy_inline", "input_sliced_sig", "mindformers_version",
    "model_type", "moe_config", "name_or_path", "parallel_config", "pretrained_model_dir",
    "tokenizer_class", "use_past",
)  # fmt: skip


# --- model ----------------------------------------------------------------------------------------


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class MindplmCpmBeeConfig(PretrainedConfig):
    """The sizes of `CpmBeeConfig` (or `preset`, and what differs from it) as attributes.

    Raises:
        ConfigError: A key that is neither a size nor one of MindFormers' own.
    """

    model_type = "mindplm_cpm_bee"

    def __init__(self, **given: Any):
        own = {key: given.pop(key) for key in ("preset", *_SIZES) if key in given}
        for key in given:
            if key not in _THEIRS:
                raise ConfigError(f"unknown key {key}; {suggest(key, ('preset', *_SIZES))}")
        super().__init__(**given)
        for key, value in to_plain(model_from_dict("cpm_bee", own, "model_config")).items():
            setattr(self, key, value)

    @property
    def sizes(self) -> CpmBeeConfig:
        """The typed config."""
        return model_from_dict("cpm_bee", {k: getattr(self, k) for k in _SIZES}, "model_config")


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class MindplmCpmBee(PreTrainedModel):
    """CPM-Bee's training cell: columns of a batch in, mean loss of the targets out.

    Parameters have our names. They are drawn from MindSpore's global seed, which MindFormers sets
    from `seed`, as `mindplm pretrain` draws them from runtime.seed.
    """

    config_class = MindplmCpmBeeConfig
    base_model_prefix = "bee"

    def __init__(self, config: MindplmCpmBeeConfig):
        super().__init__(config, auto_prefix=False)
        sizes = config.sizes
        if not sizes.vocab_size:
            raise ConfigError("model.model_config.vocab_size is 0, expected that of the vocabulary")
        if sizes.dropout:
            raise ConfigError(f"model.model_config.dropout={sizes.dropout}, expected 0 here")
        self.bee = CpmBee(sizes)
        self.loss = CpmBeeLoss(self.bee)
        initialise(self.bee, ms.get_seed() or 0)

    @classmethod
    def can_generate(cls) -> bool:
        """No: `mindplm.generate` writes, from the recorder's checkpoints."""
        return False

    def get_model_parameters(self, only_trainable: bool = True) -> list[Any]:
        """The parameters, as MindFormers asks for them."""
        return self.trainable_params() if only_trainable else list(self.get_parameters())

    def construct(self, *columns):
        """Mean loss in nats; columns as `mindplm.data.packing.COLUMNS`."""
        total, count = self.loss(*columns)
        return total / ops.maximum(count, Tensor(1.0, ms.float32))


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class MindplmCpmBeeTokenizer(PreTrainedTokenizer):
    """CPM-Bee's tokenizer behind MindFormers' interface, for plain text.

    Text that has no entry becomes the id of <unk>: the ids that CPM-Bee makes up for it need a
    table beside them, which `bee` gives.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str = "", **given: Any):
        self.bee = CpmBeeTokenizer.from_file(vocab_file or assets.path(assets.DEFAULT_VOCAB))
        names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
        for name, token in names.items():
            given.setdefault(f"{name}_token", token)
        super().__init__(**given)

    @property
    def vocab_size(self) -> int:
        """Entries."""
        return self.bee.vocab_size

    def __len__(self) -> int:
        """Entries; the marks of beginning, end and so on are among them."""
        return self.bee.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Entry to id."""
        return dict(self.bee.token_to_id)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [token.text for token in self.bee.tokenize(escape(text))]

    def _convert_token_to_id(self, token: str) -> int:
        return self.bee.token_to_id.get(token, self.bee.unk_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self.bee.id_to_token[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: Any = None) -> tuple[str]:
        """Writes the vocabulary file; returns its path."""
        name = f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE
        path = Path(save_directory) / name
        path.write_bytes(self.bee.files()[VOCAB_FILE])
        return (str(path),)


# --- rows -----------------------------------------------------------------------------------------


class _Batches:
    """Batches of prepared rows; each pass goes on where the last one ended."""

    def __init__(self, rows: RowsSection, seed: int, batch_size: int):
        self.folder = open_folder(rows.folder)
        self.seed, self.rank, self.world = seed, get_real_rank(), get_real_group_size()
        self.batch_size = batch_size * self.world
        self.steps = rows.steps or max(1, len(self.folder) // self.batch_size)
        self.passes = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        first, self.passes = self.passes * self.steps, self.passes + 1
        with RowStream(
            self.folder,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=self.rank,
            world=self.world,
            start_step=first,
        ) as stream:
            for _ in range(self.steps):
                yield tuple(next(stream)[0].values())


@MindFormerRegister.register(MindFormerModuleType.DATASET_LOADER)
class MindplmRows:
    """Whole batches of a folder of prepared rows, in the order of `mindplm.data.loader`."""

    def __new__(cls, *, seed: int, batch_size: int, **own: Any) -> Any:
        """Builds the MindSpore dataset; batch_size is that of one device."""
        rows = read_section(RowsSection, own, "train_dataset.data_loader")
        source = _Batches(rows, seed, batch_size)
        return ds.GeneratorDataset(source, list(COLUMNS), shuffle=False, num_parallel_workers=1)


@MindFormerRegister.register(MindFormerModuleType.DATASET)
class MindplmDataset(BaseDataset):
    """The dataset task around a data_loader of type MindplmRows."""

    def __new__(cls, dataset_config: Any = None) -> Any:
        """Builds the MindSpore dataset."""
        more = {"seed": dataset_config.seed or 0, "batch_size": dataset_config.batch_size}
        return build_dataset_loader(dataset_config.data_loader, default_args=more)


# --- what a run leaves ----------------------------------------------------------------------------


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class MindplmRecorder(Callback):
    """Writes metrics.jsonl, TensorBoard files and our checkpoints into MindFormers' output_dir."""

    def __init__(self, **own: Any):
        super().__init__()
        self.config = read_section(RecorderSection, own, "callbacks")
        vocab = self.config.vocab_file or assets.path(assets.DEFAULT_VOCAB)
        self.tokenizer = CpmBeeTokenizer.from_file(vocab)
        self.run = RunFolder(get_output_root_path())
        self.rank0 = get_real_rank() == 0
        self.skipped = self.in_a_row = self.saved = 0
        self.metrics: Any = None
        self.begin_s = 0.0

    def on_train_begin(self, run_context: Any) -> None:
        """Opens the files."""
        now = run_context.original_args()
        total = now.batch_num * now.epoch_num
        self.metrics = Metrics(self.run.root, total, self.rank0, append=False)
        self.begin_s = time.perf_counter()

    def on_train_step_end(self, run_context: Any) -> None:
        """Reports and saves what is due.

        Raises:
            UserError: No finite loss for too many steps in a row.
        """
        now = run_context.original_args()
        step = now.cur_step_num
        loss, skipped, _, lr, norm = (float(np.asarray(v.asnumpy()).reshape(-1)[0])
                                      for v in now.net_outputs)  # fmt: skip
        self.skipped += int(skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= _MOST_SKIPPED:
            raise UserError(
                f"no finite loss and gradient in {self.in_a_row} steps up to step {step} (loss "
                f"{loss}, norm {norm}); lower lr_schedule.lr"
            )
        took_s, self.begin_s = time.perf_counter() - self.begin_s, time.perf_counter()
        if step % self.config.log_every == 0 or step == now.batch_num * now.epoch_num:
            values = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm}
            values.update({"train/step_ms": 1000 * took_s, "train/skipped": self.skipped})
            self.metrics.log(step, values)
        if self.config.save_every and step % self.config.save_every == 0:
            self._save(step, now.train_network)
            self.begin_s = time.perf_counter()

    def on_train_end(self, run_context: Any) -> None:
        """Saves the end and closes the files."""
        now = run_context.original_args()
        if self.saved != now.cur_step_num:
            self._save(now.cur_step_num, now.train_network)
        self.metrics.close()

    def _save(self, step: int, network: nn.Cell) -> None:
        """Writes a checkpoint that `mindplm.load` opens and `mindplm pretrain` goes on from."""
        self.saved = step
        if not self.rank0:
            return
        cells = [cell for _, cell in network.cells_and_names()]
        model = next(cell for cell in cells if isinstance(cell, MindplmCpmBee))
        state, meta = {}, {"seed": ms.get_seed() or 0}
        for cell in cells:
            if isinstance(cell, MindplmAdam):
                updates = int(cell.global_step.asnumpy()[0])
                scale = LossScale(cell.adam.numbers, dynamic=False).state()
                both = [*cell.adam.moment1, *cell.adam.moment2]
                state = to_arrays([*both, *scale, scalar(updates, "updates")])
                meta["updates"] = updates
        self.run.save(
            TrainState(step, state, meta),
            family="cpm_bee",
            model_config=to_plain(model.config.sizes),
            weights=to_arrays(model.bee.get_parameters()),
            tokenizer_files=self.tokenizer.files(),
            keep_last=self.config.keep_last,
        )
