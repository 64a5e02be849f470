"""Trains a model under faults and compares its losses with those of an undisturbed run.

    python tools/faults.py -c configs/cpm_bee/tiny.yaml --steps 2000 --faults 20 [key=value ...]

It does what a user does: scripts/pretrain_cpm_bee.sh, and the same command again after each fault.
The disturbed run writes to a small disk of its own. The faults, by turns, at random steps:

  kill     SIGKILL of one process, at any moment
  stop     SIGTERM
  damage   SIGKILL, then a file of the newest checkpoint is changed; the advice of the message,
           train.resume=..., is followed
  full     the disk is full while the run goes on, and is cleared when the run has ended

Besides, the training data of the disturbed run end with lines that cannot be used. All losses, the
weights and the state of training must be the same, bit for bit. Exit status 1: they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindplm.checkpoint import RunFolder
from mindplm.config import SourceConfig
from mindplm.data.sources import Document, SourceReader
from mindplm.errors import INTERRUPTED, USER_ERROR
from mindplm.files import read_manifest
from mindplm.train.metrics import FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("damage", "full", "kill", "stop")
BAD_LINES = (
    b'{"text": "',
    b'{"input": "no answer"}',
    b"[1, 2]",
    b'{"text": 5}',
    b'{"text": "\xff"}',
)
PATIENCE_S = 900.0
_ADVICE = re.compile(r"train\.resume=(\S+)")


class RunError(Exception):
    """The library did something else than it should."""


@dataclass
class Plan:
    """What is run, and what happens to it."""

    folder: Path
    config: str
    overrides: list[str]
    steps: int
    faults: list[tuple[int, str]]
    ranks: int
    save_every: int
    rng: random.Random
    told: list[dict[str, Any]] = field(default_factory=list)

    def command(self, verb: str, name: str, *more: str) -> list[str]:
        """The command of a user for the run of a name."""
        start = [sys.executable, "-m", "mindplm", verb, "-c"]
        if verb == "pretrain":
            start = ["bash", str(ROOT / "scripts" / "pretrain_cpm_bee.sh")]
        sources = {"train": f"{name}.jsonl", "valid": "valid.jsonl"}
        settings = [
            f"data.{split}=[{{path: {self.folder / path}, name: texts}}]"
            for split, path in sources.items()
        ]
        settings += [
            f"data.folder={self.folder / name}",
            f"train.output={self.folder / 'disk' / name}",
            f"train.steps={self.steps}",
            "train.log_every=1",
            f"train.save_every={self.save_every}",
            f"train.eval_every={self.steps}",
            "train.keep_last=2",
        ]
        return [*start, self.config, *settings, *self.overrides, *more]

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Starts a command; what it says goes to output.txt."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        own = {"NPUS": str(self.ranks), "MASTER_PORT": str(port), "TQDM_DISABLE": "1",
               "MINDPLM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}  # fmt: skip
        with open(self.folder / "output.txt", "wb") as out:
            return subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **own}
            )

    def said(self) -> str:
        """What the last command said."""
        return (self.folder / "output.txt").read_text("utf-8", "replace")

    def run(self, command: Sequence[str], expected: int = 0) -> str:
        """Runs a command that must end with a status; what it said."""
        return self.ended(self.start(command), expected)

    def ended(self, process: subprocess.Popen[bytes], *expected: int) -> str:
        """Waits for the end of a command; what it said."""
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RunError(f"it does not end:\n{self.said()[-3000:]}") from None
        if status not in expected or "Traceback" in self.said():
            raise RunError(f"status {status}, expected one of {expected}:\n{self.said()[-3000:]}")
        return self.said()


# --- data -----------------------------------------------------------------------------------------


def write_data(folder: Path, documents: int, rng: random.Random) -> int:
    """The same texts for both runs, and lines that cannot be used for one; their number."""
    for split, corpus, count in (("train", "poems", documents), ("valid", "poems_valid", 32)):
        items = SourceReader(SourceConfig(path=f"embedded:{corpus}"))
        good = [item.fields for item in items if isinstance(item, Document)][:count]
        lines = [json.dumps({"text": one["text"]}, ensure_ascii=False).encode() for one in good]
        if split == "valid":
            (folder / "valid.jsonl").write_bytes(b"\n".join(lines) + b"\n")
            continue
        bad = rng.choices(BAD_LINES, k=5)
        (folder / "whole.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        (folder / "hurt.jsonl").write_bytes(b"\n".join([*lines, *bad]) + b"\n")
    return len(bad)


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """A file system of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- faults ---------------------------------------------------------------------------------------


def last_step(run: Path) -> int:
    """The last step that was reported."""
    records = read_metrics(run / FILE) if (run / FILE).is_file() else []
    return records[-1]["step"] if records else 0


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that train."""
    found, waiting = [], [process.pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"pretrain" in words and b"mindplm" in words and b"MS_ROLE=MS_SCHED" not in environ:
                found.append(pid)
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, path.read_text().split())
    ranked = [pid for pid in found if b"RANK_ID=" in Path(f"/proc/{pid}/environ").read_bytes()]
    return ranked or found[:1]


def reached(plan: Plan, process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Waits until a step is reported, and a moment more."""
    end = time.monotonic() + PATIENCE_S
    while last_step(run) < step:
        if process.poll() is not None or time.monotonic() > end:
            raise RunError(f"step {step} was not reached:\n{plan.said()[-3000:]}")
        time.sleep(0.05)
    time.sleep(plan.rng.uniform(0, 0.2))


def disturbed(
    plan: Plan, process: subprocess.Popen[bytes], kind: str, step: int, run: Path
) -> list[str]:
    """Lets something happen to a run that was started; what the next command needs besides."""
    reached(plan, process, run, step)
    if kind == "stop":
        process.send_signal(signal.SIGTERM)
        plan.ended(process, INTERRUPTED)
        return []
    if kind == "full":
        filler = run.parent / "filler"
        left = plan.rng.choice((0, 1 << 14, 1 << 17))
        with open(filler, "wb") as file:
            free = os.statvfs(run.parent).f_bavail * os.statvfs(run.parent).f_frsize
            os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
        said = plan.ended(process, *((USER_ERROR,) if plan.ranks == 1 else (1, USER_ERROR)))
        filler.unlink()
        if "no space" not in said.lower():
            raise RunError(f"nothing is said of the full disk:\n{said[-3000:]}")
        return []
    os.kill(plan.rng.choice(workers(process)), signal.SIGKILL)
    said = plan.ended(process, -signal.SIGKILL, 1)
    if kind == "kill" or len(RunFolder(run).steps()) < 2:
        return []
    folder = RunFolder(run).path_of(RunFolder(run).steps()[-1])
    path = plan.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    harm(path, plan.rng)
    said = plan.run(plan.command("pretrain", run.name), USER_ERROR)
    advice = _ADVICE.search(said)
    if str(path) not in said or advice is None:
        raise RunError(f"{path} is damaged; this was said:\n{said[-3000:]}")
    return [advice[0]]


def harm(path: Path, rng: random.Random) -> None:
    """Changes a bit of a file, or cuts its end off, or removes it."""
    data = bytearray(path.read_bytes())
    way = rng.random()
    if way < 0.6:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data if way < 0.6 else data[: rng.randrange(len(data))])
    if way > 0.9:
        path.unlink()


def train_hurt(plan: Plan, run: Path) -> None:
    """The disturbed run, from one fault to the next."""
    more: list[str] = []
    for step, kind in plan.faults:
        begin, before = time.monotonic(), last_step(run)
        process = plan.start(plan.command("pretrain", run.name, *more))
        more = disturbed(plan, process, kind, max(step, before), run)
        plan.told.append({"fault": kind, "step": step, "reported": last_step(run),
                          "saved": RunFolder(run).steps(),
                          "seconds": round(time.monotonic() - begin, 1)})  # fmt: skip
        print(json.dumps(plan.told[-1]), flush=True)
    plan.run(plan.command("pretrain", run.name, *more))


# --- comparison -----------------------------------------------------------------------------------


def losses(run: Path, name: str) -> dict[int, float]:
    """The values of a name by step."""
    return {r["step"]: r[name] for r in read_metrics(run / FILE) if name in r}


def compare(whole: Path, hurt: Path, steps: int) -> dict[str, Any]:
    """What is the same in two runs."""
    ours, theirs = losses(whole, "train/loss"), losses(hurt, "train/loss")
    differ = [step for step in range(1, steps + 1) if ours.get(step) != theirs.get(step)]
    saved = [read_manifest(RunFolder(run).path_of(steps)) for run in (whole, hurt)]
    names = sorted(name for name in saved[0] if name.startswith(("weights", "train/")))
    valid = [losses(run, "valid/loss").get(steps) for run in (whole, hurt)]
    return {
        "steps": steps,
        "losses compared": len(ours),
        "losses that differ": len(differ),
        "largest difference": max(
            (abs(ours.get(s, 0.0) - theirs.get(s, float("inf"))) for s in differ), default=0.0
        ),
        "final loss": [ours[steps], theirs.get(steps)],
        "validation loss": valid,
        "files that differ": [n for n in names if saved[0][n] != saved[1].get(n)],
        "same": not differ and len(ours) == len(theirs) == steps and valid[0] == valid[1]
        and all(saved[0][n] == saved[1].get(n) for n in names),
    }  # fmt: skip


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both runs and their comparison."""
    rng = random.Random(args.seed)
    first = args.steps // 20 + 1
    steps = sorted(rng.sample(range(first, args.steps), args.faults))
    kinds = [KINDS[i % len(KINDS)] for i in range(args.faults)]
    rng.shuffle(kinds)
    plan = Plan(folder, args.config, args.overrides, args.steps, list(zip(steps, kinds)),
                args.ranks, args.save_every or max(1, args.steps // 40), rng)  # fmt: skip
    bad = write_data(folder, args.documents, rng)
    (folder / "disk").mkdir()
    for name in ("whole", "hurt"):
        plan.run(plan.command("preprocess", name))
    report = json.loads((folder / "hurt" / "train" / "report.json").read_text("utf-8"))
    if report["num_invalid"] != bad:
        raise RunError(f"{bad} lines cannot be used, {report['num_invalid']} were counted")
    begin = time.monotonic()
    plan.run(plan.command("pretrain", "whole"))
    undisturbed_s = time.monotonic() - begin
    whole = folder / "disk" / "whole"
    size = sum(f.stat().st_size for f in RunFolder(whole).path_of(args.steps).rglob("*"))
    shutil.move(whole, folder / "whole_run")
    (folder / "disk").rmdir()
    room = (4 + kinds.count("damage")) * size + (8 << 20) + 4000 * args.steps
    with small_disk(folder / "disk", room):
        begin = time.monotonic()
        train_hurt(plan, folder / "disk" / "hurt")
        result = compare(folder / "whole_run", folder / "disk" / "hurt", args.steps)
    seconds = {"undisturbed s": undisturbed_s, "disturbed s": time.monotonic() - begin}
    times = {name: round(value, 1) for name, value in seconds.items()}
    return {"faults": len(plan.told), "bad records": bad, **times, **result}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("-c", "--config", required=True, help="settings of a CPM-Bee")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run")
    parser.add_argument("--documents", type=int, default=500, help="texts to learn")
    parser.add_argument("--save-every", type=int, default=0, help="default: 40 times in the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    if not 0 <= args.faults < args.steps - args.steps // 20 - 1:
        parser.error(f"--faults {args.faults}, expected fewer than steps")
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = measure(args, Path(folder))
        except RunError as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    print(json.dumps(result, indent=1))
    return 0 if result["same"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
