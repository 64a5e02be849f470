"""Weights of a run between one checkpoint and the parts that its processes hold; runs offline.

    python tools/reshard.py cut CHECKPOINT -c CONFIG --out PARTS      PARTS/rank_<n>.safetensors
    python tools/reshard.py unify PARTS -c CONFIG --out CHECKPOINT    from the parts of all ranks

A checkpoint always holds whole weights, so it belongs to no layout. CONFIG says the layout: cut for
the one that shall load, unify with the one that wrote. Parts overlap where several processes hold
the same; they must agree there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindplm import checkpoint, config, files, tensors
from mindplm.config import RunConfig
from mindplm.errors import USER_ERROR, CheckpointError, ConfigError, UserError
from mindplm.families import check_layout, family, load_config, vocab_path
from mindplm.slices import Cutter, cut, unify

_PART = re.compile(r"rank_(\d+)\.safetensors")


def cutter_of(settings: RunConfig) -> Cutter:
    """Cuts by the layout of a run.

    Raises:
        ConfigError: The family cannot be cut, or the layout does not fit.
    """
    check_layout(settings)
    parts = family(settings.family)
    return Cutter(parts.part("plan"), settings, parts.part("shapes"))


def write_parts(folder: Path, settings: RunConfig, source: Path) -> int:
    """Writes what each process holds of a checkpoint's weights; returns their number."""
    cutter, saved = cutter_of(settings), checkpoint.read(source)
    if saved.model() != settings.model:
        raise ConfigError(f"{source} is of another model than {settings.family} of the settings")
    whole = saved.lazy_weights()
    with files.new_folder(folder, tensors.num_bytes(whole)) as writer:
        for rank in range(settings.parallel.devices):
            own = {n: cut(np.asarray(whole[n]), p) for n, p in cutter.places(rank).items()}
            tensors.write_arrays(writer, f"rank_{rank}", own, 1 << 62)
    return settings.parallel.devices


def unify_parts(folder: Path, settings: RunConfig, target: Path) -> int:
    """Makes a checkpoint of the parts in a folder; returns the number of weights.

    Raises:
        CheckpointError: A rank is missing, or parts do not make the weights.
    """
    cutter = cutter_of(settings)
    found = {int(m[1]): p for p in folder.iterdir() if (m := _PART.fullmatch(p.name))}
    absent = sorted(set(range(settings.parallel.devices)) - set(found))
    if absent or len(found) != settings.parallel.devices:
        raise CheckpointError(
            f"{folder} holds parts of {len(found)} processes, the layout has "
            f"{settings.parallel.devices}; missing: {absent[:8]}"
        )
    held = {rank: tensors.open_file(path) for rank, path in sorted(found.items())}
    places = {rank: cutter.places(rank) for rank in held}
    weights: dict[str, Any] = {}
    for name, shape in cutter.shapes(settings.model).items():
        owners = [rank for rank in held if name in places[rank]]
        lacking = [rank for rank in owners if name not in held[rank]]
        if lacking:
            raise CheckpointError(f"{found[lacking[0]]} holds no {name}")
        parts = ((places[rank][name], np.asarray(held[rank][name])) for rank in owners)
        weights[name] = unify(name, shape, parts)
    vocab = vocab_path(settings.tokenizer, settings.family)
    tokenizer = family(settings.family).part("tokenizer").from_file(vocab)
    checkpoint.write(
        target,
        family=settings.family,
        model_config=config.to_dict(settings)["model"],
        weights=weights,
        tokenizer_files=tokenizer.files(),
        run=config.to_dict(settings),
    )
    return len(weights)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("cut", "unify"))
    parser.add_argument("source", type=Path, help="a checkpoint, or a folder of parts")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="names the layout")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        settings = load_config(args.config, args.overrides)
        if args.verb == "cut":
            count = write_parts(args.out, settings, args.source)
            print(f"{args.out}: parts of {count} processes")
        else:
            count = unify_parts(args.source, settings, args.out)
            print(f"{args.out}: {count} weights")
    except (UserError, OSError) as error:
        print(f"reshard: error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
