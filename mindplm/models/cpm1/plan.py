"""How CPM-1 is cut over devices."""

from __future__ import annotations

from mindplm.models.plans import causal

PLAN = causal(final_norm=True, extended=False)
