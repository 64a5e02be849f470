"""Trains CPM-Bee with MindFormers' Trainer from a MindFormers YAML."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindplm import runtime
from mindplm.checkpoint import RunFolder
from mindplm.config import RuntimeConfig
from mindplm.errors import ConfigError
from mindplm.integrations.mindformers_config import Plan, check_known, missing, read_plan


def train(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains as a MindFormers YAML says; see configs/cpm_bee/mindformers/tiny.yaml.

    Everything that MindFormers writes, its logs included, goes below output_dir if it is imported
    here for the first time in the process.

    Args:
        path: The YAML file.
        overrides: `key=value` texts, such as runner_config.batch_size=8.

    Returns:
        The last checkpoint of a MindplmRecorder; without one the run folder.

    Raises:
        UserError: MindFormers is missing, or the configuration, rows or output cannot be used.
    """
    if importlib.util.find_spec("mindformers") is None:
        raise missing()
    plan = read_plan(path, overrides)
    run = RunFolder(plan.output)
    if run.steps():
        raise ConfigError(
            f"output_dir={plan.output} has checkpoints up to step {run.steps()[-1]}; name another"
        )
    _choose_device(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    rank = _join_ranks(plan)
    alone = contextlib.nullcontext() if rank else run.only_process()
    with alone, _inside(plan.output):
        _train(plan)
    return run.path_of(run.steps()[-1]) if run.steps() else run.root


def _choose_device(plan: Plan) -> None:
    """Puts the device that is there into context.device_target, or refuses the one named."""
    context = plan.tree.setdefault("context", {})
    wish = str(context.get("device_target") or "auto").lower()
    if wish not in ("auto", "ascend", "gpu", "cpu"):
        raise ConfigError(f"context.device_target={wish}, expected auto, Ascend, GPU or CPU")
    context["device_target"] = runtime.choose_device(wish)[0]


def _join_ranks(plan: Plan) -> int:
    """This process's number; with several (and msrun's scheduler) the connection comes first."""
    if runtime.ranks()[1] == 1:
        return 0
    if not plan.tree.get("use_parallel"):
        raise ConfigError("msrun started several processes; set use_parallel=True")
    device = plan.tree["context"]["device_target"].lower()
    return runtime.setup(RuntimeConfig(device=device, seed=plan.tree.get("seed", 0))).rank


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Runs with a folder as the current one, and as the place of MindFormers' own files."""
    before, named = os.getcwd(), os.environ.get("LOCAL_DEFAULT_PATH")
    os.environ["LOCAL_DEFAULT_PATH"] = str(folder)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if named is None:
            del os.environ["LOCAL_DEFAULT_PATH"]
        else:
            os.environ["LOCAL_DEFAULT_PATH"] = named


def _train(plan: Plan) -> None:
    from mindformers import Trainer, build_context
    from mindformers.models.build_tokenizer import build_tokenizer
    from mindformers.tools.register import MindFormerConfig
    from mindformers.tools.register.template import CONFIG_NAME_TO_CLASS, ConfigTemplate

    importlib.import_module("mindplm.integrations.mindformers")  # registers our parts
    general = CONFIG_NAME_TO_CLASS["general_config"].keys()
    known = [*general, *(name for name in CONFIG_NAME_TO_CLASS if name != "general_config")]
    check_known(plan.tree, known, plan.source)
    tree = dict(plan.tree)
    processor = tree.pop("processor", None)
    tree.setdefault("run_mode", "train")
    try:
        ConfigTemplate.apply_template(tree)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{plan.source.name}: {error.args[0]}") from None
    config = MindFormerConfig(**tree)
    build_context(config)
    tokenizer = processor and build_tokenizer(MindFormerConfig(**processor).tokenizer)
    Trainer(args=config, task="text_generation", tokenizer=tokenizer or None).train()
