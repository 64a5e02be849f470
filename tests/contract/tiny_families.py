"""One tiny model with batches for every family: two layers, width 32.

A family joins the contract by one maker in MAKERS.
"""

from __future__ import annotations

from typing import Callable

from tiny_bee import cpm_bee
from tiny_bert import bert
from tiny_causal import cpm1, gpt1
from tiny_cpt import cpt
from tiny_family import Tiny
from tiny_t5 import t5

MAKERS: dict[str, Callable[[], Tiny]] = {
    "cpm_bee": cpm_bee,
    "bert": bert,
    "cpt": cpt,
    "cpm1": cpm1,
    "gpt1": gpt1,
    "t5": t5,
}
