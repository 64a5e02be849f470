"""Small vocabularies, texts and row folders for the tests of the data pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mindplm.config import SourceConfig
from mindplm.data.cpm_bee import to_arrays
from mindplm.data.draw import Settings
from mindplm.data.instances import Instance, make_instance
from mindplm.data.packing import Packer, RowShape
from mindplm.data.row_writer import new_rows
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789<>.,:'床前明月光疑是地上霜举头望低思故乡，。"
WORDS = ("input", " the", "the", "明月", "故乡")
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
SHAPE = RowShape(seq_len=96, max_rel=600, max_ext=16, max_targets=96)


def small_tokenizer(extra: Iterable[str] = ()) -> CpmBeeTokenizer:
    """About 90 entries; capital letters and most Chinese characters are unknown."""
    return CpmBeeTokenizer([*SPECIALS, *CHARACTERS, *WORDS, *extra])


def instance_of(record: Any, tokenizer: CpmBeeTokenizer, raw: Any = None) -> Instance:
    return make_instance(to_arrays(record, tokenizer), raw=raw)


def random_instances(rng: np.random.Generator, tokenizer: CpmBeeTokenizer, count: int) -> list:
    """Records of several lengths, some with blanks or unknown characters."""
    instances = []
    for i in range(count):
        text = "".join(rng.choice(list("abcd明月霜"), int(rng.integers(0, 30))))
        record: dict[str, Any] = {"input": text, "<ans>": text[::-1]}
        if rng.random() < 0.3:
            blanks = {f"<mask_{k}>": "月" * k for k in range(int(rng.integers(1, 4)))}
            record = {"input": "".join(blanks) + text, "<ans>": blanks}
        elif rng.random() < 0.3:
            record["input"] += "XaYbZ"[: int(rng.integers(0, 6))]
        instances.append(instance_of(record, tokenizer, raw=i))
    return instances


def write_rows(folder: Path, tokenizer: CpmBeeTokenizer, count: int = 60, seed: int = 0) -> int:
    """Writes a folder of rows without sources; returns the number of rows."""
    packer = Packer(4, SHAPE)
    rows = []
    for instance in random_instances(np.random.default_rng(seed), tokenizer, count):
        rows += packer.add(instance)
    rows += packer.flush()
    with new_rows(folder, SHAPE, tokenizer) as writer:
        for row in rows:
            writer.add(row)
        writer.finish({}, task_names=["made/lm"])
    return len(rows)


def write_lines(path: Path, values: Iterable[Any]) -> str:
    """Writes JSON lines; returns the path as text."""
    lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def source(path: Any, **keys: Any) -> SourceConfig:
    return SourceConfig(path=str(path), **keys)


def settings(**keys: Any) -> Settings:
    return Settings(**{"shape": SHAPE, **keys})
