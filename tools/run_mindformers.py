"""Trains CPM-Bee with MindFormers from a MindFormers YAML, on Ascend, GPU or CPU.

    python tools/run_mindformers.py -c configs/cpm_bee/mindformers/tiny.yaml [key=value ...]

Needs `pip install "mindplm[mindformers]"`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mindplm import runtime
from mindplm.errors import UserError
from mindplm.integrations import mindformers_run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("-c", "--config", required=True, help="a MindFormers YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys laid over it")
    args = parser.parse_args(argv)
    runtime.setup_log()
    try:
        folder = mindformers_run.train(args.config, args.overrides)
    except (UserError, OSError) as error:
        print(f"run_mindformers: error: {error}", file=sys.stderr)
        return 2
    print(f"checkpoint: {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
