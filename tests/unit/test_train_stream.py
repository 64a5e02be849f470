"""A run whose rows are drawn on the way, of a mixture file: interrupted, it goes on bitwise."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_run
from tiny_run import assert_same_state, newest, numbers

SCRIPT = """
def transform(data, num_sample, r):
    cut = 1 + int(r.random() * (len(data["text"]) - 1))
    return {"input": data["text"][:cut], "<ans>": data["text"][cut:]}
"""


def write_mixture(folder: Path) -> None:
    (folder / "cut.py").write_text(SCRIPT)
    records = [{"input": "<mask_0>", "<ans>": {"<mask_0>": v["text"]}} for v in tiny_run.texts(20)]
    tiny_run.write_lines(folder / "records.jsonl", records)
    entries = [
        {"dataset_name": "verses", "task_name": "lm", "path": "train.jsonl", "weight": 2.0,
         "transforms": "cut.py", "incontext_weight": [0.7, 0.3]},
        {"dataset_name": "blanks", "task_name": "fill", "path": "records.jsonl"},
    ]  # fmt: skip
    (folder / "mixture.json").write_text(json.dumps(entries))


def test_a_streamed_run_goes_on_bitwise(tmp_path: Path) -> None:
    config = tiny_run.write_run(tmp_path, steps=6)
    write_mixture(tmp_path)
    more = [f"data.mixture={tmp_path}/mixture.json", "data.train=[]", "data.stream=true",
            "train.save_every=2"]  # fmt: skip
    out = tiny_run.run("preprocess", config, *more)
    assert "training rows are drawn while training: fill, lm, later tasks" in out
    assert not (tmp_path / "rows" / "train").exists()
    tiny_run.run("pretrain", config, *more)
    # The first steps, of another run with a stream of its own, and then the rest of them.
    other = [*more, f"train.output={tmp_path}/other", f"data.folder={tmp_path}/other_rows"]
    tiny_run.run("preprocess", config, *other)
    half = tiny_run.newest(tmp_path / "run").folder.parent / "step-00000004"
    tiny_run.run("pretrain", config, *other, f"train.resume={half}")
    assert numbers(tmp_path / "other") == [n for n in numbers(tmp_path / "run") if n["step"] > 4]
    assert_same_state(newest(tmp_path / "run"), newest(tmp_path / "other"))
    names = {name for record in numbers(tmp_path / "run") for name in record}
    assert any("fill" in name for name in names) and any("lm" in name for name in names)
