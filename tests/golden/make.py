"""Cuts the small golden set that ships with the tests out of the full one: arrays only.

    python tests/golden/make.py FULL_GOLDEN_FOLDER

Large arrays are left out or replaced by what can be checked of them: logits by the 32 best ones,
the target's and the sum of exponentials at each position with a target.
"""

from __future__ import annotations

import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent / "cpm_bee"
MODELS = ("model_noext", "model_packed", "model_pruned")
WHOLE = (
    "buckets.npz",
    "optim/adam.json",
    "optim/adam.npz",
    "optim/schedules.json",
    "generation/config.json",
    "generation/weights.safetensors",
)
OF_A_MODEL = ("info.json", "inputs.npz", "weights.safetensors", "grads.safetensors")
LEFT_OUT = ("logits", "half_logits", "position_bias", "ext_table", "segment_bucket")
NUM_BEST = 32


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz file that is the same each time it is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(arrays[name]), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED
            )


def outputs_without_logits(folder: Path) -> dict[str, np.ndarray]:
    """The outputs of a model set, with extracts of the logits at the targets."""
    outputs = dict(np.load(folder / "outputs.npz"))
    target = np.load(folder / "inputs.npz")["target"]
    logits = outputs["logits"]
    places = np.argwhere(target != -100)
    chosen = logits[tuple(places.T)].astype(np.float64)
    best = np.argsort(-chosen, axis=1, kind="stable")[:, :NUM_BEST]
    top = chosen.max(1)
    kept = {name: array for name, array in outputs.items() if name not in LEFT_OUT}
    return {
        **kept,
        "sel_pos": places.astype(np.int32),
        "top_index": best.astype(np.int32),
        "top_values": np.take_along_axis(chosen, best, 1).astype(np.float32),
        "logsumexp": (top + np.log(np.exp(chosen - top[:, None]).sum(1))).astype(np.float32),
    }


def main(full: Path) -> None:
    """Writes the small set."""
    shutil.rmtree(HERE, ignore_errors=True)
    for name in WHOLE + tuple(f"{model}/{file}" for model in MODELS for file in OF_A_MODEL):
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(full / name, HERE / name)
    for model in MODELS:
        save(HERE / model / "outputs.npz", outputs_without_logits(full / model))
    cache = dict(np.load(full / "generation" / "cache.npz"))
    cache["prefill_logits"] = cache["prefill_logits"][:, -1:]
    del cache["prefill_hidden"]
    save(HERE / "generation" / "cache.npz", cache)


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "cpm_bee")
