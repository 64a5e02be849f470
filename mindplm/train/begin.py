"""Where a run begins: new weights or those of a checkpoint, and adapters on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindplm import adapters, checkpoint, families
from mindplm import config as settings
from mindplm.checkpoint import Checkpoint
from mindplm.config import RunConfig
from mindplm.errors import CheckpointError, ConfigError
from mindplm.nn.dropout import turn_on
from mindplm.nn.init import initialise
from mindplm.nn.lora import add_lora, lora_parameters
from mindplm.nn.values import from_arrays, load_model, weights_of
from mindplm.runtime import log
from mindplm.tensors import LazyArray


class Start:
    """The first weights of a network.

    Attributes:
        base: The checkpoint that adapters are put on, None if all weights are trained.
        lora: Settings of the adapters, None if all weights are trained.

    Args:
        model: The network; its parameters are set, and frozen if adapters are put on it.
        config: The run's settings.
        tokenizer: The run's tokenizer.
    """

    def __init__(self, model: Any, config: RunConfig, tokenizer: Any):
        self._model, self.lora = model, config.lora
        self.base: Checkpoint | None = None
        seed = config.runtime.seed
        if self.lora is not None:
            self._add_adapters(config, tokenizer)
        else:
            initialise(model, seed)
            if config.train.start:
                load_common(model, config.train.start)
        turn_on(model, config.model.dropout, seed=seed, spared=config.model.UNDROPPED)

    def _add_adapters(self, config: RunConfig, tokenizer: Any) -> None:
        folder, lora = config.train.start, config.lora
        assert lora is not None
        if not folder:
            raise ConfigError("lora trains adapters of a checkpoint; name it: train.start")
        self.base = whole(checkpoint.read(folder))
        check_same(self.base, config, tokenizer, f"train.start={folder}")
        load_model(self._model, self.base.lazy_weights(), folder, fresh=True)
        add_lora(
            self._model,
            lora.targets,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            gain=families.family(config.family).part("lora_gain"),
            seed=config.runtime.seed,
        )

    def load(self, saved: Checkpoint, weights: dict[str, Any]) -> None:
        """Takes the weights of a checkpoint of this run.

        Raises:
            CheckpointError: It has adapters where this run has none, or other ones, or vice versa.
        """
        was = saved.adapter.lora if saved.adapter is not None else None
        if was != self.lora:
            raise CheckpointError(
                f"{saved.folder} was trained with {_words(was)}, this run has {_words(self.lora)}; "
                "choose another train.output"
            )
        if self.lora is None:
            load_model(self._model, weights, str(saved.folder))
            return
        assert self.base is not None and saved.adapter is not None
        if saved.adapter.base.digest != adapters.weights_digest(self.base.folder):
            raise CheckpointError(
                f"{saved.folder} was trained on {saved.adapter.base.folder}, whose weights are not "
                f"those of {self.base.folder}; choose another train.output"
            )
        from_arrays(self.parameters, weights, str(saved.folder))

    @property
    def parameters(self) -> list[Any]:
        """The parameters that a checkpoint keeps."""
        if self.lora is None:
            return weights_of(self._model)
        return lora_parameters(self._model)

    @property
    def described_base(self) -> adapters.Base:
        """What adapters remember of the checkpoint that they belong to."""
        assert self.base is not None
        digest = adapters.weights_digest(self.base.folder)
        return adapters.Base(str(self.base.folder.resolve()), digest, self.base.model_config)


def load_common(model: Any, folder: str) -> None:
    """Takes the weights of a checkpoint that a model has too, and says what stays new.

    Raises:
        CheckpointError: They have nothing in common, or a shape differs.
    """
    known = common(folder, {weight.name: weight.shape for weight in model.get_parameters()})
    weights = [weight for weight in model.get_parameters() if weight.name in known]
    from_arrays(weights, known, folder)


def common(folder: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LazyArray]:
    """The weights of the checkpoint train.start that a model has too; says what stays new.

    Args:
        folder: The checkpoint.
        shapes: Name -> shape of the model's weights.

    Raises:
        CheckpointError: They have nothing in common, or a shape differs.
    """
    saved = whole(checkpoint.read(folder))
    arrays = saved.lazy_weights()
    known = {name: arrays[name] for name in shapes if name in arrays}
    if not known:
        raise CheckpointError(f"{saved.folder} has no tensor in common with the model of this run")
    for name, array in known.items():
        if tuple(array.shape) != tuple(shapes[name]):
            raise CheckpointError(
                f"{saved.folder}: {name} has shape {tuple(array.shape)}, expected {shapes[name]}"
            )
    new = sorted(set(shapes) - set(known))
    log.info("start       %d tensors of %s", len(known), saved.folder)
    if new:
        log.info("new         %d tensors, such as %s", len(new), new[0])
    if len(known) < len(arrays):
        log.info("left out    %d tensors of the checkpoint", len(arrays) - len(known))
    return known


def whole(saved: Checkpoint, key: str = "train.start") -> Checkpoint:
    """The checkpoint that a key of the settings names, if it is one of a whole model.

    Raises:
        ConfigError: It holds adapters.
    """
    if saved.adapter is not None:
        raise ConfigError(
            f"{key}={saved.folder} holds adapters; merge them into their base first: mindplm merge"
        )
    return saved


def check_same(saved: Checkpoint, config: RunConfig, tokenizer: Any, name: str) -> None:
    """Refuses a checkpoint of another model or vocabulary; dropout may differ.

    Raises:
        ConfigError: It says what differs.
    """
    if saved.family != config.family:
        raise ConfigError(f"{name} is of family {saved.family}, this run of {config.family}")
    was, now = (settings.to_dict(c) for c in (saved.model(), config.model))
    changes = [
        f"model.{key} was {was[key]}, is {now[key]}"
        for key in now
        if was[key] != now[key] and "dropout" not in key
    ]
    for file, data in tokenizer.files().items() if saved.tokenizer_files else ():
        if (saved.folder / file).read_bytes() != data:
            changes.append(f"{file} is another vocabulary")
    if changes:
        raise ConfigError(
            f"{name} does not fit: {'; '.join(changes)}; choose another train.output, or train "
            "with the settings of the checkpoint"
        )


def _words(lora: settings.LoraConfig | None) -> str:
    if lora is None:
        return "no adapters"
    return f"adapters of rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}"
