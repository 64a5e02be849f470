"""mindplm: Chinese and English pre-trained language models on MindSpore.

    model, tokenizer = mindplm.load("runs/tiny/checkpoints/step-00000600")
    mindplm.generate(model, tokenizer, [{"input": "床前看月光，", "<ans>": ""}])

The public names load what they need on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# MindSpore reads its log level when it is imported; its warnings about absent devices and its own
# deprecated operators say nothing to a user. A level that the user set wins.
os.environ.setdefault("GLOG_v", "3")
# The OpenMP threads of matrix products would otherwise spin on the cores that other kernels need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_NAMES = {
    "load": "mindplm.generate:load",
    "generate": "mindplm.generate:generate",
    "stream": "mindplm.generate:stream",
    "score": "mindplm.generate.scoring:score",
    "choose": "mindplm.generate.scoring:choose",
    "Chat": "mindplm.generate.chat:Chat",
    "evaluate": "mindplm.evaluate:run",
    "evaluate_task": "mindplm.measure.run:evaluate_task",
    "convert": "mindplm.convert:convert",
    "convert_lora": "mindplm.convert:convert_lora",
    "train": "mindplm.train:pretrain",
    "finetune": "mindplm.finetune:finetune",
    "load_config": "mindplm.families:load_config",
}

__all__ = ["__version__", *_NAMES]


def _resolve(name: str) -> Any:
    module, _, attribute = _NAMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Verb(ModuleType):
    """A subpackage that is called like the function of its name: mindplm.generate(...)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _resolve(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Makes `generate`, `evaluate`, `convert` and `train` callable when they are imported.

    The import system stores a subpackage under its name in this module, where the public function
    of the same name has to be as well.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "text":
        return importlib.import_module("mindplm.text")
    if name not in _NAMES:
        raise AttributeError(f"module 'mindplm' has no attribute {name!r}")
    if _NAMES[name].startswith(f"mindplm.{name}:"):
        return importlib.import_module(f"mindplm.{name}")
    return _resolve(name)


def __dir__() -> list[str]:
    return sorted(__all__)
