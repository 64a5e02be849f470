"""Samples poems from a checkpoint and counts those that keep the form of the embedded poems.

    python tools/poems.py runs/cpm_bee_tiny --count 64 --show 4

A poem is well-formed if it has 4 or 8 lines that all have 5 or all have 7 characters. A line of a
poem is what stands between two punctuation marks; two of them make a row of text.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence

import mindplm
from mindplm.errors import UserError

_BREAK = re.compile(r"[，。？！；：、\s]+")
# Private and rare characters occur in old poems; the disc stands for one that was lost.
_LINE = re.compile(
    "[\u25cf\u3007\u3400-\u4dbf\u4e00-\u9fff\ue000-\uf8ff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def form(text: str) -> str | None:
    """The form of a well-formed poem, such as "5x8" for 8 lines of 5 characters; otherwise None."""
    lines = [line for line in _BREAK.split(text) if line]
    lengths = {len(line) for line in lines}
    if len(lines) not in (4, 8) or lengths not in ({5}, {7}):
        return None
    return f"{lengths.pop()}x{len(lines)}" if all(map(_LINE.fullmatch, lines)) else None


def sample(folder: str, count: int, temperature: float, seed: int) -> list[str]:
    """Poems that a checkpoint writes from nothing; one that did not come to its end is cut."""
    model, tokenizer = mindplm.load(folder)
    records = mindplm.generate(
        model,
        tokenizer,
        [{"input": "", "<ans>": ""}] * count,
        temperature=temperature,
        max_new_tokens=96,
        seed=seed,
        batch_size=16,
    )
    return [record["<ans>"] or "" for record in records]


def report(poems: Sequence[str], temperature: float) -> dict[str, object]:
    """The count of well-formed poems, by form too."""
    forms = [form(poem) for poem in poems]
    counts = Counter(name for name in forms if name)
    return {
        "poems": len(poems),
        "well_formed": sum(counts.values()),
        "forms": dict(sorted(counts.items())),
        "different": len(set(poems)),
        "temperature": temperature,
        "samples": [{"form": name, "text": poem} for name, poem in zip(forms, poems)],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", help="a checkpoint, or a run folder for its newest one")
    parser.add_argument("--count", type=int, default=64, help="poems (default 64)")
    parser.add_argument("--show", type=int, default=4, help="poems that are printed (default 4)")
    parser.add_argument("--temperature", type=float, default=0.7, help="default 0.7")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all poems")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error(f"--count {args.count}, expected at least 1")
    try:
        poems = sample(args.folder, args.count, args.temperature, args.seed)
    except (UserError, OSError) as error:
        print(f"poems: error: {error}", file=sys.stderr)
        return 2
    found = report(poems, args.temperature)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for poem in poems[: args.show]:
        print(f"{poem}\n")
    print(
        f"{found['well_formed']} of {args.count} poems are well-formed "
        "(4 or 8 lines, all of 5 or all of 7 characters)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
