"""Device choice, ranks, log; nothing here needs a device other than the CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from mindplm import runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import DeviceError
from mindplm.runtime import Found


def finder(**counts: int) -> Any:
    def probe(kind: str) -> Found:
        count = counts.get(kind, 0)
        return Found(count, "" if count else f"no {kind} driver")

    return probe


@pytest.mark.parametrize(
    ("wish", "there", "device"),
    [
        ("auto", {"ascend": 8, "gpu": 1}, "Ascend"),
        ("auto", {"gpu": 1}, "GPU"),
        ("auto", {}, "CPU"),
        ("cpu", {"ascend": 8}, "CPU"),
        ("gpu", {"ascend": 8, "gpu": 2}, "GPU"),
        ("ascend", {"ascend": 1}, "Ascend"),
    ],
)
def test_auto_takes_ascend_then_gpu_then_cpu(wish: str, there: dict[str, int], device: str) -> None:
    found, notes = runtime.choose_device(wish, finder(**there))
    assert found == device
    assert notes[-1].startswith(device)


def test_notes_say_what_was_not_found_and_why() -> None:
    _, notes = runtime.choose_device("auto", finder())
    assert notes[0] == "Ascend: none (no ascend driver)"
    assert notes[1] == "GPU: none (no gpu driver)"


@pytest.mark.parametrize("wish", ["ascend", "gpu"])
def test_a_wish_that_cannot_be_met_is_refused_with_advice(wish: str) -> None:
    with pytest.raises(DeviceError) as error:
        runtime.choose_device(wish, finder())
    text = str(error.value)
    assert f"runtime.device={wish} cannot be used: no {wish} driver" in text
    assert ("CANN" if wish == "ascend" else "CUDA 11.6") in text


def test_a_probe_explains_instead_of_failing() -> None:
    for kind in ("ascend", "gpu"):
        found = runtime.probe(kind)
        assert found.count or "/dev/" in found.why or "shows no device" in found.why


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"MS_WORKER_NUM": "4", "RANK_ID": "3"}, (3, 4)),
        ({"RANK_SIZE": "2", "MS_NODE_ID": "1"}, (1, 2)),
        ({"MS_WORKER_NUM": ""}, (0, 1)),
    ],
)
def test_ranks_come_from_the_launcher(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert runtime.ranks(environ) == expected


def test_ranks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DeviceError, match="RANK_ID=4 does not fit MS_WORKER_NUM=4"):
        runtime.ranks({"MS_WORKER_NUM": "4", "RANK_ID": "4"})
    with pytest.raises(DeviceError, match="RANK_ID='x' is not a whole number"):
        runtime.ranks({"RANK_ID": "x"})


def test_log_has_one_handler_and_marks_warnings(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    runtime.setup_log()
    runtime.setup_log()
    ours = [h for h in runtime.log.handlers if isinstance(h, runtime._Handler)]
    assert len(ours) == 1
    runtime.log.info("plain %d", 3)
    runtime.log.warning("odd")
    runtime.setup_log(rank=1)
    runtime.log.info("never seen")
    runtime.setup_log()
    captured = capsys.readouterr()
    assert captured.err == "plain 3\nwarning: odd\n"
    assert captured.out == ""
    assert runtime.log.level == logging.INFO


def test_threads_beyond_the_cores_are_refused() -> None:
    cores = runtime.num_cores()
    with pytest.raises(DeviceError, match=f"runtime.threads={cores + 1}, expected at most {cores}"):
        runtime.setup(RuntimeConfig(device="cpu", threads=cores + 1))


SCRIPT = """
import sys
from mindplm import runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import DeviceError
assert "mindspore" not in sys.modules
config = RuntimeConfig(device="cpu", seed=7, threads=1, compile_cache=sys.argv[1])
first = runtime.setup(config)
import mindspore as ms, numpy as np
values = [ms.ops.standard_normal((3,)).asnumpy() for _ in range(2) if runtime.setup(config)]
assert (values[0] == values[1]).all(), values
assert (first.device, first.rank, first.world) == ("CPU", 0, 1), first
assert not runtime.is_ascend() and runtime.compute_dtype("float16") == ms.float16
try:
    runtime.setup(RuntimeConfig(device="cpu", dtype="bfloat16"))
except DeviceError as error:
    print(error)
"""


def test_setup_is_repeatable_and_quiet(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "GLOG_v"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "runtime.dtype=bfloat16 does not run on CPU; accepted there: float32, float16\n"
    )
    assert done.stderr == ""
