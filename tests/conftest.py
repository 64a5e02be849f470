"""Where the golden files are, and what every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _golden() -> Path:
    named = os.environ.get("MINDPLM_GOLDEN")
    if named:
        return Path(named)
    shared = ROOT.parent / "shared" / "golden"
    return shared if shared.is_dir() else ROOT / "tests" / "golden"


GOLDEN = _golden()
_data = GOLDEN.parent / "data"
SHARED_DATA: Path | None = _data if _data.is_dir() else None


SELDOM = pytest.mark.skipif(
    not os.environ.get("MINDPLM_ALL_FAMILIES"), reason="MINDPLM_ALL_FAMILIES=1 runs all families"
)


def golden_dirs(family: str, pattern: str) -> list[Path]:
    """Lists the folders (or files) of one family's golden set that match a glob pattern."""
    return sorted((GOLDEN / family).glob(pattern))
