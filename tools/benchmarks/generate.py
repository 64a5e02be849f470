"""Generate: tokens per second of writing, by batch size, beams and length of the prompt.

The model has random weights: what it writes means nothing, and takes as long as anything else.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
from synthetic_checkpoint import vocabulary

from benchmarks.machine import Result, spread, table, timed
from mindplm import families, runtime
from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.data.prompts import prepare
from mindplm.errors import UserError
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer

_PROBE_BYTES = 1 << 28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument(
        "--vocab-size", type=int, default=86583, help="entries, made up (default 86583)"
    )
    parser.add_argument("--model", metavar="FOLDER", help="a checkpoint instead of a preset")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--prompt", type=int, nargs="+", default=[128, 1024], help="tokens, begin mark included"
    )
    parser.add_argument("--new", type=int, default=64, help="tokens written (default 64)")
    parser.add_argument("--dtype", default="float32", help="runtime.dtype (default float32)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")


def run(args: argparse.Namespace) -> list[Result]:
    """Every combination of batch, beams and prompt."""
    settings = RuntimeConfig(dtype=args.dtype, threads=args.threads)
    model, tokenizer, num_bytes = _load(args, settings)
    bandwidth = read_bandwidth()
    results = []
    for prompt in args.prompt:
        for batch in args.batch:
            for beams in args.beams:
                shape = (batch, beams, prompt, args.new)
                found = _measure(model, tokenizer, shape, args.runs)
                # A step reads all weights once at least.
                steps = found["decode tokens/s"] / batch
                found |= {"of bound": steps * num_bytes / bandwidth}
                found |= {"weights GB": num_bytes / 1e9, "read GB/s": bandwidth / 1e9}
                results.append(found)
                if not args.json:  # the largest shapes take minutes
                    print(table([found]), file=sys.stderr, flush=True)
    return results


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
        entry = families.family("cpm_bee")
        if args.preset not in entry.presets:
            raise UserError(f"--preset {args.preset}, accepted: {', '.join(entry.presets)}")
        config = dataclasses.replace(entry.presets[args.preset], vocab_size=args.vocab_size)
        tokenizer = vocabulary(args.vocab_size)
        cell = entry.part("cell")(config, runtime.compute_dtype(settings.dtype))
        initialise(cell, seed=0)
        model = from_cell(cell, config)
    return model, tokenizer, sum(item.nbytes for item in cell.get_parameters())


def prompt_of(length: int, tokenizer: CpmBeeTokenizer) -> dict[str, str]:
    """A record whose prompt takes so many columns, the begin mark of its blank among them."""
    record = {"input": "", "<ans>": ""}
    missing = length - 1 - len(prepare(record, tokenizer))
    if missing < 0:
        raise UserError(f"--prompt {length}, expected at least {length - missing}")
    record["input"] = "!" * missing
    assert len(prepare(record, tokenizer)) == length - 1
    return record


def _measure(
    model: Any, tokenizer: CpmBeeTokenizer, shape: tuple[int, int, int, int], runs: int
) -> Result:
    from mindplm.generate import write

    batch, beams, prompt, new = shape
    prompts = [prompt_of(prompt, tokenizer)] * batch

    def writing(count: int) -> Any:
        config = GenerateConfig(
            max_new_tokens=count, min_new_tokens=count, beams=beams, buckets=(prompt,)
        )
        return lambda: write(model, tokenizer, prompts, config, batch_size=batch)

    time_s, times = timed(writing(new), runs)
    # One token takes the prompt pass alone; the cache has the same length, so the same graphs.
    first_s, _ = timed(writing(1), runs)
    return {
        "batch": batch,
        "beams": beams,
        "prompt": prompt,
        "new": new,
        "tokens/s": batch * new / time_s,
        "decode tokens/s": batch * (new - 1) / max(time_s - first_s, 1e-9) if new > 1 else 0.0,
        "prompt ms": 1e3 * first_s,
        "seconds": time_s,
        "spread": spread(times),
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
