"""Converts a published checkpoint into ours, or back; the same as `mindplm convert`.

python tools/convert_weights.py downloads/cpm-bee-1b --out checkpoints/bee-1b --verify
"""

from __future__ import annotations

import sys

from mindplm import cli

if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
