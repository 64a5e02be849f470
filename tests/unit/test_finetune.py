"""Finetuning from a checkpoint: best and last, early stopping, adapters, resuming, hard cases."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from tiny_run import assert_same_arrays, assert_same_state, newest, numbers

from mindplm import adapters, checkpoint, cli, families, generate
from mindplm.checkpoint import RunFolder
from mindplm.config import RunConfig
from mindplm.data import prepare
from mindplm.errors import CheckpointError, ConfigError
from mindplm.finetune import finetune, prepare_rows
from mindplm.train import loop

CONFIG = """\
family: cpm_bee
runtime: {{device: cpu}}
data: {{folder: "{folder}/rows", seq_len: 64, max_ext: 16,
  train: [{{path: "{folder}/train.tsv", task: "{folder}/moods.yaml"}}],
  valid: [{{path: "{folder}/valid.tsv", task: "{folder}/moods.yaml"}}]}}
optim: {{lr: 1e-2}}
train: {{start: "{base}", output: "{folder}/run", steps: 4, batch_size: 4, log_every: 1,
  eval_every: 2, save_every: 2, keep_last: 0}}
finetune: {{tasks: [{{task: "{folder}/moods.yaml", path: "{folder}/valid.tsv", limit: 4}}]}}
"""
TASK = """\
shape: {kind: classification, columns: [text, label], labels: {p: 明月, n: 故乡}, answer: text}
method: likelihood
metrics: [accuracy]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: Any) -> Path:
    """A run of one step."""
    path = tiny_run.write_run(tmp_path_factory.mktemp("base"), steps=1)
    config = families.load_config(path, ["data.valid=[]"])
    prepare_rows(config)
    loop.pretrain(config)
    return path.parent / "run"


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Path:
    """Settings of a finetuning run with its data."""
    lines = [f"{'床前明月光'[i % 5]}{i}\t{'pn'[i % 2]}\n" for i in range(30)]
    (tmp_path / "train.tsv").write_text("".join(lines[:24]), encoding="utf-8")
    (tmp_path / "valid.tsv").write_text("".join(lines[22:]), encoding="utf-8")
    (tmp_path / "moods.yaml").write_text(TASK, encoding="utf-8")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, base=base), encoding="utf-8")
    return path


def config_of(settings: Path, *overrides: str) -> RunConfig:
    return families.load_config(settings, overrides)


def test_best_and_last_are_kept_and_resuming_repeats_the_steps(
    settings: Path, base: Path, capsys: Any
) -> None:
    result = finetune(config_of(settings))
    told = capsys.readouterr().err
    assert "4 of 16 records that are measured on are in the training data too" in told
    run = settings.parent / "run"
    assert RunFolder(run).steps() == [2, 4]
    assert set(result.figures) == {"valid/loss", "valid/per_char", "valid/moods/accuracy"}
    reports = {n["step"]: n for n in numbers(run) if "valid/loss" in n}
    best = max(reports, key=lambda step: (reports[step]["valid/moods/accuracy"], -step))
    kept = checkpoint.read(run / "best")
    assert result.best == run / "best" and kept.train() is None
    assert_same_arrays(kept.weights(), checkpoint.read(RunFolder(run).path_of(best)).weights())
    assert not np.array_equal(
        kept.weights()["embed.weight"], checkpoint.read(base).weights()["embed.weight"]
    )
    model, tokenizer = generate.load(run / "best")
    generate.generate(model, tokenizer, ["床"], max_new_tokens=2)

    whole, before = newest(run), numbers(run)
    shutil.rmtree(RunFolder(run).path_of(4))
    shutil.rmtree(run / "best")
    again = finetune(config_of(settings))
    assert not again.interrupted
    assert_same_state(newest(run), whole)
    assert numbers(run) == before
    # If the best was that of step 2 it was removed with the folder; the run remembers that.
    assert (run / "best").is_dir() == (best == 4)


def test_a_run_ends_when_nothing_gets_better(settings: Path) -> None:
    quiet = ("optim.lr=1e-20", "train.eval_every=1", "finetune.patience=2", "finetune.tasks=[]")
    result = finetune(config_of(settings, *quiet, "train.steps=20"))
    assert result.step == 3 and not result.interrupted
    run = settings.parent / "run"
    assert newest(run).train().step == 3  # type: ignore[union-attr]
    # At this rate no weight changes.
    assert_same_arrays(checkpoint.read(run / "best").weights(), newest(run).weights())
    again = finetune(config_of(settings, *quiet, "train.steps=20"))
    assert again.step == 3 and not again.interrupted, "it stays ended"


def test_one_record_one_step_and_no_evaluation_leave_a_usable_model(
    settings: Path, base: Path
) -> None:
    (settings.parent / "train.tsv").write_text("床前\tp\n", encoding="utf-8")
    small = ("data.valid=[]", "finetune.tasks=[]", "train.steps=0", "train.epochs=0.1")
    result = finetune(config_of(settings, *small))
    assert result.step == 1 and result.best == settings.parent / "run" / "best"
    assert_same_arrays(
        checkpoint.read(result.best).weights(), checkpoint.read(result.checkpoint).weights()
    )
    model, tokenizer = generate.load(settings.parent / "run")
    assert generate.generate(model, tokenizer, ["床"], max_new_tokens=2)


def test_a_failure_of_measuring_does_not_lose_the_steps(settings: Path, monkeypatch: Any) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("mindplm.finetune.asked", broken)
    with pytest.raises(RuntimeError, match="broken"):
        finetune(config_of(settings, "data.valid=[]", "train.steps=1"))
    assert RunFolder(settings.parent / "run").steps() == [1]


# --- adapters -------------------------------------------------------------------------------------

LORA = ("lora.rank=2", "lora.dropout=0.3", "finetune.tasks=[]")


@pytest.fixture(scope="module")
def lora_run(base: Path, tmp_path_factory: Any) -> Path:
    """Settings of a run that has trained adapters."""
    folder = tmp_path_factory.mktemp("lora")
    path = folder / "run.yaml"
    path.write_text(CONFIG.format(folder=folder, base=base), encoding="utf-8")
    lines = [f"{'床前明月光'[i % 5]}{i}\t{'pn'[i % 2]}\n" for i in range(30)]
    (folder / "train.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "valid.tsv").write_text("".join(lines[:8]), encoding="utf-8")
    (folder / "moods.yaml").write_text(TASK, encoding="utf-8")
    finetune(config_of(path, *LORA))
    return path


def test_checkpoints_of_adapters_hold_adapters_only(lora_run: Path, base: Path) -> None:
    run = lora_run.parent / "run"
    saved = newest(run)
    assert saved.adapter is not None and saved.adapter.base.folder == str(
        RunFolder(base).path_of(1)
    )
    assert all(name.endswith((".lora_a", ".lora_b")) for name in saved.weights())
    assert any(np.abs(a).max() > 0 for n, a in saved.weights().items() if n.endswith("lora_b"))
    best = adapters.read(run / "best")
    assert best.lora.rank == 2 and not (run / "best" / "train").exists()
    assert sum(np.prod(a.shape) for a in best.arrays.values()) == 2 * 2 * 2 * (32 + 32)


def test_a_run_of_adapters_resumes_bitwise_with_dropout_and_recomputation(lora_run: Path) -> None:
    run = lora_run.parent / "run"
    whole, before = newest(run), numbers(run)
    shutil.rmtree(RunFolder(run).path_of(4))
    finetune(config_of(lora_run, *LORA, "parallel.recompute=true"))
    assert_same_state(newest(run), whole)
    assert numbers(run) == before
    with pytest.raises(CheckpointError, match="adapters of rank 2.* this run has adapters of rank"):
        finetune(config_of(lora_run, *LORA, "lora.rank=3"))
    with pytest.raises(CheckpointError, match="this run has no adapters"):
        finetune(config_of(lora_run, "finetune.tasks=[]"))


PROMPTS = [{"input": "床前明", "<ans>": ""}, {"input": "月光", "<ans>": ""}]


def scores_of(model: Any, tokenizer: Any) -> list[float]:
    from mindplm.generate.scoring import score

    records = [{**record, "<ans>": "明月故乡"} for record in PROMPTS]
    return [found.nats for found in score(model, tokenizer, records)]


def test_merged_and_unmerged_adapters_agree(lora_run: Path, base: Path, tmp_path: Path) -> None:
    from mindplm.generate.model import from_cell
    from mindplm.nn.lora import add_lora, load_lora

    run = lora_run.parent / "run"
    plain, tokenizer = generate.load(base)
    before = scores_of(plain, tokenizer)
    cell, _ = generate.load(base)
    lora = newest(run).adapter.lora  # type: ignore[union-attr]
    gain = families.family("cpm_bee").part("lora_gain")
    add_lora(cell.cell, lora.targets, rank=lora.rank, alpha=lora.alpha, gain=gain)
    load_lora(cell.cell, newest(run).weights(), "test")
    unmerged = scores_of(from_cell(cell.cell, cell.config), tokenizer)
    assert cli.main(["merge", str(run), "--out", str(tmp_path / "merged"), "--verify"]) == 0
    merged = scores_of(*generate.load(tmp_path / "merged"))
    assert np.abs(np.array(unmerged) - before).max() > 1e-3
    np.testing.assert_allclose(merged, unmerged, rtol=1e-5, atol=1e-5)
    alone = scores_of(*generate.load(run))
    np.testing.assert_allclose(alone, merged, rtol=1e-6)


def test_adapters_are_chosen_beside_one_base(lora_run: Path, base: Path) -> None:
    run = lora_run.parent / "run"
    places = {"early": RunFolder(run).path_of(2), "late": RunFolder(run).path_of(4)}
    model, tokenizer = generate.load(base, adapter=places)
    plain = scores_of(model, tokenizer)
    found = {}
    for name in ("early", "late", "early"):
        model.use(name)
        scores = scores_of(model, tokenizer)
        assert found.setdefault(name, scores) == scores
    model.use(None)
    assert scores_of(model, tokenizer) == plain
    assert found["early"] != found["late"] != plain
    single = scores_of(*generate.load(base, adapter=places["late"]))
    assert single == found["late"]
    with pytest.raises(ConfigError, match="no adapter 'x'; accepted: early, late"):
        model.use("x")


# --- dialogues ------------------------------------------------------------------------------------


def talk(system: str, *turns: tuple[str, str]) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}]
    for said, answered in turns:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": answered})
    return {"messages": messages}


TALKS = {
    "春": (("花落", "知多少"), ("夜来", "风雨声")),
    "月": (("花落", "思故乡"), ("夜来", "地上霜")),
}


def test_dialogues_are_learned_and_repeated_in_a_chat(
    base: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    tiny_run.write_lines(tmp_path / "talks.jsonl", [talk(s, *t) for s, t in TALKS.items()])
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path, base=base), encoding="utf-8")
    learned = (
        f"data.train=[{{path: {tmp_path}/talks.jsonl, shape: {{kind: dialogue}}}}]",
        *("data.valid=[]", "data.repeat=4", "finetune.tasks=[]", "optim.lr=3e-2"),
        *("train.steps=100", "train.log_every=50"),
    )
    config = config_of(tmp_path / "run.yaml", *learned)
    result = finetune(config)
    _, tokenizer = generate.load(result.checkpoint)
    answers = [answer for turns in TALKS.values() for _, answer in turns]
    wanted = sum(len(tokenizer.encode(f" {answer}")[0]) + 1 for answer in answers)
    targets = prepare.report_of(config, "train")["targets"]
    assert targets == 4 * wanted, "only answers, with their end marks, are learned"
    for system, turns in TALKS.items():
        said = "".join(f"{text}\n" for text, _ in turns)
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        arguments = ["-m", str(result.checkpoint), "--system", system, "--max-new-tokens", "8"]
        assert cli.main(["chat", *arguments]) == 0
        assert capsys.readouterr().out.split() == [answer for _, answer in turns]


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes_are_named(settings: Path, lora_run: Path, base: Path, capsys: Any) -> None:
    def refused(*overrides: str) -> str:
        capsys.readouterr()
        assert cli.main(["finetune", "-c", str(settings), *overrides]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert "train.start=nowhere: no checkpoint there" in refused("train.start=nowhere")
    fresh = ("train.start=", "model.preset=tiny", "lora.rank=2")
    assert "lora trains adapters of a checkpoint; name it: train.start" in refused(*fresh)
    assert "choose one" in refused("train.epochs=2")
    assert "is no projection of this network; it has attn.k" in refused("lora.targets=[attn.w]")
    assert "finetune.best_by=valid/f1 is not measured; accepted: valid/loss" in refused(
        "finetune.best_by=valid/f1"
    )
    (settings.parent / "train.tsv").write_text("床\tx\n月\ty\n", encoding="utf-8")
    records = settings.parent / "records.jsonl"
    data = f"data.train=[{{path: {records}, tasks: {{record: 1}}}}]"
    tiny_run.write_lines(records, [{"input": "床"}, {"input": "月"}])
    assert "records.jsonl:1: record without <ans> (keys: input)" in refused(data)
    empty = [{"input": "床", "<ans>": {"a": "", "b": ""}}, {"input": "月", "<ans>": ""}]
    tiny_run.write_lines(records, empty)
    for _ in range(2):  # also when the rows are there
        assert "all answers of the 2 training records are empty" in refused(data)
    text = refused()
    assert "train.tsv:1: label 'x' is not known; accepted: p, n" in text
    assert text.count("\n") == 1


def test_check_shows_what_finetuning_would_meet(
    settings: Path, capsys: Any, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    assert cli.main(["check", "-c", str(settings)]) == 0
    capsys.readouterr()
    with (settings.parent / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("坏\tx\n" + "床前明月光" * 20 + "\tp\n床0\tn\n")
    assert cli.main(["check", "-c", str(settings), "--out", str(out)]) == 2
    shown, last = capsys.readouterr()
    assert last == f"mindplm: error: 2 problems, see {out}\n"
    assert "train: 26 documents, 25 records or pieces usable, 2 problems" in shown
    assert "train.tsv:25: label 'x' is not known; accepted: p, n" in shown
    assert "train.tsv:26: record of" in shown and "seq_len is 64" in shown
    assert "1 of 26 documents occur again within train, 0 with the same answer" in shown
    assert "2 of 8 documents of valid are in train too, 2 with the same answer" in shown
    assert "labels           p 13 (50.0 %), n 13 (50.0 %)" in shown
    report = json.loads((out / "check.json").read_text())
    assert report["train"]["problems"] == {"unknown label": 1, "too long": 1}
    assert report["in_both"]["count"] == 2
    assert len((out / "problems.txt").read_text().splitlines()) == 2
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["check", "--data", str(settings.parent / "nothing.jsonl")]) == 2
