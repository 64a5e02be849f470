"""The memory plan: its arithmetic, and its CPU figures against measured peaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mindplm import memory
from mindplm.families import config_from_dict, load_config

TENB = ROOT / "configs" / "cpm_bee" / "pretrain_10b.yaml"


def settings(model: dict, *, rows: int, seq_len: int, targets: int, recompute: bool) -> dict:
    return {
        "family": "cpm_bee",
        "model": {"preset": "tiny", **model},
        "data": {
            **{"train": [{"path": "unused"}], "folder": "unused"},
            **{"seq_len": seq_len, "max_targets": targets},
        },
        "train": {"steps": 1, "output": "unused", "batch_size": rows},
        "parallel": {"recompute": recompute},
        "runtime": {"device": "cpu", "threads": 1},
    }


# Not those that the numbers for CPU were found with.
SMALL = {
    "many weights": settings(
        {"vocab_size": 12000, "hidden_size": 896, "num_heads": 4, "head_dim": 64,
         "ffn_size": 3072, "num_layers": 2},
        rows=4, seq_len=64, targets=32, recompute=False,
    ),
    "many pairs": settings(
        {"vocab_size": 2500, "hidden_size": 160, "num_heads": 5, "head_dim": 32,
         "ffn_size": 512, "num_layers": 2},
        rows=3, seq_len=448, targets=80, recompute=False,
    ),
    "mixed, recomputed": settings(
        {"vocab_size": 9000, "hidden_size": 320, "num_heads": 5, "head_dim": 64,
         "ffn_size": 1280, "num_layers": 2},
        rows=8, seq_len=192, targets=64, recompute=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_the_peak_on_cpu_is_as_counted(name: str, tmp_path: Path) -> None:
    """Within 15 %, of what the process takes more than before it makes the network."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SMALL[name]))
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "memory_of_step.py"), str(path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-800:]
    measured = json.loads(done.stdout.splitlines()[-1])["grew"]
    counted = memory.cpu_peak(config_from_dict(SMALL[name]))
    assert counted == pytest.approx(measured, rel=0.15), f"{counted:,} {measured:,}"


def test_weights_and_moments_are_those_of_the_layout() -> None:
    """10B of parameters: half weights, fp32 masters and moments, sums of gradients in fp32."""
    whole = memory.plan(load_config(TENB, ["parallel.data=1", "parallel.model=1",
                                           "parallel.optimizer_shard=false"]))  # fmt: skip
    count = 9_616_080_896
    assert (whole.weights, whole.masters, whole.moments) == (2 * count, 4 * count, 8 * count)
    assert whole.sums == 4 * count
    cut = memory.plan(load_config(TENB))  # 4 x 8 with optimizer shard
    assert cut.moments == pytest.approx(whole.moments / 32, rel=0.02)
    assert cut.gathered == pytest.approx(whole.weights / 8, rel=0.02)
    assert cut.peak < whole.peak / 10


def test_recompute_and_stages_keep_less() -> None:
    base = ["parallel.model=4", "parallel.optimizer_shard=false", "parallel.data=8"]
    with_it = memory.plan(load_config(TENB, base))
    without = memory.plan(load_config(TENB, [*base, "parallel.recompute=false"]))
    assert with_it.activations < without.activations / 5
    stages = [*base[1:], "parallel.model=1", "parallel.pipeline=4"]
    found = [memory.plan(load_config(TENB, stages), rank) for rank in (0, 8, 16, 24)]
    total = sum(stage.weights for stage in found)
    assert found[3].logits > 0 == found[0].logits
    assert total > 2 * 9_616_080_896  # the table is in the first and in the last stage
    assert [stage.activations for stage in found] == sorted(
        (stage.activations for stage in found), reverse=True
    )


def test_layouts_that_fit_a_card_are_sorted_and_fit() -> None:
    config = load_config(TENB)
    found = memory.fitting(config, 8, 29 * memory.GIB)
    assert found
    peaks = [peak for _, peak in found]
    assert peaks == sorted(peaks) and peaks[-1] <= 29 * memory.GIB
    assert all(made.parallel.devices == 8 for made, _ in found)
    assert not memory.fitting(config, 1, 60 * memory.GIB)
