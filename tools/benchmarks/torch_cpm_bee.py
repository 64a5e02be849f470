"""A compact CPM-Bee in PyTorch, to time its training step; run by `bench.py train --torch`.

Two forms of the same mathematics. `reference` computes as the original program does: a bias and a
mask for every pair of every row, and scores of all classes at every position. `good` projects the
predicted positions only and leaves the attention to scaled_dot_product_attention.

    python torch_cpm_bee.py '{"form": "good", "sizes": {...}, "rows": 4, ...}'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import train_inputs
from torch.nn import functional as fn

KEEP, SUB_SCALE, MASKED = 1 / 1.05, 16.0, -1e9


class Bee(torch.nn.Module):
    """The network; parameters have our names, dots as underscores."""

    def __init__(self, sizes: dict[str, Any], buckets: list[int]):
        super().__init__()
        self.sizes = sizes
        for name, (shape, std) in train_inputs.shapes(sizes).items():
            values = torch.from_numpy(train_inputs.weight(name, shape, std))
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(values))
        half = np.arange(0, sizes["hidden_size"], 2) / sizes["hidden_size"]
        self.frequencies = torch.from_numpy((10000.0**-half).astype(np.float32))
        self.buckets = torch.tensor(buckets)

    def of(self, name: str) -> torch.Tensor:
        """A weight by our name without its ending."""
        return getattr(self, name.replace(".", "_") + "_weight")

    def rotated(self, ids: torch.Tensor, subs: torch.Tensor) -> torch.Tensor:
        """Embeddings turned by their sub indices."""
        rows = fn.embedding(ids, self.of("embed")) * self.sizes["hidden_size"] ** -0.5
        angle = (subs * SUB_SCALE)[..., None] * self.frequencies
        low, high = rows.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Root-mean-square norm."""
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.sizes["eps"]) * self.of(name)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Product divided by the root of the input's width."""
        return fn.linear(x, self.of(name)) * x.shape[-1] ** -0.5

    def bias(self, c: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Bias [B, H, S, S] and mask [B, S, S]."""
        sizes, (batch, num) = self.sizes, c["ids"].shape
        same = c["spans"][:, :, None] == c["spans"][:, None, :]
        place = (c["segment_ids"] * c["num_segments"] + c["rel_offset"])[:, :, None]
        place = torch.where(same, place + c["segment_ids"][:, None, :], 0).reshape(batch, -1)
        relation = c["segment_rel"].gather(1, place).reshape(batch, num, num)
        order = torch.arange(num)
        limit = sizes["max_distance"]
        distance = (order[None, :] - order[:, None]).clamp(-limit, limit)
        bucket = self.buckets[distance + limit]
        first = sizes["num_distance_buckets"] - 1
        index = torch.where(relation == 0, bucket, relation + first)
        index = torch.where(same, index, first + 1)
        bias = fn.embedding(index, self.of("position_bias")).permute(0, 3, 1, 2)
        context = c["context"] != 0
        causal = order[None, :] <= order[:, None]
        sees = context[:, None, :] | (~context[:, :, None] & causal)
        return bias, sees & same

    def attend(self, x: torch.Tensor, at: str, bias: Any, mask: Any, good: bool) -> torch.Tensor:
        """The attention of a block."""
        batch, num, _ = x.shape
        width = self.sizes["head_dim"]
        q, k, v = (
            self.linear(x, f"{at}.attn.{name}").view(batch, num, -1, width).transpose(1, 2)
            for name in "qkv"
        )
        if good:
            out = fn.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.transpose(-1, -2) * width**-0.5 + bias
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
            out = scores.softmax(-1).masked_fill(~mask[:, None], 0) @ v
        return self.linear(out.transpose(1, 2).reshape(batch, num, -1), f"{at}.attn.o")

    def forward(self, c: dict[str, torch.Tensor], good: bool) -> torch.Tensor:
        """Mean loss of the targets."""
        x = self.rotated(c["ids"], c["subs"])
        bias, mask = self.bias(c)
        if good:
            bias = bias.masked_fill(~mask[:, None], MASKED).contiguous()
        for layer in range(self.sizes["num_layers"]):
            at = f"blocks.{layer}"
            seen = self.norm(x, f"{at}.attn_norm")
            x = (x + self.attend(seen, at, bias, mask, good)) * KEEP
            seen = self.norm(x, f"{at}.ffn_norm")
            inner = fn.gelu(self.linear(seen, f"{at}.ffn.gate"))
            inner = inner * self.linear(seen, f"{at}.ffn.up")
            x = (x + self.linear(inner, f"{at}.ffn.down")) * KEEP
        x = self.norm(x, "final_norm")
        labels = c["targets"]
        if good:
            x = x.gather(1, c["target_pos"][:, :, None].expand(-1, -1, x.shape[-1]))
        else:
            everywhere = torch.full(c["ids"].shape, train_inputs.IGNORE)
            labels = everywhere.scatter(1, c["target_pos"], labels)
        ext = x @ self.rotated(c["ext_ids"], c["ext_sub"]).T
        scores = torch.cat((self.linear(x, "embed"), ext), -1)
        return fn.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), ignore_index=train_inputs.IGNORE
        )


def main(text: str) -> None:
    """Times the step that a JSON text describes; prints JSON: first loss, seconds of each step."""
    job = json.loads(text)
    torch.manual_seed(0)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    made = train_inputs.columns(job["sizes"], job["rows"], job["seq_len"], job["targets"])
    columns = {name: torch.from_numpy(array).long() for name, array in made.items()}
    model = Bee(job["sizes"], job["buckets"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    losses, seconds = [], []
    for _ in range(job["runs"] + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = model(columns, job["form"] == "good")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"loss": losses[0], "seconds": seconds[1:], "torch": torch.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
