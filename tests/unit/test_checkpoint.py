"""Checkpoint folders: whole or not there, checked, and exact."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindplm import checkpoint, files, tensors
from mindplm.checkpoint import RunFolder, TrainState
from mindplm.errors import CheckpointError
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.strict import to_plain

MODEL = CpmBeeConfig(vocab_size=50, hidden_size=8, num_heads=2, num_layers=2, no_ffn=(1,))


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "embed.weight": rng.standard_normal((50, 8)).astype(np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "step": np.array(7, np.int64),
        "flags": rng.random(9) > 0.5,
        "turned": rng.standard_normal((4, 6)).T,
        "none": np.zeros((0, 4), np.int32),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    }


def save(run: RunFolder, step: int, **kwargs: Any) -> Path:
    return run.save(
        TrainState(step, {"m.embed.weight": arrays(step)["embed.weight"]}, {"rng": [step, None]}),
        family="cpm_bee",
        model_config=to_plain(MODEL),
        weights=arrays(step),
        tokenizer_files={"vocab.txt": "<pad>\n 春\n".encode()},
        run={"train": {"steps": 3, "resume": "auto"}, "lr": 1e-6},
        **kwargs,
    )


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left.values(), (right[name] for name in left))
    )


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    folder = save(RunFolder(tmp_path), 12)
    assert folder == tmp_path / "checkpoints" / "step-00000012"
    found = checkpoint.read(folder)
    assert found.family == "cpm_bee"
    assert found.model() == MODEL
    assert found.model_config == to_plain(MODEL)
    assert found.run == {"train": {"steps": 3, "resume": "auto"}, "lr": 1e-6}
    assert found.tokenizer_files == ["vocab.txt"]
    assert (folder / "vocab.txt").read_bytes() == "<pad>\n 春\n".encode()
    assert same(found.weights(), arrays(12))
    state = found.train()
    assert state is not None
    assert (state.step, state.meta) == (12, {"rng": [12, None]})
    assert same(state.arrays, {"m.embed.weight": arrays(12)["embed.weight"]})


def test_other_programs_can_open_the_weights(tmp_path: Path) -> None:
    folder = save(RunFolder(tmp_path), 1)
    assert same(load_file(folder / "weights.safetensors"), arrays(1))


def test_large_sets_are_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    folder = save(RunFolder(tmp_path), 1, shard_bytes=200)
    names = sorted(path.name for path in folder.glob("weights*"))
    assert names[0].startswith("weights-00001-of-0000")
    assert names[-1] == "weights.safetensors.index.json"
    index = json.loads((folder / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays(1).values())
    assert same(checkpoint.read(folder).weights(), arrays(1))
    found = checkpoint.read(folder).train()
    assert found is not None and list(found.arrays) == ["m.embed.weight"]


def test_a_checkpoint_without_training_state_has_none(tmp_path: Path) -> None:
    checkpoint.write(
        tmp_path / "plain",
        family="cpm_bee",
        model_config=to_plain(MODEL),
        weights=arrays(),
        tokenizer_files={},
    )
    found = checkpoint.read(tmp_path / "plain", verify=False)
    assert found.train() is None and found.run is None and found.run_config() is None
    with pytest.raises(CheckpointError, match="holds no training state"):
        RunFolder(tmp_path).resume(str(tmp_path / "plain"))


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_byte_in_any_file_is_named_and_the_previous_one_offered(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    good = save(run, 1)
    folder = save(run, 2)
    places = all_files(folder)
    assert len(places) == 7
    rng = random.Random(0)
    for path in places:
        data = path.read_bytes()
        for place in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(6))}:
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError) as error:
                run.newest()
            text = str(error.value)
            assert text.startswith(str(path)), (place, text)
            assert text.endswith(f"train.resume={good}")
        path.write_bytes(data)
    newest = run.newest()
    assert newest is not None and newest.folder == folder


def test_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    folder = save(run, 1)
    for path in all_files(folder):
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(CheckpointError, match=path.name) as error:
            run.newest()
        assert "there is no good checkpoint before it" in str(error.value)
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
            checkpoint.read(folder)
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.read(tmp_path / "nowhere")


def test_a_damaged_previous_one_is_not_offered(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = save(run, 1)
    for step in (2, 3):
        (save(run, step) / "vocab.txt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"step-00000003.*train.resume={first}$"):
        run.newest()


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (5, 10, 15, 100_000_000):
        save(run, step, keep_last=2)
    assert run.steps() == [15, 100_000_000]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    newest = checkpoint.read(tmp_path)
    assert newest.folder == run.path_of(100_000_000)


def test_resume_by_wish(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.resume("auto") is None
    assert run.resume("never") is None
    for step in (1, 2, 3):
        save(run, step)
    newest = run.resume("auto")
    assert newest is not None and newest.folder == run.path_of(3)
    with pytest.raises(CheckpointError, match="up to step 3 and train.resume=never"):
        run.resume("never")
    with pytest.raises(CheckpointError, match="train.resume=autp: no such folder; accepted: auto"):
        run.resume("autp")
    chosen = run.resume(str(run.path_of(1)))
    assert chosen is not None and chosen.folder == run.path_of(1)
    assert run.steps() == [1]
    assert (tmp_path / "checkpoints" / "step-00000003.aside1").is_dir()


def test_a_save_over_an_existing_step_replaces_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (save(run, 4) / "extra").write_text("x")
    save(run, 4)
    assert not (run.path_of(4) / "extra").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: Any, early: bool
) -> None:
    run = RunFolder(tmp_path)
    save(run, 1)
    if early:
        usage = shutil._ntuple_diskusage(100, 90, 10)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr(tensors, "_chunks", full_after_the_first)
    with pytest.raises(CheckpointError) as error:
        save(run, 2)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'checkpoints'}: no space left to write step-00000002")
    assert "bytes are needed" in text
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert run.newest() is not None


def full_after_the_first(*_: Any) -> Any:
    yield b"x" * 100
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype complex128, which is not stored"):
        checkpoint.write(
            tmp_path / "x",
            family="cpm_bee",
            model_config={},
            weights={"a": np.zeros(2, np.complex128)},
            tokenizer_files={},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_for_one_process(tmp_path: Path) -> None:
    with RunFolder(tmp_path).only_process():
        code = "import sys; from mindplm.checkpoint import RunFolder\n"
        code += "with RunFolder(sys.argv[1]).only_process(): pass"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
        assert "is in use by another process" in done.stderr
    with RunFolder(tmp_path).only_process():
        pass


def test_replaced_files_are_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.replace_file(path, b"one")
    files.replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
import numpy as np
from mindplm.checkpoint import RunFolder, TrainState
run = RunFolder(sys.argv[1])
newest = run.resume("auto")
step = 0
if newest is not None:
    state = newest.train()
    step = state.step
    assert (newest.weights()["a"] == step).all() and (state.arrays["m"] == -step).all()
print("ready", step, flush=True)
while True:
    step += 1
    a = np.full((200, 300), step, np.float32)
    run.save(TrainState(step, {"m": -a}, {"step": step}), family="cpm_bee", model_config={},
             weights={"a": a, "b": a[:50]}, tokenizer_files={"vocab.txt": b"x" * 500}, keep_last=2)
"""


def test_kill_at_random_moments_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(1)
    run = RunFolder(tmp_path)
    last = 0
    leftovers = 0
    save_s = 0.0
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        word, step = child.stdout.readline().split()
        assert word == "ready" and int(step) == last
        if not save_s:  # the first is whole; how long that takes depends on the disk
            begin_s = time.monotonic()
            while not run.steps():
                assert child.poll() is None
                time.sleep(0.001)
            save_s = time.monotonic() - begin_s
        time.sleep(rng.uniform(0, 3 * save_s))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        leftovers += any(name.startswith(".") for name in names)
        newest = run.newest()
        state = newest.train() if newest is not None else None
        assert newest is not None and state is not None and state.step >= max(last, 1)
        last = state.step
        assert (newest.weights()["b"] == last).all() and (state.arrays["m"] == -last).all()
        names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        assert not any(name.startswith(".") for name in names), names
    assert leftovers >= 1  # the kills did hit writes
