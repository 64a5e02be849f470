"""CPM-Bee writing in PyTorch, to time it; run by `bench.py generate --torch`, job on stdin.

Two forms of the same mathematics. `reference` computes as the original program does: one record
after the other, the prompt once for every beam with scores at all its positions, bias and mask of
every pair anew for each call, caches that grow by concatenation and are reordered whole. `good`
reads the prompts of a batch together and once, keeps caches of fixed length of which only the
written part is reordered, joins products of the same input and leaves the attention to
scaled_dot_product_attention.

Nothing ends before the last token, so a beam search is its running beams alone.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

import torch
from torch.nn import functional as fn
from torch_cpm_bee import KEEP, MASKED, Bee

Columns = dict[str, torch.Tensor]
FORBIDDEN, LATER_BEAM = -10000.0, -1e9
KEYS = ("positions", "context", "sample_ids", "segment_ids", "num_segments")


class Task(NamedTuple):
    """What is written for a batch of prompts."""

    beams: int
    new: int
    banned: list[int]


def geometry(bee: Bee, c: Columns, keys: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias [B, H, T, S] and mask [B, T, S] of the columns over the keys."""
    sizes, (batch, num), length = bee.sizes, c["ids"].shape, keys["positions"].shape[1]
    query_sample, key_sample = c["sample_ids"][:, :, None], keys["sample_ids"][:, None, :]
    same = query_sample == key_sample
    place = (c["segment_ids"] * c["num_segments"] + c["rel_offset"])[:, :, None]
    place = torch.where(same, place + keys["segment_ids"][:, None, :], 0).reshape(batch, -1)
    relation = c["segment_rel"].gather(1, place).reshape(batch, num, length)
    limit = sizes["max_distance"]
    distance = keys["positions"][:, None, :] - c["positions"][:, :, None]
    bucket = bee.buckets[distance.clamp(-limit, limit) + limit]
    first = sizes["num_distance_buckets"] - 1
    index = torch.where(relation == 0, bucket, relation + first)
    index = torch.where(same, index, first + 1)
    bias = fn.embedding(index, bee.of("position_bias")).permute(0, 3, 1, 2)
    sees = (keys["context"] != 0)[:, None, :] | ((c["context"] == 0)[:, :, None] & (distance <= 0))
    mask = sees & (same | (query_sample == 0)) & (keys["num_segments"] != 0)[:, None, :]
    return bias, mask


def choose(
    logits: torch.Tensor, totals: torch.Tensor, task: Task
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sums of the new beams [B, beams], rows they continue, their classes) from logits [R, V]."""
    logits[:, task.banned] = FORBIDDEN
    scores = logits.log_softmax(-1).view(len(totals), task.beams, -1) + totals[:, :, None]
    classes = scores.shape[-1]
    best, places = scores.flatten(1).topk(2 * task.beams)
    best, places = best[:, : task.beams], places[:, : task.beams]
    first = torch.arange(len(totals))[:, None] * task.beams
    return best, (first + places // classes).flatten(), (places % classes).flatten()


def begin(num: int, task: Task) -> tuple[torch.Tensor, list[list[int]]]:
    """Sums of the beams at the start, of which the first alone counts, and what they wrote."""
    totals = torch.full((num, task.beams), LATER_BEAM)
    totals[:, 0] = 0
    return totals, [[] for _ in range(num * task.beams)]


def grown(written: list[list[int]], rows: torch.Tensor, classes: torch.Tensor) -> list[list[int]]:
    """What the beams have written, one class more."""
    return [[*written[row], token] for row, token in zip(rows.tolist(), classes.tolist())]


# --- as the original ------------------------------------------------------------------------------


class Past(NamedTuple):
    """What was read: the columns of the keys, and k, v of each layer."""

    keys: Columns
    caches: list[tuple[torch.Tensor, torch.Tensor]]

    def of(self, rows: torch.Tensor) -> Past:
        """In another order."""
        caches = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.caches]
        return Past({name: x.index_select(0, rows) for name, x in self.keys.items()}, caches)


def read(bee: Bee, c: Columns, past: Past | None) -> tuple[torch.Tensor, Past]:
    """Scores at every position of the columns, and what was read so far."""
    batch, num = c["ids"].shape
    width = bee.sizes["head_dim"]
    keys = {name: torch.cat((past.keys[name], c[name]), 1) if past else c[name] for name in KEYS}
    bias, mask = geometry(bee, c, keys)
    x, caches = bee.rotated(c["ids"], c["subs"]), []
    for layer in range(bee.sizes["num_layers"]):
        at = f"blocks.{layer}"
        h = bee.norm(x, f"{at}.attn_norm")
        q, k, v = (
            bee.linear(h, f"{at}.attn.{name}").view(batch, num, -1, width).transpose(1, 2)
            for name in "qkv"
        )
        if past:
            k, v = (torch.cat(pair, 2) for pair in zip(past.caches[layer], (k, v)))
        caches.append((k, v))
        scores = q @ k.transpose(-1, -2) * width**-0.5 + bias
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
        out = scores.softmax(-1).masked_fill(~mask[:, None], 0) @ v
        out = bee.linear(out.transpose(1, 2).reshape(batch, num, -1), f"{at}.attn.o")
        x = (x + out) * KEEP
        h = bee.norm(x, f"{at}.ffn_norm")
        inner = fn.gelu(bee.linear(h, f"{at}.ffn.gate")) * bee.linear(h, f"{at}.ffn.up")
        x = (x + bee.linear(inner, f"{at}.ffn.down")) * KEEP
    return bee.linear(bee.norm(x, "final_norm"), "embed"), Past(keys, caches)


def write_as_original(bee: Bee, c: Columns, task: Task) -> list[list[int]]:
    """The classes of each prompt, one prompt after the other."""
    found = []
    for row in range(len(c["ids"])):
        real = c["num_segments"][row] != 0
        one = {
            name: (x[row] if name == "segment_rel" else x[row, real]).repeat(task.beams, 1)
            for name, x in c.items()
        }
        parts = {name: x if name == "segment_rel" else x[:, :-1] for name, x in one.items()}
        last = {name: x if name == "segment_rel" else x[:, -1:] for name, x in one.items()}
        last["context"] = torch.ones_like(last["context"])
        _, past = read(bee, parts, None)
        totals, written = begin(1, task)
        for number in range(task.new):
            logits, past = read(bee, last, past)
            totals, rows, classes = choose(logits[:, -1], totals, task)
            written = grown(written, rows, classes)
            if number + 1 < task.new:
                past = past.of(rows)
                last |= {"ids": classes[:, None], "positions": last["positions"] + 1}
        found.append(written[0])
    return found


# --- as one would write it ------------------------------------------------------------------------


class Good:
    """The network with joined products, their scale in the weights."""

    def __init__(self, bee: Bee):
        self.bee, self.layers = bee, []
        scale = bee.sizes["hidden_size"] ** -0.5
        for layer in range(bee.sizes["num_layers"]):
            at = f"blocks.{layer}"
            qkv = torch.cat([bee.of(f"{at}.attn.{name}") for name in "qkv"]) * scale
            gate_up = torch.cat([bee.of(f"{at}.ffn.{name}") for name in ("gate", "up")]) * scale
            self.layers.append((at, qkv, gate_up))

    def run(self, c: Columns, bias: torch.Tensor, caches: Any, slots: slice) -> torch.Tensor:
        """Scores after the last column [B, V]; enters keys and values at their slots."""
        bee, (batch, num) = self.bee, c["ids"].shape
        width = bee.sizes["head_dim"]
        x = bee.rotated(c["ids"], c["subs"])
        for (at, qkv, gate_up), (keys, values) in zip(self.layers, caches):
            joined = fn.linear(bee.norm(x, f"{at}.attn_norm"), qkv).view(batch, num, 3, -1, width)
            q, k, v = joined.permute(2, 0, 3, 1, 4)
            keys[:, :, slots], values[:, :, slots] = k, v
            seen = keys[:, :, : slots.stop], values[:, :, : slots.stop]
            out = fn.scaled_dot_product_attention(q, *seen, attn_mask=bias)
            out = out.transpose(1, 2).reshape(batch, num, -1)
            x = (x + bee.linear(out, f"{at}.attn.o")) * KEEP
            gate, up = fn.linear(bee.norm(x, f"{at}.ffn_norm"), gate_up).chunk(2, -1)
            x = (x + bee.linear(fn.gelu(gate) * up, f"{at}.ffn.down")) * KEEP
        return bee.linear(bee.norm(x[:, -1], "final_norm"), "embed")

    def bias(self, c: Columns, keys: Columns) -> torch.Tensor:
        """Bias with the mask in it."""
        bias, mask = geometry(self.bee, c, keys)
        return bias.masked_fill(~mask[:, None], MASKED).contiguous()

    def room(self, num: int, length: int) -> list[list[torch.Tensor]]:
        """Empty caches of each layer."""
        sizes = self.bee.sizes
        shape = (num, sizes["num_heads"], length, sizes["head_dim"])
        return [[torch.zeros(shape) for _ in "kv"] for _ in self.layers]

    def write(self, c: Columns, task: Task) -> list[list[int]]:
        """The classes of each prompt."""
        num, prompt = c["ids"].shape
        length = prompt + task.new
        first = self.room(num, prompt if task.beams > 1 else length)
        logits = self.run(c, self.bias(c, c), first, slice(0, prompt))
        source = torch.arange(num).repeat_interleave(task.beams)
        caches = first
        if task.beams > 1:
            caches, logits = self.room(len(source), length), logits[source]
            for old, new in zip(first, caches):
                for here, there in zip(old, new):
                    there[:, :, :prompt] = here[source]
        keys = {name: fn.pad(c[name][source], (0, task.new)) for name in KEYS}
        last = {name: x[source] if name == "segment_rel" else x[source, -1:]
                for name, x in c.items()}  # fmt: skip
        keys["context"][:, prompt - 1] = 1
        last["context"] = torch.ones_like(last["context"])
        totals, written = begin(num, task)
        unmoved = torch.arange(len(source))
        for slot in range(prompt, length):
            totals, rows, classes = choose(logits, totals, task)
            written = grown(written, rows, classes)
            if slot + 1 == length:
                break
            if not torch.equal(rows, unmoved):
                for pair in caches:
                    for x in pair:
                        x[:, :, prompt:slot] = x[:, :, prompt:slot].index_select(0, rows)
            last |= {"ids": classes[:, None], "positions": last["positions"] + 1}
            for name in KEYS:
                keys[name][:, slot : slot + 1] = last[name]
            seen = {name: x[:, : slot + 1] for name, x in keys.items()}
            logits = self.run(last, self.bias(last, seen), caches, slice(slot, slot + 1))
        return written[:: task.beams]


def main(job: dict[str, Any]) -> None:
    """Times the writing that a job describes; prints JSON: seconds and classes of each shape."""
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    bee = Bee(job["sizes"], job["buckets"])
    good = Good(bee) if job["form"] == "good" else None
    results = []
    for shape in job["shapes"]:
        columns = {name: torch.tensor(values) for name, values in shape["columns"].items()}

        def written(new: int, c: Columns = columns, beams: int = shape["beams"]) -> list[list[int]]:
            task = Task(beams, new, job["banned"])
            return good.write(c, task) if good else write_as_original(bee, c, task)

        written(2)
        seconds, classes = [], []
        for _ in range(job["runs"]):
            start = time.perf_counter()
            classes = written(job["new"])
            seconds.append(time.perf_counter() - start)
        results.append({"seconds": seconds, "classes": classes})
    print(json.dumps({"results": results, "torch": torch.__version__}))


if __name__ == "__main__":
    with torch.inference_mode():
        main(json.load(sys.stdin))
