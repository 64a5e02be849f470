"""The compile check: a small part of it, its own errors, its table."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import ascend_compile_check
from ascend_check import report, rows, run, stand_ins

from mindplm.families import FAMILIES

LAYOUT = rows.Layout(64, data=8, model=8)


def row(model: dict, layout: rows.Layout = LAYOUT, **parallel) -> rows.Row:
    tree = rows.tree_of(model, layout)
    tree["parallel"].update(parallel)
    return rows.Row("planted", layout, 0, tree)


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        (row({"preset": "10b"}, vocab_rows=86583), "parallel.vocab_rows=86583"),
        (row({"preset": "10b", "num_heads": 20}), "does not divide model.num_heads=20"),
        (row({"preset": "10b", "ffn_size": 10244}), "does not divide model.ffn_size=10244"),
        (
            row({"preset": "10b"}, dataclasses.replace(LAYOUT, cards=32)),
            "8 x 8 x 1 = 64, but the number of processes is 32",
        ),
        (
            row({"preset": "10b", "num_layers": 3}, rows.Layout(4, pipeline=4, micro_batches=4)),
            "parallel.pipeline=4 is more than model.num_layers=3",
        ),
        (
            row({"preset": "10b"}, rows.Layout(8, data=2, pipeline=4, micro_batches=4),
                micro_batches=2),
            "parallel.micro_batches=2, expected at least parallel.pipeline=4",
        ),
    ],
)  # fmt: skip
def test_planted_mistakes_are_refused_in_our_words_before_anything_starts(planted, words) -> None:
    """No process is started: the environment of a compiling process is empty here."""
    result = run.compile_row(planted, {}, timeout_s=0.0)
    assert result["result"] == run.REFUSED
    assert words in result["why"]


def test_a_mistake_that_only_the_compiler_would_find_is_a_failed_row(monkeypatch) -> None:
    monkeypatch.setattr(run, "_process", lambda *_: {"error": "Gather init failed", "seconds": 1.0})
    result = run.compile_row(row({"preset": "10b"}), {}, timeout_s=1.0)
    assert (result["result"], result["why"]) == (run.FAILED, "Gather init failed")


def test_parts_that_differ_from_the_plan_are_a_failed_row(monkeypatch) -> None:
    slices = {"blocks.0.attn.q.weight": [4096, 4096]}
    monkeypatch.setattr(run, "_process", lambda *_: {"seconds": 1.0, "slices": slices})
    result = run.compile_row(row({"preset": "10b"}), {}, timeout_s=1.0)
    assert result["result"] == run.FAILED
    assert "blocks.0.attn.q.weight is [4096, 4096], the plan says [512, 4096]" in result["why"]


def test_every_size_and_layout_passes_our_own_checks() -> None:
    for size in rows.SIZES:
        for layout in rows.LAYOUTS:
            found = list(rows.rows_of(size, layout))
            assert len(found) == min(2, layout.cards // layout.pipeline) * layout.pipeline
            assert {entry.stage for entry in found} == set(range(layout.pipeline))
            found[0].config()


def test_every_other_family_has_a_row_that_passes_our_checks() -> None:
    found = list(rows.families())
    assert {entry.config().family for entry in found} == set(FAMILIES) - {"cpm_bee"}
    assert {entry.config().model.dropout for entry in found} == {0.0, 0.1}
    cut = [entry for entry in found if entry.layout.model > 1]
    assert {entry.config().family for entry in cut} == set(FAMILIES) - {"cpm_bee"}
    assert all(entry.layout.optimizer_shard for entry in cut)


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("# Title\n\nwords\n")
    result = {**run.describe(row({"preset": "10b"})), "seconds": 1.25, "peak_gb": 2.0}
    result.update({"stage": "1/1: 48 layers", "result": run.COMPILED, "why": ""})
    for _ in range(2):
        report.write(path, [result])
    text = path.read_text()
    assert text.startswith("# Title\n\nwords\n\n" + report.BEGIN)
    assert text.count("| planted | step | 64 | dp8 x tp8 |") == 1
    assert report.read(path) == [result]
    assert json.loads(path.with_suffix(".json").read_text())[0]["rank"] == 0


def test_a_config_gives_rows_of_its_own_layout() -> None:
    config = ROOT / "configs" / "cpm_bee" / "pretrain_10b.yaml"
    found = list(ascend_compile_check.of_config(str(config), [], few=True))
    assert [entry.rank for entry in found] == [0, found[0].layout.cards - 1]
    assert found[0].config().parallel.model == 8


def test_layouts_that_fit_are_listed_beside_the_table(tmp_path: Path) -> None:
    config, out = ROOT / "configs" / "cpm_bee" / "pretrain_10b.yaml", tmp_path / "table.md"
    words = ["--memory", str(config), "--cards", "8", "--out", str(out)]
    assert ascend_compile_check.main(words) == 0
    lines = [line for line in out.read_text().splitlines() if line.startswith("| 8 |")]
    assert len(lines) > 3
    assert {line.split("|")[-2].strip() for line in lines} <= {"32 and 64", "64"}


def test_the_subset_compiles(capsys, tmp_path: Path) -> None:
    lacking = stand_ins.missing_tools()
    if lacking:
        pytest.skip(f"compiling for Ascend here needs {', '.join(lacking)}")
    out = tmp_path / "table.md"
    status = ascend_compile_check.main(["--subset", "--out", str(out)])
    shown = capsys.readouterr().out
    assert status == 0, shown
    results = report.read(out)
    assert len(results) == len(list(rows.subset()))
    assert {result["graph"] for result in results} == {"step", "write"}
    assert {result["type"] for result in results} == {"float16", "bfloat16"}
