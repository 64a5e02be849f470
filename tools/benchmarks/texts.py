"""Synthetic corpora of any size: sentences of the embedded texts in new order, as JSON lines."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from mindplm.config import SourceConfig
from mindplm.data.sources import Document, SourceReader

CORPORA = ("sanguo", "classics", "english")
_SENTENCE = re.compile(r"[^。！？.!?\n]+[。！？.!?\n]*\s*")
_LENGTHS = (2, 3, 5, 8, 12, 20, 40, 90)
"""Sentences of a document."""


def sentences() -> dict[str, list[str]]:
    """Sentences of the embedded texts by corpus."""
    found: dict[str, list[str]] = {}
    for name in CORPORA:
        reader = SourceReader(SourceConfig(path=f"embedded:{name}"))
        documents = [item for item in reader if isinstance(item, Document)]
        text = "\n".join(document.fields["text"] for document in documents)
        found[name] = [s for s in _SENTENCE.findall(text) if s.strip()]
    return found


def write(path: Path, num_bytes: int, seed: int = 0) -> int:
    """Writes about so many bytes; two documents of three are Chinese. Returns the documents."""
    rng = random.Random(seed)
    known = sentences()
    written = count = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < num_bytes:
            own = known[CORPORA[count % len(CORPORA)]]
            parts = rng.choices(own, k=rng.choice(_LENGTHS))
            ends = ["\n" if rng.random() < 0.2 else "" for _ in parts]
            text = "".join(part + end for part, end in zip(parts, ends)).strip()
            line = json.dumps({"text": f"{text} {count}", "id": count}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            count += 1
    return count
