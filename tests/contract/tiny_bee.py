"""A tiny CPM-Bee for the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor
from tiny_family import Columns, Tiny
from tiny_run import VERSES

from mindplm.config import GenerateConfig
from mindplm.data.cpm_bee import to_arrays
from mindplm.data.instances import make_instance
from mindplm.data.packing import Packer, Row, RowShape, collate, merge_pairs, row_pairs
from mindplm.generate import write
from mindplm.generate.model import Model, from_cell
from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.models.cpm_bee.config import CpmBeeConfig
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer
from mindplm.tokenizers.vocab import build_vocab

SHAPE = RowShape(seq_len=72, max_rel=400, max_ext=8, max_targets=40)


def bee_rows(tokenizer: CpmBeeTokenizer, count: int) -> list[Row]:
    """Packed rows of nested records, numbered blanks and unknown characters among them."""
    packer = Packer(count, SHAPE)
    rows: list[Row] = []
    for i in range(4 * count):
        verse = VERSES[i % len(VERSES)][:14]
        record: dict[str, Any] = {"input": verse[:5], "<ans>": verse[5:]}
        if i % 4 == 1:
            blanks = {"<mask_0>": verse[1], "<mask_1>": verse[3]}
            record = {"input": f"<mask_0>{verse[2]}<mask_1>", "<ans>": blanks}
        elif i % 4 == 2:
            record = {"input": {"title": verse[:2], "text": "é" + verse[2:6]}, "<ans>": "é月"}
        rows += packer.add(make_instance(to_arrays(record, tokenizer)))
    return [*rows, *packer.flush()][:count]


class Dictated:
    """Hands the engine's calls on, keeps the logits that come back and lets given classes win."""

    def __init__(self, network: Any, classes: list[int]):
        self.network = network
        self.logits: list[np.ndarray] = []
        self._classes = list(classes)

    def put(self, array: np.ndarray) -> Any:
        return self.network.put(array)

    def start(self, *args: Any) -> Any:
        return self._changed(*self.network.start(*args))

    def step(self, *args: Any) -> Any:
        return self._changed(*self.network.step(*args))

    def _changed(self, logits: np.ndarray, caches: Any) -> Any:
        self.logits.append(logits[0].copy())
        logits = np.zeros_like(logits)
        logits[:, self._classes.pop(0)] = 1e9
        return logits, caches


def bee_cached_and_full(model: CpmBee, tokenizer: CpmBeeTokenizer) -> tuple[Any, Any]:
    """The logits of a row with two answers, and those while the same answers are written."""
    answers = {"<mask_0>": "ü明", "<mask_1>": "é光月"}
    record = {"input": "<mask_0>é前<mask_1>ü月", "prompt": "续写", "<ans>": answers}
    packer = Packer(1, SHAPE)
    packer.add(make_instance(to_arrays(record, tokenizer)))
    (row,) = packer.flush()
    columns = collate([row], num_rows=1, shape=SHAPE, marks=tokenizer)
    tensors = {name: Tensor(array) for name, array in columns.items()}
    hidden = model(*list(tensors.values())[:10])[0]
    full = model.project(hidden, tensors["ext_ids"], tensors["ext_sub"], tensors["num_ext"])
    predicted = np.flatnonzero(row.context == 0)
    num = tokenizer.vocab_size + int(columns["num_ext"][0])
    targets = columns["targets"][0][: len(predicted)]
    cached = Dictated(from_cell(model, model.config).network, targets.tolist())
    config = GenerateConfig(max_new_tokens=20, buckets=(64,))
    prompt = {**record, "<ans>": dict.fromkeys(answers, "")}
    written = write(Model("cpm_bee", model.config, cached), tokenizer, [prompt], config)
    assert written[0]["<ans>"] == answers
    return np.stack(cached.logits)[:, :num], full.asnumpy()[predicted][:, :num]


def cpm_bee() -> Tiny:
    lines = build_vocab(VERSES * 3, 300, min_char_count=1, min_word_count=3)
    tokenizer = CpmBeeTokenizer(lines)
    config = CpmBeeConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_heads=2,
        head_dim=16,
        ffn_size=48,
        num_layers=2,
        num_distance_buckets=16,
        num_segment_buckets=64,
        max_distance=64,
    )
    rows = bee_rows(tokenizer, 8)
    table = merge_pairs(row_pairs(row.ids, row.subs) for row in rows)

    def columns(empty_rows: int = 0, **sizes: int) -> Columns:
        shape = SHAPE._replace(**{n: getattr(SHAPE, n) + more for n, more in sizes.items()})
        return collate(rows, num_rows=8 + empty_rows, shape=shape, marks=tokenizer, ext=table)

    def prompts(model: Model, texts: list[str], most: int, buckets: tuple[int, ...]) -> Any:
        config = GenerateConfig(max_new_tokens=most, buckets=buckets)
        return write(model, tokenizer, texts, config, batch_size=2)

    return Tiny(
        name="cpm_bee",
        config=config,
        classes=tokenizer.vocab_size + len(table[0]),
        flavours=("openbmb", "hf"),
        columns=columns,
        bigger={"seq_len": 24, "max_rel": 77, "max_ext": 5, "max_targets": 9, "empty_rows": 3},
        cached_and_full=lambda model: bee_cached_and_full(model, tokenizer),
        prompts=prompts,
        files=tokenizer.files(),
    )
