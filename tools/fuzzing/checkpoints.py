"""Checkpoints that are cut, flipped, forged or booby-trapped, fed to `mindplm convert`."""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_checkpoint import write as write_synthetic

from fuzzing import forge
from fuzzing.watch import Watch, call, quiet, snapshot
from mindplm import files
from mindplm.adapters import write as write_adapter
from mindplm.config_lora import LoraConfig
from mindplm.convert import convert, convert_lora
from mindplm.models.cpm_bee.config import PRESETS, CpmBeeConfig

MODEL = CpmBeeConfig(
    vocab_size=120, hidden_size=8, num_heads=2, head_dim=6, ffn_size=10, num_layers=3,
    no_attention=(1,), no_ffn=(2,), num_distance_buckets=16, num_segment_buckets=64,
    max_distance=128,
)  # fmt: skip
_PRESET = "fuzzed"
_SLOW_S, _GROWTH_KB = 20.0, 400 << 10


def originals(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Good inputs by name: their folder, and what `convert` is told beside it."""
    PRESETS[_PRESET] = MODEL
    try:
        for name, options in {
            "openbmb": {},
            "hf-shards": {"flavour": "hf", "shards": 3},
            "hf-safetensors": {"flavour": "hf", "shards": 2, "safetensors": True},
        }.items():
            write_synthetic(_PRESET, folder / name, **options)  # type: ignore[arg-type]
            (folder / name / "manifest.json").unlink()
    finally:
        del PRESETS[_PRESET]
    convert(folder / "openbmb", folder / "ours")
    rng = np.random.default_rng(0)
    arrays = {
        f"blocks.{layer}.attn.q.lora_{end}": rng.normal(size=shape).astype(np.float16)
        for layer in (0, 2)
        for end, shape in (("a", (4, 8)), ("b", (12, 4)))
    }
    lora = LoraConfig(rank=4, targets=("attn.q",))
    write_adapter(folder / "adapter", family="cpm_bee", lora=lora, arrays=arrays)
    convert_lora(folder / "adapter", folder / "lora-pt", back="openbmb")
    convert_lora(folder / "adapter", folder / "lora-safetensors", back="hf")
    for name in ("lora-pt", "lora-safetensors"):
        (folder / name / "manifest.json").unlink()
    base = ["--base", str(folder / "ours")]
    return {
        "openbmb": (folder / "openbmb", []),
        "hf-shards": (folder / "hf-shards", []),
        "hf-safetensors": (folder / "hf-safetensors", ["--dtype", "float32"]),
        "verified": (folder / "hf-shards", ["--verify"]),
        "back": (folder / "ours", ["--back", "hf"]),
        "back-bin": (folder / "ours", ["--back", "openbmb", "--verify"]),
        "lora-pt": (folder / "lora-pt", []),
        "lora-safetensors": (folder / "lora-safetensors", base),
        "adapter": (folder / "adapter", base),
        "adapter-back": (folder / "adapter", ["--back", "openbmb"]),
    }


def run(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Converts `count` damaged copies and checks what each call did."""
    good = originals(folder / "good")
    for name, (source, options) in good.items():
        out = folder / "try" / name
        assert call(["convert", str(source), "--out", str(out), *options])[0] == 0, name
    shutil.rmtree(folder / "try")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quiet():
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            begin = time.perf_counter()
            found = _case(folder, good, rng, counts)
            seconds = time.perf_counter() - begin
            slowest = max(slowest, seconds)
            found += [f"took {seconds:.0f} s"] if seconds > _SLOW_S else []
            failures += [f"case {number}: {text}" for text in found]
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if growth > _GROWTH_KB:
        failures.append(f"memory grew by {growth >> 10} MB")
    return {
        "checkpoints": count,
        "seed": seed,
        **{f"ended {name}": number for name, number in sorted(counts.items())},
        "slowest s": round(slowest, 2),
        "memory grew by MB": growth >> 10,
        "failures": failures[:20],
    }


def _case(
    folder: Path,
    good: Mapping[str, tuple[Path, list[str]]],
    rng: random.Random,
    counts: Counter[str],
) -> list[str]:
    """One damaged copy; what went wrong."""
    name = rng.choice(sorted(good))
    original, options = good[name]
    place = folder / "case"
    source, out = place / "source", place / "out"
    shutil.copytree(original, source)
    (place / "secret").write_text("secret")
    mark = place / "executed"
    how = [forge.damage(source, rng, mark) for _ in range(rng.randint(1, 2))]
    told = source
    if rng.random() < 0.15:  # a file or an index instead of the folder
        told = rng.choice(sorted(source.iterdir()))
    before = snapshot(folder, without=[out])
    # Temporary folders of ours stand beside the output.
    with Watch([out, place / f"{files._TEMPORARY}out", place / f"{files._DISCARDED}out"]) as watch:
        status, _, err = call(["convert", str(told), "--out", str(out), *options])
    found = [f"{text}" for text in watch.found]
    if status not in (0, 2) or "Traceback" in err or "internal error" in err:
        found.append(f"status {status}: {err[-300:]}")
    if status == 2 and (err.count("mindplm: error: ") != 1 or out.exists()):
        found.append(f"refused, but {'left ' + str(out) if out.exists() else err[-300:]}")
    after = snapshot(folder, without=[out])
    # The folder that the output is in changes its time.
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    found += [f"{path} was touched" for path in sorted(changed - {str(place)})]
    counts["well" if status == 0 else "refused" if status == 2 else "badly"] += 1
    shutil.rmtree(place)
    return [f"{name}, {' + '.join(how)}: {text}" for text in found]
