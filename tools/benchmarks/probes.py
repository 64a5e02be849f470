"""What is measured in a process of its own: python probes.py WHAT JSON; prints JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import Result, since_start_s, told

FILE = Path(__file__).resolve()


def probe(what: str, **job: Any) -> Result:
    """Runs one of the functions below in a process of its own; adds its memory."""
    return told([sys.executable, str(FILE), what, json.dumps(job)])


def load(folder: str, prompt: str, new: int, cache: str) -> Result:
    """Reads a checkpoint and writes twice with it; times count from the process' start."""
    from mindplm import runtime
    from mindplm.config import RuntimeConfig

    settings = RuntimeConfig(compile_cache=cache)
    runtime.setup(settings)
    import mindplm.generate.model as models

    found: Result = {"import s": since_start_s()}
    model, tokenizer = models.load(folder, settings)
    found["loaded s"] = since_start_s()
    from mindplm.generate import generate

    for name in ("first text s", "again s"):
        begin = time.perf_counter()
        found["text"] = generate(
            model, tokenizer, [prompt], max_new_tokens=new, min_new_tokens=new
        )[0]["<ans>"]
        again = time.perf_counter() - begin
        found[name] = since_start_s() if name == "first text s" else again
    return found


def convert(source: str, out: str) -> Result:
    """Converts a checkpoint."""
    import mindplm.convert
    from mindplm import runtime

    runtime.setup_log(1)
    before = _memory()
    begin = time.perf_counter()
    report = mindplm.convert.convert(source, out)
    return {"s": time.perf_counter() - begin, "bytes": report.bytes, "before": before}


def copy(source: str, out: str) -> Result:
    """Copies a folder's files, and waits until they are on the disk."""
    before = _memory()
    begin = time.perf_counter()
    size = 0
    Path(out).mkdir()
    for path in Path(source).iterdir():
        target = shutil.copyfile(path, Path(out) / path.name)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
        size += target.stat().st_size
    return {"s": time.perf_counter() - begin, "bytes": size, "before": before}


def _memory() -> int:
    """Most memory of this program; ru_maxrss counts that of the one that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def main(what: str, text: str) -> None:
    """The command line."""
    work: dict[str, Any] = {"load": load, "convert": convert, "copy": copy}
    found = work[what](**json.loads(text))
    print(json.dumps({**found, "memory": _memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
