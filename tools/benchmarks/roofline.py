"""Roofline: the fp32 rate of large matrix products and the bandwidth of reading memory.

With --products also what the products of a step of writing take, for so many rows: no step can be
faster, and each reads all weights once.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import numpy as np

from benchmarks.generate import preset, read_bandwidth
from benchmarks.machine import Result, spread, timed
from mindplm import runtime
from mindplm.config import RuntimeConfig
from mindplm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this verb."""
    parser.add_argument("--size", type=int, default=2048, help="of the matrices (default 2048)")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument(
        "--products", type=int, nargs="+", default=[], metavar="ROWS", help="of a step of writing"
    )
    parser.add_argument("--preset", default="small", help="of cpm_bee (default small: 12 x 768)")
    parser.add_argument("--vocab-size", type=int, default=86583, help="entries (default 86583)")


def run(args: argparse.Namespace) -> list[Result]:
    """One row, and one for each number of rows."""
    if min(args.products, default=1) < 1:
        raise UserError(f"--products {min(args.products)}, expected at least 1")
    runtime.setup(RuntimeConfig(threads=args.threads))
    rate = matrix_rate(args.size, args.runs)
    results: list[Result] = [{"size": args.size, "GFLOP/s": rate / 1e9}]
    results[0]["read GB/s"] = read_bandwidth() / 1e9
    return results + (_products(args) if args.products else [])


def matrix_rate(size: int = 2048, runs: int = 5) -> float:
    """fp32 operations a second of MindSpore's product of two square matrices, the median."""
    import mindspore as ms

    one: Any = ms.Tensor(np.ones((size, size), np.float32))
    product = ms.jit(ms.ops.matmul)
    time.sleep(0.1)  # threads of what ran before come to rest
    seconds, _ = timed(lambda: product(one, one).asnumpy(), runs)
    return 2.0 * size**3 / seconds


def _called(network: Any, inputs: list[Any]) -> np.ndarray:
    return network(*inputs).asnumpy()


def _products(args: argparse.Namespace) -> list[Result]:
    """The products of one step and nothing else: all projections, and the scores of all classes."""
    from mindspore import Tensor, float32, nn, ops

    from mindplm import families
    from mindplm.nn.init import initialise
    from mindplm.nn.layers import turn_products
    from mindplm.nn.lora import linears

    config = preset(args)
    model = families.family("cpm_bee").part("cell")(config, float32)
    initialise(model, seed=0)
    turn_products(model)

    class Products(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.parts = nn.CellList(list(linears(model).values()))
            self.matmul, self.embed = model.matmul, model.embed

        def construct(self, *inputs):
            found: tuple[Tensor, ...] = (self.matmul(inputs[0], self.embed.weight)[:, :1],)
            for part in self.parts:
                for x_nd in inputs:
                    if x_nd.shape[1] == part.num_in:
                        found += (part(x_nd)[:, :1],)
            return ops.concat(found, 1)

    products, results = Products(), []
    num_bytes = sum(part.weight.nbytes for part in (*products.parts, model.embed))
    widths = dict.fromkeys([config.hidden_size, *(part.num_in for part in products.parts)])
    for rows in args.products:
        inputs = [Tensor(np.ones((rows, width), np.float32)) for width in widths]
        seconds, times = timed(functools.partial(_called, products, inputs), args.runs)
        read = read_bandwidth()
        found: Result = {"rows": rows, "ms": 1e3 * seconds, "fastest ms": 1e3 * min(times)}
        found |= {"weights GB": num_bytes / 1e9, "read GB/s": read / 1e9}
        found |= {"of bound": num_bytes / seconds / read, "seconds": times}
        results.append(found | {"spread": spread(times)})
    return results
