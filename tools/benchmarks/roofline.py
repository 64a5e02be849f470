"""Roofline: the fp32 rate of large matrix products and the bandwidth of reading memory."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.generate import read_bandwidth
from benchmarks.machine import Result, timed
from mindplm import runtime
from mindplm.config import RuntimeConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--size", type=int, default=2048, help="of the matrices (default 2048)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")


def run(args: argparse.Namespace) -> list[Result]:
    """One row."""
    runtime.setup(RuntimeConfig(threads=args.threads))
    rate = matrix_rate(args.size, args.runs)
    return [{"size": args.size, "GFLOP/s": rate / 1e9, "read GB/s": read_bandwidth() / 1e9}]


def matrix_rate(size: int = 2048, runs: int = 5) -> float:
    """fp32 operations a second of MindSpore's product of two square matrices, the median."""
    import mindspore as ms

    one: Any = ms.Tensor(np.ones((size, size), np.float32))
    product = ms.jit(ms.ops.matmul)
    time.sleep(0.1)  # threads of what ran before come to rest
    seconds, _ = timed(lambda: product(one, one).asnumpy(), runs)
    return 2.0 * size**3 / seconds
