"""An entry of the table of families, see `mindplm.families`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from mindplm import assets
from mindplm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Family:
    """References to the parts of one family; `part` and the properties load them."""

    title: str
    """What it is, for people."""
    config_ref: str
    """Dataclass of the model section."""
    presets_ref: str
    """Dict of named configs."""
    num_parameters_ref: str
    """config -> int."""
    shapes_ref: str
    """config -> name -> shape."""
    rules_ref: str
    """config -> weight rules of the original's checkpoints."""
    from_original_ref: str
    """The original's config dict -> config."""
    to_original_ref: str
    """config -> the original's config dict."""
    cell_ref: str
    """The network."""
    loss_ref: str
    """The training network: network -> cell of the columns that gives (loss sum, count)."""
    flavours_ref: str
    """Names of the ways that the originals' checkpoints are written."""
    flavour_of_ref: str
    """Names of tensors -> one of the flavours."""
    tokenizer_ref: str
    """The tokenizer class."""
    rows_ref: str
    """The `RowKind`: how documents become rows, and rows batches."""
    shared_columns_ref: str = "mindplm.families:NO_COLUMNS"
    """Names of the columns that belong to the whole batch and are not cut into micro-batches."""
    fitted_ref: str = ""
    """(config, foreign tensors) -> the config with what only the tensors say of their form."""
    lora_rules_ref: str = ""
    """flavour -> weight rules of the original's LoRA files; "": it has none."""
    lora_gain_ref: str = "mindplm.families:no_gain"
    """Input width of a projection -> factor on an adapter's branch, see `nn.lora.add_lora`."""
    layout_ref: str = ""
    """(tokenizer, config) -> `generate.layout.Layout`, for families that write."""
    decode_ref: str = ""
    """network -> the two cells of writing, see `generate.compiled.CompiledNetwork`."""
    plan_ref: str = ""
    """The `ShardPlan`, for families that can be cut over devices."""
    sharded_ref: str = ""
    """(config, dtype, rows of the embedding, stage of each block) -> the plan's training cell."""
    distill_ref: str = ""
    """(network, teacher, hard=, soft=, temperature=) -> training cell; "": cannot be distilled."""
    scorer_ref: str = ""
    """network -> what `generate.scoring` measures with."""
    slots_ref: str = ""
    """network -> scores of words at places, see `measure.slotted`; "": there are no slots."""
    plain_texts: bool = False
    """Records hold texts as they are: there are no tags, so no `<` is doubled."""
    states_ref: str = ""
    """(network, which states) -> what a head looks at, see `nn.heads.HeadedModel`."""
    head_ref: str = ""
    """(shape of the task, settings of the head) -> object whose `cell` and `loss` train a head, for
    families with heads of their own kind."""
    head_rows_ref: str = ""
    """Their `RowKind`."""
    head_answers_ref: str = ""
    """(settings of the run, network, tokenizer) -> what answers with such a head."""
    step_flops_ref: str = ""
    """(config, tokens=, targets=, seq_len=) -> operations of a training step; "": not known."""
    layouts_ref: str = ""
    """Flavour -> `weights.sources.FileLayout` of originals with files of a form of their own."""
    vocab_files: tuple[str, ...] = ("vocab.txt", "bee.txt")
    """Names of the vocabulary beside an original's tensors."""
    vocab_back_ref: str = ""
    """(tokenizer, flavour) -> the original's vocabulary files; "": they are like ours."""
    vocab_build_ref: str = ""
    """(texts, size) -> tokenizer with pieces of these texts; "": that of CPM-Bee's files."""
    vocab: str = assets.DEFAULT_VOCAB
    """The vocabulary that ships with the library."""
    vocab_size_ref: str = "mindplm.families:vocab_lines"
    """Path of a vocabulary file -> its number of entries."""
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Parts that stand for those of the references."""

    def part(self, name: str) -> Any:
        """Loads one part: part("cell") is what cell_ref names.

        Raises:
            ConfigError: The family has none.
        """
        if name in self.made:
            return self.made[name]
        reference = getattr(self, name + "_ref")
        if not reference:
            raise ConfigError(f"this family has no {name}: {self.title}")
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def config(self) -> type:
        """Dataclass of the model section."""
        return self.part("config")

    @property
    def presets(self) -> Mapping[str, Any]:
        """Named configs."""
        return self.part("presets")
