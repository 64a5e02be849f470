"""THE table: what belongs to a model family, by name, loaded on first use.

References are text, "module:name", so that reading the table, or a config of one family, loads
neither MindSpore nor the other families.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindplm import assets, config_head, shards
from mindplm import config as settings
from mindplm.config_task import read_task
from mindplm.errors import ConfigError, VocabError
from mindplm.family import Family
from mindplm.yaml_io import load_plain


def no_gain(_: int) -> float:
    """For networks that give their projections the inputs as they are."""
    return 1.0


NO_COLUMNS: tuple[str, ...] = ()
"""For families all of whose columns have a row for each row of the batch."""


def _names(
    family: str, config: str, of_original: str = "original", sharded: str = ""
) -> dict[str, Any]:
    """References to what every family's package defines.

    Args:
        family: Package of the family.
        config: Dataclass of the model section.
        of_original: How its functions from_... and to_... call the original.
        sharded: The training cell of the shard plan, in the package; "": there is no plan.
    """
    module = f"mindplm.models.{family}.config:"
    return {
        "plan_ref": f"mindplm.models.{family}.plan:PLAN" if sharded else "",
        "sharded_ref": f"mindplm.models.{family}.{sharded}" if sharded else "",
        "config_ref": module + config,
        "presets_ref": module + "PRESETS",
        "num_parameters_ref": module + "num_parameters",
        "shapes_ref": module + "parameter_shapes",
        "rules_ref": module + "rules",
        "from_original_ref": module + "from_" + of_original,
        "to_original_ref": module + "to_" + of_original,
        "flavours_ref": module + "FLAVOURS",
        "flavour_of_ref": module + "flavour_of",
    }


_BEE = "mindplm.models.cpm_bee.config:"
_CAUSAL: dict[str, Any] = {
    "loss_ref": "mindplm.nn.causal:CausalLoss",
    "rows_ref": "mindplm.data.causal_rows:ROWS",
    "layout_ref": "mindplm.generate.text_layout:causal_layout",
    "decode_ref": "mindplm.nn.causal:writing_cells",
    "distill_ref": "mindplm.nn.distill:DistillLoss",
    "scorer_ref": "mindplm.generate.text_scoring:CausalScorer",
}
_WORD_PIECES: dict[str, Any] = {
    "tokenizer_ref": "mindplm.tokenizers.wordpiece:WordPieceTokenizer",
    "vocab": "vocab_wordpiece.txt",
}

FAMILIES: dict[str, Family] = {
    "cpm_bee": Family(
        title="CPM-Bee: nested records in, filled answers out",
        **_names("cpm_bee", "CpmBeeConfig", "openbmb", "sharded:ShardedCpmBeeLoss"),
        lora_rules_ref=_BEE + "lora_rules",
        lora_gain_ref=_BEE + "lora_gain",
        cell_ref="mindplm.models.cpm_bee.cell:CpmBee",
        loss_ref="mindplm.models.cpm_bee.cell:CpmBeeLoss",
        shared_columns_ref=_BEE + "SHARED_COLUMNS",
        tokenizer_ref="mindplm.tokenizers.cpm_bee:CpmBeeTokenizer",
        rows_ref="mindplm.data.bee_rows:ROWS",
        layout_ref="mindplm.generate.bee_layout:BeeLayout",
        decode_ref="mindplm.models.cpm_bee.decode:writing_cells",
        scorer_ref="mindplm.generate.scoring:Scorer",
        step_flops_ref=_BEE + "step_flops",
    ),
    "bert": Family(
        title="BERT: a masked language model for Chinese or English, made at home in a domain",
        **_names("bert", "BertConfig", sharded="cell:sharded"),
        **_WORD_PIECES,
        cell_ref="mindplm.models.bert.cell:Bert",
        loss_ref="mindplm.models.bert.cell:BertLoss",
        rows_ref="mindplm.data.masked_rows:ROWS",
        states_ref="mindplm.models.bert.cell:BertStates",
    ),
    "cpt": Family(
        title="CPT: one encoder, a decoder that understands and a decoder that writes Chinese",
        **_names("cpt", "CptConfig", sharded="cell:sharded"),
        **_WORD_PIECES,
        cell_ref="mindplm.models.cpt.cell:Cpt",
        loss_ref="mindplm.models.cpt.cell:CptLoss",
        rows_ref="mindplm.data.cpt_rows:ROWS",
        states_ref="mindplm.models.cpt.cell:CptStates",
        slots_ref="mindplm.models.cpt.cell:CptSlots",
        layout_ref="mindplm.generate.cpt_layout:cpt_layout",
        decode_ref="mindplm.models.cpt.decode:writing_cells",
    ),
    "cpm1": Family(
        title="CPM-1: a Chinese language model, pieces behind jieba's words",
        **_names("cpm1", "Cpm1Config", sharded="cell:sharded"),
        **_CAUSAL,
        cell_ref="mindplm.models.cpm1.cell:network",
        tokenizer_ref="mindplm.tokenizers.sentencepieces:Cpm1Tokenizer",
        plain_texts=True,
        layouts_ref="mindplm.models.cpm1.files:LAYOUTS",
        vocab_files=("chinese_vocab.model", "spiece.model"),
        vocab_build_ref="mindplm.tokenizers.pieces_vocab:build",
        vocab="pieces_chinese.model",
        vocab_size_ref="mindplm.tokenizers.sentencepieces:num_pieces",
    ),
    "gpt1": Family(
        title="GPT-1: an English language model on byte pairs, and its fine-tuning tasks",
        **_names("gpt1", "Gpt1Config", sharded="cell:sharded"),
        **_CAUSAL,
        cell_ref="mindplm.models.gpt1.cell:network",
        tokenizer_ref="mindplm.tokenizers.bpe:BpeTokenizer",
        plain_texts=True,
        head_ref="mindplm.models.gpt1.heads:TaskParts",
        head_rows_ref="mindplm.data.marked_rows:ROWS",
        head_answers_ref="mindplm.measure.marked:Marked",
        layouts_ref="mindplm.models.gpt1.files:LAYOUTS",
        vocab_files=("bpe.json", "encoder_bpe_40000.json", "vocab.json"),
        vocab_back_ref="mindplm.tokenizers.bpe:original_files",
        vocab_build_ref="mindplm.tokenizers.bpe_vocab:build",
        vocab="bpe_english.json",
        vocab_size_ref="mindplm.tokenizers.bpe:num_pieces",
    ),
    "t5": Family(
        title="T5: text to text, restructured pretraining on signals with prompts",
        **_names("t5", "T5Config", sharded="cell:sharded"),
        fitted_ref="mindplm.models.t5.config:fitted",
        cell_ref="mindplm.models.t5.cell:T5",
        loss_ref="mindplm.models.t5.cell:T5Loss",
        tokenizer_ref="mindplm.tokenizers.sentencepieces:T5Tokenizer",
        rows_ref="mindplm.data.pair_rows:ROWS",
        layout_ref="mindplm.generate.pair_layout:t5_layout",
        decode_ref="mindplm.models.t5.cell:writing_cells",
        scorer_ref="mindplm.generate.text_scoring:PairScorer",
        plain_texts=True,
        vocab_files=("spiece.model", "sentencepiece.model"),
        vocab_build_ref="mindplm.tokenizers.pieces_vocab:build_t5",
        vocab="pieces_t5.model",
        vocab_size_ref="mindplm.tokenizers.sentencepieces:num_t5_rows",
    ),
}


def family(name: str) -> Family:
    """The table's entry; ConfigError with what is accepted if there is none."""
    if name not in FAMILIES:
        raise ConfigError(f"family {name!r} is not known; accepted: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def parts_of(name: str, head: settings.HeadConfig | None) -> Family:
    """The table's entry; with a head its cell, loss and rows are those of the head's task.

    Raises:
        ConfigError: The family has no states for a head, or the task has no such form.
    """
    entry = family(name)
    if head is None:
        return entry
    shape = read_task(head.task).shape
    if entry.head_ref:
        made = entry.part("head")(shape, head)
    else:
        form, count = config_head.form_of(shape), len(config_head.classes_of(shape))
        config_head.check_crf(head, form)
        makers = importlib.import_module("mindplm.models.heads")
        cell, states = entry.part("cell"), entry.part("states")
        made = makers.HeadParts(cell, states, form, count, head)
    return dataclasses.replace(
        entry,
        shared_columns_ref=Family.shared_columns_ref,
        step_flops_ref="",
        made={"cell": made.cell, "loss": made.loss, "rows": rows_of(name, head)},
    )


def rows_of(name: str, head: settings.HeadConfig | None) -> Any:
    """The `RowKind` of a family, or of its head's task; MindSpore is not loaded."""
    if head is None:
        return family(name).part("rows")
    if family(name).head_rows_ref:
        return family(name).part("head_rows")
    if not family(name).states_ref:
        able = ", ".join(k for k, entry in FAMILIES.items() if entry.states_ref or entry.head_ref)
        raise ConfigError(f"head: {name} has no states for a head; families with them: {able}")
    form = config_head.form_of(read_task(head.task).shape)
    return importlib.import_module("mindplm.data.head_rows").ROWS[form]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> settings.RunConfig:
    """Reads a run's settings; model.vocab_size=0 is replaced by the size of the vocabulary file.

    Args:
        path: YAML file.
        overrides: `key=value` texts, later ones win.
    """
    config = _as_started(settings.read_config(path, overrides, FAMILIES))
    if not config.model.vocab_size:
        parts = family(config.family)
        size = parts.part("vocab_size")(vocab_path(config.tokenizer, config.family))
        model = dataclasses.replace(config.model, vocab_size=size)
        config = dataclasses.replace(config, model=model)
    check_layout(config)
    return config


def _as_started(config: settings.RunConfig) -> settings.RunConfig:
    """The sizes and the vocabulary of the checkpoint train.start, where the settings name none."""
    if not config.train.start:
        return config
    folder = Path(config.train.start)
    if not (folder / "model.yaml").is_file():
        runs = sorted(folder.glob("checkpoints/step-*/model.yaml"))
        if not runs:
            raise ConfigError(f"train.start={folder}: no checkpoint there")
        folder = runs[-1].parent
    head = load_plain(folder / "model.yaml")
    if not config.tokenizer.path:
        vocab = settings.TokenizerConfig(str(folder / head["tokenizer"][0]))
        config = dataclasses.replace(config, tokenizer=vocab)
    own = config.model.dropout  # a setting of a run, not of the weights
    plain = type(config.model)(dropout=own)
    if head["family"] == config.family and config.model == plain:
        model = model_from_dict(config.family, head["config"], str(folder))
        config = dataclasses.replace(config, model=dataclasses.replace(model, dropout=own))
    return config


def check_layout(config: settings.RunConfig) -> None:
    """Checks a layout over devices against the family's shard plan, if one is asked for.

    Raises:
        ConfigError: The family has no plan, or something does not divide.
    """
    if not config.parallel.by_plan:
        return
    parts = family(config.family)
    if not parts.plan_ref:
        able = ", ".join(name for name, entry in FAMILIES.items() if entry.plan_ref)
        raise ConfigError(
            f"family {config.family} has no shard plan, so only parallel.data is accepted; "
            f"families with one: {able}"
        )
    if config.model.dropout:
        raise ConfigError(
            f"model.dropout={config.model.dropout} is for parallel.data only; with weights cut "
            "over devices it must be 0"
        )
    rows = shards.vocab_rows(config.model.vocab_size, config.parallel)
    padded = dataclasses.replace(config.model, vocab_size=rows)
    shards.check(parts.part("plan"), config, parts.part("shapes")(padded))


def config_from_dict(
    tree: Mapping[str, Any], source: str = "settings", overrides: Sequence[str] = ()
) -> settings.RunConfig:
    """Settings from a mapping, such as a checkpoint's run.yaml holds."""
    return settings.from_dict(tree, FAMILIES, source, overrides)


def model_from_dict(name: str, tree: Mapping[str, Any], source: str) -> Any:
    """A family's model config from a mapping, such as a checkpoint's model.yaml holds."""
    return settings.build_model(tree, family(name), settings.Source(source))


def vocab_path(tokenizer: settings.TokenizerConfig, name: str = "cpm_bee") -> Path:
    """The vocabulary file of a run of a family."""
    return Path(tokenizer.path) if tokenizer.path else assets.path(family(name).vocab)


def vocab_lines(path: Path) -> int:
    """Number of entries of a vocabulary file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise VocabError(f"{path}: no such vocabulary file (tokenizer.path)") from None
    return sum(1 for line in data.split(b"\n") if line)
