"""Lines that are records, nearly records, or nothing of the kind."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_checkpoint import random_array, vocabulary

from fuzzing.watch import Watch, call, quiet
from mindplm import checkpoint, families, strict
from mindplm.models.cpm_bee.config import CpmBeeConfig

ATOMS = (
    *("<", "<<", ">", "<mask_0>", "<mask_12>", "<ans>", "<ans_1>", "<option_2>", "<sep>", "</s>"),
    *("<s>", "<b>", "<eod>", "<root>", "<unk_0>", "<用户>", "<AI>", "<_>", "<>", "< mask_0>"),
    *(
        "\ud800",
        "\x00",
        "\r",
        "\n",
        "\t",
        " ",
        "a",
        "hello ",
        "w5",
        "中文",
        "\u30ab",
        "😀",
        "\u202e",
    ),
    *("<mask_0", "mask_0>", "</n>", "</_>", "\u3000", "a" * 70, "\ufeff", "{", '"', "\\"),
)
KEYS = (*ATOMS, "input", "options", "question", "<ans>", "<ans>", "prompt", "")
MODEL = CpmBeeConfig(
    vocab_size=300, hidden_size=16, num_heads=2, head_dim=8, ffn_size=24, num_layers=1,
    num_distance_buckets=16, num_segment_buckets=64, max_distance=64,
)  # fmt: skip
_RUN = """\
family: cpm_bee
model: {{hidden_size: 16, num_heads: 2, head_dim: 8, ffn_size: 24, num_layers: 1,
  num_distance_buckets: 16, num_segment_buckets: 64, max_distance: 64}}
tokenizer: {{path: "{folder}/model/vocab.txt"}}
runtime: {{device: cpu}}
data: {{folder: "{folder}/rows", seq_len: 128, max_ext: 32,
  train: [{{path: "{folder}/in.jsonl", tasks: {{record: 1}}}}]}}
train: {{output: "{folder}/run", steps: 1, batch_size: 4}}
"""


def value(rng: random.Random, depth: int = 0) -> Any:
    """A text, a dict of values, or something that no record may hold."""
    kind = rng.random()
    if depth > 4 or kind < 0.55:
        return "".join(rng.choices(ATOMS, k=rng.randrange(7)))
    if kind < 0.63:
        return rng.choice([None, 3, 1.5, True, [], ["a"], {}, -(10**40), 1e308])
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def line(rng: random.Random) -> bytes:
    """One line of a file of records."""
    kind = rng.random()
    if kind < 0.01:
        return rng.choice(
            [b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"nul", b'""', b"{}", b"9" * 5000]
        )
    record = value(rng)
    if isinstance(record, dict) and rng.random() < 0.85:
        record["<ans>"] = value(rng, 3) if rng.random() < 0.5 else ""
    data = bytearray(json.dumps(record, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace"))
    if kind < 0.15 and data:  # damaged text
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data).replace(b"\n", b" ") or b" "


def lines(count: int, seed: int) -> list[bytes]:
    """The lines of a run; none of them is empty."""
    made = [line(random.Random(f"{seed}/{number}")) for number in range(count)]
    return [text if text.strip() else b"{}" for text in made]


def write_model(folder: Path) -> None:
    """A checkpoint of random weights."""
    shapes = families.family("cpm_bee").part("shapes")(MODEL)
    checkpoint.write(
        folder,
        family="cpm_bee",
        model_config=strict.to_plain(MODEL),
        weights={n: random_array(n, s, np.dtype("<f4"), 0) for n, s in shapes.items()},
        tokenizer_files=vocabulary(MODEL.vocab_size).files(),
    )


def run(folder: Path, count: int, seed: int, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes for all lines, leniently and strictly, scores them and prepares them for training.

    Args:
        folder: Where everything is written.
        count: Lines.
        seed: Of the lines.
        only: Some of generate, generate --strict, score, preprocess; None: all.
    """
    model, source = folder / "model", folder / "in.jsonl"
    write_model(model)
    source.write_bytes(b"\n".join(lines(count, seed)) + b"\n")
    (folder / "run.yaml").write_text(_RUN.format(folder=folder), encoding="utf-8")
    given = ["-m", str(model), "--file", str(source), "--batch-size", "16"]
    writing = ["generate", *given, "--max-new-tokens", "2", "runtime.device=cpu"]
    jobs = {
        "generate": [*writing, "--out", str(folder / "out.jsonl")],
        "generate --strict": [*writing, "--strict", "--out", str(folder / "strict.jsonl")],
        "score": ["score", *given, "runtime.device=cpu"],
        "preprocess": ["preprocess", "-c", str(folder / "run.yaml")],
    }
    report: dict[str, Any] = {"records": count, "seed": seed, "failures": []}
    with quiet():
        first = ["-m", str(model), "--input", "a", "--max-new-tokens", "1", "runtime.device=cpu"]
        assert call(["generate", *first])[0] == 0  # the framework looks at the machine once
        for name, argv in jobs.items():
            if only is not None and name not in only:
                continue
            begin = time.perf_counter()
            with Watch([folder, Path("/proc"), Path("/dev")]) as watch:
                status, out, err = call(argv)
            found: dict[str, Any] = {
                "status": status,
                "seconds": round(time.perf_counter() - begin, 1),
            }
            if status not in (0, 2) or "Traceback" in err or "internal error" in err:
                report["failures"].append(f"{name}: status {status}: {err[-300:]}")
            elif name != "preprocess":
                text = out if name == "score" else Path(argv[-1]).read_text(encoding="utf-8")
                found |= _outcome(text.splitlines(), count, name, report["failures"])
            else:
                found["said"] = [text for text in err.splitlines() if "record" in text][-3:]
            report["failures"] += [f"{name}: {text}" for text in watch.found[:5]]
            report[name] = found
    return report


def _outcome(texts: Sequence[str], count: int, name: str, failures: list[str]) -> dict[str, Any]:
    """Counts lines that were done and lines with an error in their place."""
    results = [json.loads(text) for text in texts]
    if len(results) != count:
        failures.append(f"{name}: {len(results)} lines for {count} records")
    errors = [result["error"] for result in results if set(result) == {"error"}]
    odd = [text for text in errors if not text or "in.jsonl:" not in text]
    failures.extend(f"{name}: an error without its place: {text[:200]}" for text in odd[:3])
    kinds = Counter(text.split(": ", 1)[-1].split(" ")[0] for text in errors)
    return {"done": count - len(errors), "refused": len(errors), "kinds": len(kinds)}
