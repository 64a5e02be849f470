"""Weights and moments of a run between one checkpoint and the parts that its processes hold.

    python tools/reshard.py cut CHECKPOINT -c CONFIG --out PARTS      PARTS/rank_<n>.safetensors
    python tools/reshard.py unify PARTS -c CONFIG --out CHECKPOINT    from the parts of all ranks
    python tools/reshard.py unify CHECKPOINT --out CHECKPOINT         one that a cut run wrote

Runs offline. A checkpoint of whole weights belongs to no layout. CONFIG says the layout: cut for
the one that shall load, unify with the one that wrote; a checkpoint of a cut run says itself how it
is cut. Parts overlap where several processes hold the same; they must agree there. The state of
training, if there is one, comes along: moments are cut as their weights are.

The trainer needs none of this to go on with another layout: it reads any checkpoint.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindplm import checkpoint, config, files, tensors
from mindplm.checkpoint import TrainState
from mindplm.config import RunConfig
from mindplm.errors import USER_ERROR, CheckpointError, ConfigError, UserError
from mindplm.families import check_layout, family, load_config, vocab_path
from mindplm.parts import MOMENTS
from mindplm.slices import Cutter, unify
from mindplm.train_state import open_arrays, read_state

_PART = re.compile(r"rank_(\d+)\.safetensors")


def cutter_of(settings: RunConfig) -> Cutter:
    """Cuts by the layout of a run.

    Raises:
        ConfigError: The family cannot be cut, or the layout does not fit.
    """
    check_layout(settings)
    parts = family(settings.family)
    return Cutter(parts.part("plan"), settings, parts.part("shapes"))


def plain_state(folder: Path) -> TrainState | None:
    """The state of training in a folder without the moments."""
    arrays = folder / "train"
    if not arrays.is_dir():
        return None
    return read_state(folder, [n for n in open_arrays(folder) if not n.startswith(MOMENTS)])


def write_parts(folder: Path, settings: RunConfig, source: Path) -> int:
    """Writes what each process holds of a checkpoint; returns the number of processes."""
    cutter, saved = cutter_of(settings), checkpoint.read(source)
    if saved.model() != settings.model:
        raise ConfigError(f"{source} is of another model than {settings.family} of the settings")
    state = plain_state(saved.folder)
    kinds = ("",) if state is None else ("", *MOMENTS)
    needed = len(kinds) * tensors.num_bytes(saved.lazy_weights())
    with files.new_folder(folder, needed) as writer:
        for rank in range(settings.parallel.devices):
            places = cutter.places(rank)
            own = {k + n: saved.part(n, p, k) for n, p in places.items() for k in kinds}
            tensors.write_arrays(writer, f"rank_{rank}", own, 1 << 62)
        if state is not None:
            state.write(writer)
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

    def whole(name: str, shape: tuple[int, ...], kind: str) -> tensors.LazyArray:
        owners = [rank for rank in held if name in places[rank]]
        lacking = [rank for rank in owners if kind + name not in held[rank]]
        if lacking:
            raise CheckpointError(f"{found[lacking[0]]} holds no {kind}{name}")

        def load() -> np.ndarray:
            parts = ((places[rank][name], np.asarray(held[rank][kind + name])) for rank in owners)
            return unify(kind + name, shape, parts)

        return tensors.LazyArray(shape, held[owners[0]][kind + name].dtype, load)

    shapes, state = cutter.shapes(settings.model), plain_state(folder)
    weights = {name: whole(name, shape, "") for name, shape in shapes.items()}
    if state is not None:
        for kind in MOMENTS:
            moments = {kind + name: whole(name, shape, kind) for name, shape in shapes.items()}
            state.arrays.update(moments)
    vocab = vocab_path(settings.tokenizer, settings.family)
    tokenizer = family(settings.family).part("tokenizer").from_file(vocab)
    checkpoint.write(
        target,
        family=settings.family,
        model_config=config.to_dict(settings)["model"],
        weights=weights,
        tokenizer_files=tokenizer.files(),
        run=config.to_dict(settings),
        train=state,
    )
    return len(weights)


def unify_checkpoint(source: Path, target: Path) -> int:
    """Makes a checkpoint of whole weights of one that a cut run wrote; returns their number.

    Raises:
        CheckpointError: It is damaged, or holds whole weights already.
    """
    saved = checkpoint.read(source)
    if saved.parts is None:
        raise CheckpointError(f"{saved.folder} holds whole weights already")
    weights, state = saved.lazy_weights(), plain_state(saved.folder)
    if state is not None:
        for kind in MOMENTS:
            state.arrays.update(saved.parts.whole(kind))
    checkpoint.write(
        target,
        family=saved.family,
        model_config=saved.model_config,
        weights=weights,
        tokenizer_files={n: (saved.folder / n).read_bytes() for n in saved.tokenizer_files},
        run=saved.run,
        train=state,
    )
    return len(weights)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("cut", "unify"))
    parser.add_argument("source", type=Path, help="a checkpoint, or a folder of parts")
    parser.add_argument("-c", "--config", metavar="FILE", help="names the layout")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        if args.config is None:
            if args.verb == "cut":
                raise ConfigError("cut needs -c FILE, which names the layout")
            count = unify_checkpoint(args.source, args.out)
            print(f"{args.out}: {count} weights")
            return 0
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
