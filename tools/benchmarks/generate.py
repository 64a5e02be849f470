"""Generate: tokens per second of writing, by batch size, beams and length of the prompt.

The model has random weights: what it writes means nothing, and takes as long as anything else.
With --torch a PyTorch network of ours takes turns, each side in processes of its own, and all
sides must write the same. One of several prompts is as long as said, the others are shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import string
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from synthetic_checkpoint import vocabulary

from benchmarks import train_inputs
from benchmarks.machine import BENCH, Result, spread, table, timed, told
from mindplm import families, runtime
from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.data.prompts import batch, prepare
from mindplm.errors import UserError
from mindplm.strict import to_plain
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

_PROBE_BYTES = 1 << 28
_LETTERS = np.array(list(string.ascii_uppercase))
_FORMS = {"torch reference": "reference", "torch good": "good"}
_TORCH = Path(__file__).with_name("torch_generate.py")


class Shape(NamedTuple):
    """What is written at once."""

    batch: int
    beams: int
    prompt: int
    new: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument(
        "--vocab-size", type=int, default=86583, help="entries, made up (default 86583)"
    )
    parser.add_argument("--model", metavar="FOLDER", help="a checkpoint instead of a preset")
    parser.add_argument(
        "--batch", "--batches", type=int, nargs="+", default=[1, 8], help="prompts at once"
    )
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--prompt", "--prompts", type=int, nargs="+", default=[128, 1024],
        help="tokens, begin mark included",
    )  # fmt: skip
    parser.add_argument("--new", type=int, default=64, help="tokens written (default 64)")
    parser.add_argument("--dtype", default="float32", help="runtime.dtype (default float32)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--torch", action="store_true", help="PyTorch in turn with ours")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default 2)")


def run(args: argparse.Namespace) -> list[Result]:
    """Every combination of batch, beams and prompt."""
    if args.torch:
        return _in_turns(args)
    settings = RuntimeConfig(dtype=args.dtype, threads=args.threads)
    model, tokenizer, num_bytes = _load(args, settings)
    bandwidth = read_bandwidth()
    results = []
    for shape in shapes(args):
        found = _measure(model, tokenizer, shape, args.runs)
        # A step reads all weights once at least.
        steps = found["decode tokens/s"] / shape.batch
        found |= {"of bound": steps * num_bytes / bandwidth}
        found |= {"weights GB": num_bytes / 1e9, "read GB/s": bandwidth / 1e9}
        results.append(found)
        if not args.json:  # the largest shapes take minutes
            print(table([found]), file=sys.stderr, flush=True)
    return results


def shapes(args: argparse.Namespace) -> Iterator[Shape]:
    """All that is measured, in order."""
    for prompt in args.prompt:
        for size in args.batch:
            for beams in args.beams:
                yield Shape(size, beams, prompt, args.new)


def preset(args: argparse.Namespace) -> Any:
    """Sizes of --preset with --vocab-size."""
    entry = families.family("cpm_bee")
    if args.preset not in entry.presets:
        raise UserError(f"--preset {args.preset}, accepted: {', '.join(entry.presets)}")
    return dataclasses.replace(entry.presets[args.preset], vocab_size=args.vocab_size)


def _load(args: argparse.Namespace, settings: RuntimeConfig) -> tuple[Any, CpmBeeTokenizer, int]:
    """The model, its tokenizer, and the bytes of its weights."""
    from mindplm.generate import load
    from mindplm.generate.model import from_cell
    from mindplm.nn.init import initialise

    if args.model:
        model, tokenizer = load(args.model, settings)
        cell = model.cell
    else:
        runtime.setup(settings)
        config = preset(args)
        tokenizer = vocabulary(args.vocab_size)
        cell = families.family("cpm_bee").part("cell")(
            config, runtime.compute_dtype(settings.dtype)
        )
        if config.no_attention or config.no_ffn:
            initialise(cell, seed=0)
        else:
            train_inputs.fill(cell, to_plain(config))
        model = from_cell(cell, config)
    return model, tokenizer, sum(item.nbytes for item in cell.get_parameters())


def prompts_of(shape: Shape, tokenizer: CpmBeeTokenizer) -> list[dict[str, str]]:
    """Records for a batch: the first prompt takes all columns, the last little more than half.

    The begin mark of the blank is one of the columns.
    """
    records = []
    frame = len(prepare({"input": "", "<ans>": ""}, tokenizer))
    for number in range(shape.batch):
        missing = shape.prompt - shape.prompt * number // (2 * shape.batch) - 1 - frame
        if missing < 0:
            raise UserError(f"--prompt {shape.prompt}, expected at least {2 * frame + 2}")
        drawn = np.random.default_rng(number).choice(_LETTERS, missing)
        records.append({"input": "".join(drawn), "<ans>": ""})
    assert shape.prompt - 1 == len(prepare(records[0], tokenizer))
    return records


def _measure(model: Any, tokenizer: CpmBeeTokenizer, shape: Shape, runs: int) -> Result:
    from mindplm.generate import write

    prompts = prompts_of(shape, tokenizer)
    last: list[Any] = []

    def writing(count: int) -> Any:
        config = GenerateConfig(
            max_new_tokens=count, min_new_tokens=count, beams=shape.beams, buckets=(shape.prompt,)
        )

        def work() -> None:
            last[:] = write(model, tokenizer, prompts, config, batch_size=shape.batch)

        return work

    # One token takes the prompt pass alone; the cache has the same length, so the same graphs.
    first_s, _ = timed(writing(1), runs)
    time_s, times = timed(writing(shape.new), runs)
    size, new = shape.batch, shape.new
    return {
        **shape._asdict(),
        "tokens/s": size * new / time_s,
        "decode tokens/s": size * (new - 1) / max(time_s - first_s, 1e-9) if new > 1 else 0.0,
        "prompt ms": 1e3 * first_s,
        "seconds": times,
        "spread": spread(times),
        "answers": [record["<ans>"] for record in last],
    }


def read_bandwidth(tries: int = 7) -> float:
    """Bytes per second that all cores together read from memory; the median of some tries."""
    parts = np.array_split(np.ones(_PROBE_BYTES // 4, np.float32), runtime.num_cores())
    found = []
    for _ in range(tries):
        workers = [threading.Thread(target=part.max) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found.append(_PROBE_BYTES / (time.perf_counter() - begin))
    return statistics.median(found)


# --- in turn with PyTorch -------------------------------------------------------------------------


def _in_turns(args: argparse.Namespace) -> list[Result]:
    """All sides, round by round; each must write the same as the others."""
    config = preset(args)
    if args.model or args.dtype != "float32" or config.no_attention or config.no_ffn:
        raise UserError("--torch has float32 presets with whole layers only, and no --model")
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}, expected at least 1")
    tokenizer = vocabulary(args.vocab_size)
    sides = ("mindplm", *_FORMS)
    found: dict[tuple[Shape, str], list[Result]] = {}
    for _ in range(args.rounds):
        for side in sides:
            ours = side == "mindplm"
            told_all = _own_process(args) if ours else _torch(args, config, side, tokenizer)
            for shape, one in zip(shapes(args), told_all):
                found.setdefault((shape, side), []).append(one)
    return [row for shape in shapes(args) for row in rows_of(shape, found, sides)]


def rows_of(
    shape: Shape, found: dict[tuple[Shape, str], list[Result]], sides: tuple[str, ...]
) -> Iterator[Result]:
    """What is told of one shape."""
    wanted = found[shape, sides[0]][0]["answers"]
    medians = {}
    for side in sides:
        all_of = found[shape, side]
        for one in all_of:
            if one["answers"] != wanted:
                number = next(i for i, text in enumerate(wanted) if one["answers"][i] != text)
                raise UserError(f"{shape}: {side} writes something else for prompt {number + 1}")
        seconds = [value for one in all_of for value in one["seconds"]]
        medians[side] = statistics.median(seconds)
        row = {"side": side, **shape._asdict(), "tokens/s": shape.batch * shape.new / medians[side]}
        row |= {"seconds": seconds, "spread": spread(seconds)}
        row["ours faster"] = medians[side] / medians[sides[0]]
        for name in ("decode tokens/s", "prompt ms", "of bound"):
            if name in all_of[0]:
                row[name] = statistics.median(one[name] for one in all_of)
        yield row


def _own_process(args: argparse.Namespace) -> list[Result]:
    """Our side as `bench.py generate` without PyTorch gives it."""
    words = ["generate", "--json", "--preset", args.preset]
    for name in ("runs", "vocab_size", "batch", "beams", "prompt", "new", "threads"):
        values = getattr(args, name)
        words += [f"--{name.replace('_', '-')}"]
        words += map(str, values if isinstance(values, list) else [values])
    return told([sys.executable, str(BENCH), *words])["results"]


def _torch(
    args: argparse.Namespace, config: Any, side: str, tokenizer: CpmBeeTokenizer
) -> list[Result]:
    """A form of the PyTorch side, its classes as texts."""
    from mindplm.generate.bee_layout import BeeLayout
    from mindplm.models.cpm_bee.config import SHARED_COLUMNS
    from mindplm.nn.position import distance_buckets

    layout, made, ready = BeeLayout(tokenizer, config), [], []
    for shape in shapes(args):
        prompts = [prepare(record, tokenizer) for record in prompts_of(shape, tokenizer)]
        room = layout.room(prompts)
        columns = batch(prompts, tokenizer, bucket=shape.prompt, **room._asdict()).columns
        kept = {name: x.tolist() for name, x in columns.items() if name not in SHARED_COLUMNS}
        made.append({"beams": shape.beams, "columns": kept})
        ready.append(prompts)
    job = {
        "form": _FORMS[side],
        "sizes": to_plain(config),
        "buckets": distance_buckets(config.num_distance_buckets, config.max_distance).tolist(),
        "shapes": made,
        # Nothing ends early, and no prompt has unknown words.
        "banned": [tokenizer.eos_id, tokenizer.unk_id],
        **{name: getattr(args, name) for name in ("runs", "new", "threads")},
    }
    found = told([args.torch_python, str(_TORCH)], json.dumps(job))["results"]
    for one, prompts in zip(found, ready):
        one["answers"] = [
            layout.answers([(token, 1) for token in classes], prompt, {})[0]
            for classes, prompt in zip(one["classes"], prompts)
        ]
    return found
