"""The programs in tools/: the form of poems, the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from data_samples import small_tokenizer

from mindplm.config import SourceConfig
from mindplm.data.cpm_bee import to_arrays
from mindplm.data.instances import make_instance
from mindplm.data.original import FIELDS, as_batch
from mindplm.data.packing import Packer, RowShape
from mindplm.data.sources import Document, SourceReader
from mindplm.errors import UserError

sys.path.insert(0, str(ROOT / "tools"))
import poems
from benchmarks import generate, original_pipeline, scaling, texts

TORCH = os.environ.get("MINDPLM_TORCH_PYTHON", "")
LOST = "忍辱收珍宝，嗔●捐福田。\n高心难见佛，下意得生天。"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["poems", "poems_valid"])
def test_all_embedded_poems_are_well_formed(name: str) -> None:
    documents = list(SourceReader(SourceConfig(path=f"embedded:{name}")))
    assert len(documents) == {"poems": 15195, "poems_valid": 805}[name]
    for document in documents:
        assert isinstance(document, Document)
        assert poems.form(document.fields["text"]) == document.fields["form"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故乡。", "5x4"),
        ("床前看月光，疑是地上霜。举头望山月？低头思故乡", "5x4"),
        (LOST, "5x4"),
        ("", None),
        ("床前看月光，疑是地上霜。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，abcde。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头 思故乡。", None),
        ("床前看月光，疑是地上霜。\n举头望山月，低头思故乡上霜。", None),
        ("。\n".join(["天" * 6 + "，" + "地" * 6] * 2), None),
    ],
)
def test_form(text: str, form: str | None) -> None:
    assert poems.form(text) == form


def test_report_counts_by_form() -> None:
    found = poems.report([LOST, LOST, "天地"], 0.8)
    assert (found["poems"], found["well_formed"], found["different"]) == (3, 2, 2)
    assert found["forms"] == {"5x4": 2}
    assert Counter(sample["form"] for sample in found["samples"]) == {"5x4": 2, None: 1}


def test_poems_of_no_checkpoint_is_an_error(tmp_path) -> None:
    done = run("poems.py", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("tokenizer", "--corpus", "poems_valid"),
        ("preprocess", "--megabytes", "0.2", "--workers", "1"),
        ("train", "--preset", "tiny", "--vocab-size", "500", "--seq-len", "32", "--targets", "all"),
        ("generate", "--preset", "tiny", "--vocab-size", "300", "--batch", "2", "--beams", "2")
        + ("--prompt", "32", "--new", "3"),
    ],
    ids=lambda words: words[0],
)
def test_bench(words: tuple[str, ...]) -> None:
    done = run("bench.py", *words, "--json", "--runs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bench"] == words[0]
    assert found["machine"]["cores"] >= 1 and found["machine"]["mindspore"]
    assert all(result["tokens/s"] > 0 for result in found["results"])


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "--preset", "tiny", "--vocab-size", "3000"),
        ("compile", "--preset", "tiny", "--layers", "1", "--rows", "2", "--seq-len", "32"),
        ("load", "--preset", "tiny", "--rows", "2", "--seq-len", "32", "--steps", "2")
        + ("--new", "1"),
    ],
    ids=lambda words: words[0],
)
def test_bench_of_starts(words: tuple[str, ...]) -> None:
    """Every figure is a number above zero, but for what may not be measurable at this size."""
    vocab = () if "--vocab-size" in words else ("--vocab-size", "300")
    done = run("bench.py", *words, *vocab, "--json", "--runs", "1")
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["results"]:
        row = {name: value for name, value in row.items() if type(value) is not list}
        figures = {k: v for k, v in row.items() if k not in ("what", "spread", "wait of step")}
        assert len(figures) and all(value > 0 for value in figures.values()), row


def test_bench_of_kernels_checks_both_sides() -> None:
    done = run("bench.py", "kernels", "--scale", "16", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["results"]
    assert len({row["what"] for row in rows}) == len(rows) > 9
    for row in rows:
        assert row["ours faster"] == row["framework ms"] / row["ours ms"] > 0
        assert 0 <= row["difference"] < 1e-4


def test_bench_of_the_machine_and_the_products_of_a_step() -> None:
    sizes = ("--size", "64", "--preset", "tiny", "--vocab-size", "300", "--products", "1", "16")
    done = run("bench.py", "roofline", *sizes, "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    machine, *products = json.loads(done.stdout)["results"]
    assert machine["GFLOP/s"] > 0 and machine["read GB/s"] > 0
    weights = 2 * (4 * 128 * 128 + 3 * 128 * 384) + 300 * 128
    assert [row["rows"] for row in products] == [1, 16]
    assert all(
        row["weights GB"] == pytest.approx(4e-9 * weights) and row["ms"] > 0 for row in products
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [(("roofline", "--products", "0"), "--products 0"), (("kernels", "--scale", "99"), "1 to 16")],
)
def test_bench_refuses_sizes_that_are_none(words: tuple[str, ...], told: str) -> None:
    done = run("bench.py", *words)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_ratios_of_writing_are_of_medians_and_answers_must_agree() -> None:
    shape = generate.Shape(2, 1, 32, 10)
    ours = [
        {"seconds": [1.0, 2.0], "answers": ["a", "b"]},
        {"seconds": [3.0], "answers": ["a", "b"]},
    ]
    theirs = [{"seconds": [5.0, 7.0], "answers": ["a", "b"]}]
    found = {(shape, "mindplm"): ours, (shape, "torch"): theirs}
    rows = list(generate.rows_of(shape, found, ("mindplm", "torch")))
    assert [row["ours faster"] for row in rows] == [1.0, 3.0]
    assert [row["tokens/s"] for row in rows] == [10.0, 20 / 6]
    theirs[0]["answers"] = ["a", "c"]
    with pytest.raises(UserError, match="torch writes something else for prompt 2"):
        list(generate.rows_of(shape, found, ("mindplm", "torch")))


def test_scaling_tells_of_points_that_fail(tmp_path, monkeypatch) -> None:
    """Each point gets its sizes; a failing one does not end the others."""

    def told(command):
        words = dict(zip(command[4::2], command[5::2]))
        if words["--layers"] == "4":
            raise UserError("no memory")
        names = ("tokens/s", "ms", "of matrix rate", "memory GB", "first step s", "spread")
        return {"results": [dict.fromkeys(names, 1.0)]}

    monkeypatch.setattr(scaling, "told", told)
    monkeypatch.setattr(scaling.real_run, "prepared", lambda folder, **sizes: folder / "run.yaml")
    monkeypatch.setattr(
        scaling.real_run, "run", lambda *args: {"tokens/s": args[2], "memory GB": 1.0}
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    scaling.add_arguments(parser)
    rows = scaling.run(parser.parse_args(["--quick", "--out", str(tmp_path / "out")]))
    curves = scaling.QUICK
    assert [row["value"] for row in rows if row["curve"] == "seq_len"] == list(curves.seq_len)
    assert [row["tokens"] for row in rows if row["curve"] == "seq_len"] == [512, 512, 512]
    assert [row["value"] for row in rows if "error" in row] == [4]
    assert [row["tokens/s"] for row in rows if row["curve"] == "processes"] == [1, 2]
    saved = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert saved["results"] == rows
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not TORCH, reason="MINDPLM_TORCH_PYTHON names no interpreter with PyTorch")
def test_pytorch_writes_the_same() -> None:
    """Greedy and with beams, prompts of several lengths; the tool compares and refuses."""
    sizes = ("--preset", "tiny", "--vocab-size", "300", "--prompts", "32", "--new", "9")
    turns = ("--torch", "--torch-python", TORCH, "--rounds", "1", "--runs", "1")
    done = run(
        "bench.py", "generate", *sizes, *turns, "--batches", "3", "--beams", "1", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["results"]) == 6


def test_the_baseline_of_preprocessing_gives_what_the_library_gives(tmp_path) -> None:
    """The same records, batches, targets and extension table, found in another way."""
    texts.write(tmp_path / "a.jsonl", 60_000)
    tokenizer = small_tokenizer()
    slow = original_pipeline.Tokenizer(tokenizer.lines)
    rng = original_pipeline.random.Random(0)
    ours, theirs = Packer(3, RowShape(200, 0, 0, 0)), original_pipeline.Packer(3, 200, slow)
    compared = 0
    for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines():
        record = original_pipeline.left_to_right(json.loads(line)["text"][:150], rng)
        record["<ans>"] = {"<mask_1>": record["<ans>"], "b": {"<mask_7>": "<mask_1>"}}
        sample, other = to_arrays(record, tokenizer), original_pipeline.to_arrays(record, slow)
        for name, values in (("ids", sample.ids), ("subs", sample.subs), ("segs", sample.segs),
                             ("context", sample.context), ("rel", sample.rel)):  # fmt: skip
            np.testing.assert_array_equal(values, other[name], err_msg=name)
        if len(sample) > 200:
            continue
        rows, batch = ours.add(make_instance(sample)), theirs.add(other)
        assert bool(rows) == (batch is not None)
        if batch is not None:
            wanted = as_batch(rows, 200, tokenizer)
            for name in set(FIELDS) - {"task_ids"}:
                np.testing.assert_array_equal(batch[name], wanted[name], err_msg=name)
            compared += 1
    assert compared > 3


def test_a_run_under_faults_ends_as_an_undisturbed_one():
    """A damaged checkpoint after SIGKILL, a full disk, lines that cannot be used."""
    small = [
        *("model.hidden_size=32", "model.num_heads=2", "model.head_dim=16", "model.ffn_size=48"),
        *("data.seq_len=64", "data.max_targets=64", "data.repeat=1", "train.batch_size=4"),
    ]
    done = run(
        *("faults.py", "-c", str(ROOT / "configs" / "cpm_bee" / "tiny.yaml"), "--steps", "60"),
        *("--faults", "2", "--save-every", "10", "--documents", "60", "runtime.device=cpu"),
        *small,
    )
    if "no small file system can be mounted" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {json.loads(line)["fault"] for line in lines[:2]} == {"damage", "full"}
    result = json.loads("".join(lines[2:]))
    assert result["same"] and result["losses compared"] == 60 and result["bad records"] == 5
