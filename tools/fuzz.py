"""Feeds broken and hostile input to the command line and counts what comes of it.

    python tools/fuzz.py records --count 10000
    python tools/fuzz.py checkpoints --count 1000

Every case must end with status 0 or 2 and no traceback, nothing may be executed, and no file may be
touched but those of the output. A case is made from the seed and its number alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fuzzing import checkpoints, records

VERBS = {"records": records.run, "checkpoints": checkpoints.run}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=list(VERBS))
    parser.add_argument("--count", type=int, default=1000, help="cases (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error(f"--count {args.count}, expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        report = VERBS[args.what](Path(folder), args.count, args.seed)
    print(json.dumps(report, indent=1))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
