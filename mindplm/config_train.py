"""The settings of training: optimizer, schedule, length, batches and what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindplm.strict import at_least, between, require


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adam_l2"] = "adamw"
    """adamw: decoupled decay; adam_l2: decay added to the gradient."""
    lr: float = 1e-4
    """Peak learning rate; with noam the base that is divided by the root of the step."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    eps_corrected: bool = True
    """Whether that root is the bias-corrected one; not so in the programs of BERT and GPT-1."""
    weight_decay: float = 0.01
    """Strength of weight decay."""
    decay: Literal["matrices", "tables", "all"] = "matrices"
    """What decays: weight matrices (no norms, biases, embeddings, bias tables); with tables also
    embeddings and bias tables; or everything."""
    decay_corrected: bool = False
    """Whether decoupled decay follows the rate with its bias corrections, as in GPT-1's program."""
    schedule: Literal["noam", "cosine", "linear", "constant", "exponential"] = "cosine"
    """Shape of the learning rate after warm-up; not every shape has every form."""
    schedule_form: Literal["library", "gpt1", "cpm1", "cpm1_pretrain"] = "library"
    """How warm-up and shape are put together: as here, or as in the programs of GPT-1, of CPM-1's
    fine-tuning, of CPM-1's pretraining; those leave power, step_ratio and
    warmup_from_zero aside."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    warmup_from_zero: bool = False
    """Whether the first step of the warm-up has learning rate 0, as in most original programs."""
    power: float = 1.0
    """Exponent of the falling line of linear."""
    step_ratio: float = 0.95
    """What each step of exponential multiplies the learning rate by, in the form of the library."""
    min_lr_ratio: float = 0.1
    """Learning rate that cosine, linear and exponential fall to, as a part of lr."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""
    loss_scale: float = 2.0**20
    """Factor on the loss of a float16 run at its start; other types have none."""
    loss_scale_factor: float = 2.0
    """What an overflow divides the loss scale by and many good steps multiply it by."""
    loss_scale_steps: int = 512
    """Steps without overflow before the loss scale grows."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr={self.lr}, expected > 0")
        require(self.eps > 0, f"optim.eps={self.eps}, expected > 0")
        require(self.power > 0, f"optim.power={self.power}, expected > 0")
        require(self.loss_scale >= 1, f"optim.loss_scale={self.loss_scale}, expected >= 1")
        require(
            self.loss_scale_factor > 0 and self.loss_scale_factor != 1,
            f"optim.loss_scale_factor={self.loss_scale_factor}, expected > 0 and not 1",
        )
        at_least("optim", self, loss_scale_steps=1)
        between("optim", self, 0, 1, "beta1", "beta2", "step_ratio")
        at_least("optim", self, weight_decay=0, warmup_steps=0, clip_norm=0)
        require(
            0 <= self.min_lr_ratio <= 1,
            f"optim.min_lr_ratio={self.min_lr_ratio}, expected 0 <= value <= 1",
        )
        require(
            self.schedule != "exponential" or self.schedule_form != "gpt1",
            "optim.schedule=exponential needs optim.schedule_form=library, cpm1 or cpm1_pretrain",
        )
        require(
            self.schedule != "noam" or self.schedule_form == "library",
            f"optim.schedule=noam needs optim.schedule_form=library, got {self.schedule_form}",
        )
        require(
            self.schedule != "noam" or self.warmup_steps > 0,
            "optim.schedule=noam needs optim.warmup_steps >= 1, got 0",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length of training, batches and what is written."""

    output: str
    """Run folder: checkpoints, metrics, curves."""
    steps: int = 0
    """Optimizer steps; 0: as many as epochs say."""
    epochs: float = 0.0
    """How often each prepared row is used, instead of steps."""
    batch_size: int = 32
    """Rows of an optimizer step, all devices together."""
    micro_batch_size: int = 0
    """Rows of one pass on one device; 0: the device's whole share of batch_size."""
    log_every: int = 10
    """Steps between two log lines."""
    eval_every: int = 0
    """Steps between two validations; 0: only at the end."""
    save_every: int = 500
    """Steps between two checkpoints; 0: only at the end."""
    keep_last: int = 2
    """Checkpoints that are kept; 0: all."""
    save_every_minutes: float = 0.0
    """Minutes between two checkpoints, beside those of save_every; 0: none by the clock. Several
    devices look at the clock every log_every steps."""
    save_async: bool = True
    """Go on training while a checkpoint is written, from a copy in memory."""
    start: str = ""
    """A checkpoint, or run folder, whose weights a new run starts from; a run that goes on does not
    look at it. From another family, or another head, what both have in common is taken. Without
    model and tokenizer.path the run has the sizes and the vocabulary of the checkpoint."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint of the run folder if there is one; never: start
    anew, refused if there is one; or the folder of a checkpoint to go on from."""
    on_nan: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is not a finite number: end the run, or leave the step out. Such a
    step never moves the weights. Overflows that a smaller loss scale mends are not meant."""
    spike_factor: float = 0.0
    """A loss that many times the running mean of the last ones is a spike; 0: none is."""
    on_spike: Literal["log", "skip", "stop"] = "log"
    """What a spike does: only a line in the log, no update by this step, or the end of the run."""
    max_skipped: int = 50
    """Steps left out one after the other that end the run all the same."""
    inspect_every: int = 0
    """Steps between two tables of the parameters' and mean gradients' statistics; 0: none."""
    profile: str = ""
    """Steps to profile, such as 10:20 for steps 10 to 19; the result is in <output>/profile."""

    def __post_init__(self) -> None:
        require(self.output != "", "train.output is empty, expected a folder")
        require(self.resume != "", "train.resume is empty, expected auto, never or a folder")
        at_least("train", self, epochs=0, batch_size=1, micro_batch_size=0, log_every=1)
        require(
            self.steps >= 1 or (self.steps == 0 and self.epochs > 0),
            f"train.steps={self.steps}, expected >= 1 (or 0 and train.epochs > 0)",
        )
        require(
            self.steps == 0 or self.epochs == 0,
            f"train.steps={self.steps} and train.epochs={self.epochs:g} are both given; choose one",
        )
        at_least("train", self, eval_every=0, save_every=0, keep_last=0, save_every_minutes=0)
        at_least("train", self, max_skipped=1, inspect_every=0)
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"train.spike_factor={self.spike_factor}, expected 0 or > 1",
        )
        require(
            self.on_spike == "log" or self.spike_factor > 0,
            f"train.on_spike={self.on_spike} needs train.spike_factor > 1, got 0",
        )
        first, last = self.profiled
        require(
            not self.profile or 1 <= first < last,
            f"train.profile={self.profile!r}, expected two step numbers such as 10:20",
        )

    @property
    def profiled(self) -> tuple[int, int]:
        """First step to profile and the one after the last; (0, 0): none."""
        parts = self.profile.split(":")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            return 0, 0
        return int(parts[0]), int(parts[1])
