"""Generation against the golden runs: prompts, traces of the beam search, written records."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, golden_dirs
from mindspore import Tensor
from reference_cpm_bee import Reference, ReferenceNetwork, read_safetensors

from mindplm.config import RuntimeConfig
from mindplm.data import prompts as prompting
from mindplm.errors import DataError
from mindplm.generate import search
from mindplm.generate.bee_layout import BeeLayout
from mindplm.generate.compiled import CompiledNetwork
from mindplm.generate.engine import Engine, Network
from mindplm.generate.model import from_cell
from mindplm.generate.sampling import Sampler
from mindplm.generate.search import BeamSearch
from mindplm.models.cpm_bee.cell import CpmBee
from mindplm.models.cpm_bee.config import CpmBeeConfig, from_openbmb, parameter_shapes, rules
from mindplm.nn.values import load_model
from mindplm.runtime import setup
from mindplm.tokenizers.cpm_bee import CpmBeeTokenizer
from mindplm.weights.rules import to_ours

SETS = [p for p in golden_dirs("cpm_bee", "generation*") if p.is_dir()]
BUCKET = 128

INPUT_NAMES = {
    **{"ids": "input", "subs": "input_sub", "positions": "input_pos", "context": "context"},
    **{"sample_ids": "sample_idx", "segment_ids": "segment", "num_segments": "num_segments"},
    "rel_offset": "segment_rel_offset",
}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def runs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The golden runs; none in the small set, which has no vocabulary."""
    if not (folder / "generation.json").is_file():
        return {}
    return {run["tag"]: run for run in read_json(folder / "generation.json")["runs"]}


CASES = [pytest.param(f, tag, id=f"{f.name}-{tag}") for f in SETS for tag in runs_of(f)]


@cache
def tokenizer() -> CpmBeeTokenizer:
    path = GOLDEN / "cpm_bee" / "vocab_small.txt"
    if not path.is_file():
        pytest.skip("the small vocabulary of the golden runs is not here")
    return CpmBeeTokenizer.from_file(path)


@cache
def reference(folder: Path) -> ReferenceNetwork:
    weights = read_safetensors(folder / "weights.safetensors")
    return ReferenceNetwork(Reference(read_json(folder / "config.json"), weights))


class TwoShapes:
    """Fills calls up to 1 prompt and 5 rows, or 4 prompts and 16 rows, to compile four graphs.

    Other shapes than these are compiled in the tests of single functions. Copies stand behind the
    rows of each prompt, so that all prompts have as many rows.
    """

    def __init__(self, network: CompiledNetwork):
        self.network = network
        self.prompts, self.rows = 1, 5
        self.places = np.arange(0)

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def fill(self, array: np.ndarray, num: int) -> Tensor:
        return self.network.put(np.concatenate([array, array[:1].repeat(num - len(array), 0)]))

    def spread(self, array: np.ndarray) -> np.ndarray:
        full = array[:1].repeat(self.rows, 0)
        full[self.places] = array
        return full

    def start(self, columns, rows, first, rest):
        num = len(columns[0])
        self.prompts, self.rows = (1, 5) if num == 1 else (4, 16)
        each = self.rows // self.prompts
        self.places = each * rows + np.arange(len(rows)) % (len(rows) // num)
        names = zip(prompting.COLUMNS, columns)
        filled = [
            self.network.put(c) if name in prompting.COLUMNS[-3:] else self.fill(c, self.prompts)
            for name, c in names
        ]
        rows = np.arange(self.rows, dtype=np.int32) // each
        logits, caches = self.network.start(filled, *map(self.network.put, (rows, first, rest)))
        return logits[:num], caches

    def step(self, columns, caches):
        shared = {4, 12, 13, 14}  # slot and extension table
        *columns, parents = columns
        filled = [c if i in shared else self.spread(c) for i, c in enumerate(columns)]
        filled.append(self.spread(self.places[parents].astype(np.int32)))
        logits, caches = self.network.step([*map(self.network.put, filled)], caches)
        return logits[self.places], caches


class Compiled:
    """One network for sets of the same sizes."""

    def __init__(self, config: CpmBeeConfig):
        self.config, self.cell = config, CpmBee(config)
        self.network = from_cell(self.cell, config).network
        self.holds: Path | None = None

    def take(self, folder: Path) -> CompiledNetwork:
        if self.holds != folder:
            theirs = read_safetensors(folder / "weights.safetensors")
            ours = to_ours(rules(self.config), theirs, parameter_shapes(self.config))
            load_model(self.cell, ours, folder.name)
            self.holds = folder
        return self.network


@cache
def compiled(config: CpmBeeConfig) -> Compiled:
    return Compiled(config)


def network(kind: str, folder: Path) -> Network:
    if kind == "reference":
        return reference(folder)
    setup(RuntimeConfig(device="cpu"))
    whole = compiled(from_openbmb(read_json(folder / "config.json"))).take(folder)
    return TwoShapes(whole) if kind == "filled" else whole


BOTH = pytest.mark.parametrize("kind", ["reference", "filled"])


class Traced(BeamSearch):
    """Keeps the candidates of every step, and for which sentences they matter."""

    def __init__(self, plan, **options):
        super().__init__(plan, **options)
        self.trace: list[tuple[list[bool], np.ndarray, np.ndarray]] = []

    def advance(self, logits):
        done = list(self.done)
        parents = super().advance(logits)
        self.trace.append((done, self.candidate_scores, self.candidates))
        return parents


def options_of(run: dict[str, Any]) -> dict[str, Any]:
    """The run's settings in our terms: two tokens more than its max_length can be written."""
    return {
        "max_new_tokens": run["max_length"] + 2,
        "repetition_penalty": run["repetition_penalty"],
        "repetition_window": run["repetition_window"] or 0,
    }


def write(run, engine, make_policy, rows) -> tuple[list, list]:
    """(records with answers, pairs of class and blank) of a golden run."""
    ready = [prompting.prepare(record, tokenizer()) for record in run["data"]]
    before = json.dumps(run["data"])
    written = dict(
        engine.run(ready, make_policy, rows_per_prompt=rows, max_new_tokens=run["max_length"] + 2)
    )
    records, best = [], []
    for i, (record, prompt) in enumerate(zip(run["data"], ready)):
        texts = prompting.answers(written[i].pairs, prompt, written[i].table, tokenizer())
        records.append(prompting.write_back(record, prompt, texts))
        best.append([list(pair) for pair in written[i].pairs])
    assert json.dumps(run["data"]) == before
    return records, best


@BOTH
@pytest.mark.parametrize(("folder", "tag"), CASES)
def test_beam_search_equals_the_golden_run(kind, folder, tag, monkeypatch) -> None:
    run = runs_of(folder)[tag]
    made: list[Traced] = []
    added: list[list[dict[str, Any]]] = []
    plain_add = search._Hypotheses.add
    order: dict[int, int] = {}

    def add(self, written, total):
        place = order.setdefault(id(self), len(order))
        tokens, link = [], written
        while link is not None:
            tokens.append([link.token, link.number])
            link = link.before
        added.append([place, {"sum": total, "len": written.length, "tokens": tokens[::-1]}])
        plain_add(self, written, total)

    def make(plan, _numbers):
        made.append(
            Traced(
                plan,
                beams=run["beam_size"],
                length_penalty=run["length_penalty"],
                **options_of(run),
            )
        )
        order.update((id(h), i) for i, h in enumerate(made[0]._finished))
        return made[-1]

    monkeypatch.setattr(search._Hypotheses, "add", add)
    engine = Engine(network(kind, folder), BeeLayout(tokenizer()), buckets=[BUCKET])
    records, best = write(run, engine, make, run["beam_size"])
    assert records == run["result"]
    assert best == run["best"]
    assert len(made) == 1
    if run["topk"] is not None:
        check_candidates(made[0].trace, run["topk"])
        check_hypotheses(added, run["hypotheses_added"])


def check_candidates(trace, golden) -> None:
    assert len(trace) == len(golden)
    for (done, scores, candidates), step in zip(trace, golden):
        for i in np.flatnonzero(~np.array(done)):
            assert candidates[i].tolist() == step["index"][i]
            np.testing.assert_allclose(scores[i], step["scores"][i], rtol=1e-5, atol=1e-5)


def check_hypotheses(added, golden) -> None:
    for i, wanted in enumerate(golden):
        mine = [hypothesis for place, hypothesis in added if place == i]
        assert [(h["len"], h["tokens"]) for h in mine] == [(h["len"], h["tokens"]) for h in wanted]
        sums = [h["sum"] for h in wanted]
        np.testing.assert_allclose([h["sum"] for h in mine], sums, rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("folder", "tag"), [c for c in CASES if runs_of(c.values[0])[c.values[1]]["beam_size"] == 1]
)
def test_greedy_choice_equals_one_beam(kind, folder, tag) -> None:
    run = runs_of(folder)[tag]
    engine = Engine(network(kind, folder), BeeLayout(tokenizer()), buckets=[BUCKET])

    def make(plan, _numbers):
        return Sampler(plan, temperature=0, **options_of(run))

    records, best = write(run, engine, make, 1)
    assert records == run["result"]
    assert best == run["best"]


@pytest.mark.parametrize("folder", SETS, ids=lambda f: f.name)
def test_the_batch_a_record_is_in_does_not_matter(folder) -> None:
    """All single runs of one setting at once, in batches of three and several buckets."""
    engine = Engine(reference(folder), BeeLayout(tokenizer()), buckets=[32, 64, 128], batch_size=3)
    runs = [r for tag, r in runs_of(folder).items() if tag.endswith("b3_rp1.2_wNone_lp1.0")]
    together = {**runs[0], "data": [run["data"][0] for run in runs]}

    def make(plan, _numbers):
        return BeamSearch(plan, beams=3, **options_of(together))

    records, _ = write(together, engine, make, 3)
    assert records == [run["result"][0] for run in runs]


def prompt_cases() -> list:
    """(golden inputs, prompts) once for each prompt or batch."""
    cases = {}
    for folder in SETS:
        for tag in runs_of(folder):
            cases.setdefault((folder.name, tag.split("/")[0]), (folder, tag))
    return [pytest.param(*value, id="-".join(key)) for key, value in cases.items()]


@pytest.mark.parametrize(("folder", "tag"), prompt_cases())
def test_prompts_equal_the_golden_inputs(folder, tag) -> None:
    run, name = runs_of(folder)[tag], tag.split("/")[0]
    with np.load(folder / "inputs.npz") as arrays:
        golden = {k.split("/")[1]: arrays[k] for k in arrays.files if k.startswith(name + "/")}
    ready = [prompting.prepare(record, tokenizer()) for record in run["data"]]
    num, width = golden["input"].shape
    num_ext = len(golden["batch_ext_table_ids"])
    batch = prompting.batch(ready, tokenizer(), bucket=width + 4, max_rel=400, max_ext=num_ext + 2)
    for ours, theirs in INPUT_NAMES.items():
        column = batch.columns[ours]
        np.testing.assert_array_equal(column[:, :3], 0)
        wanted = golden[theirs] * (golden["num_segments"] != 0 if ours == "context" else 1)
        np.testing.assert_array_equal(column[:, 3:-1], wanted, err_msg=ours)
    rel = np.zeros((num, 400), np.int32)
    rel[:, : golden["segment_rel"].shape[1]] = golden["segment_rel"]
    np.testing.assert_array_equal(batch.columns["segment_rel"], rel)
    assert batch.num_ext == num_ext
    for ours, theirs in (("ext_ids", "batch_ext_table_ids"), ("ext_sub", "batch_ext_table_sub")):
        np.testing.assert_array_equal(batch.columns[ours][:num_ext], golden[theirs])
    last = {name: batch.columns[name][:, -1].tolist() for name in INPUT_NAMES}
    assert last["ids"] == [tokenizer().bos_id] * num
    assert last["context"] == last["positions"] == last["subs"] == [0] * num
    assert last["segment_ids"] == [p.blanks[0].segment for p in ready]
    assert last["num_segments"] == [p.num_segments for p in ready]
    blanks = [[[b.segment, b.number] for b in p.blanks] for p in ready]
    assert blanks == run["predict_segments"]
    assert [[list(b.path) for b in p.blanks] for p in ready] == run["answer_placeholders"]
    tables = [{str(k): text for k, text in table.items()} for table in batch.tables]
    assert tables == run["ext_table"]
    classes = tokenizer().vocab_size + np.arange(num_ext + 2)
    for table, allowed in zip(batch.tables, batch.allowed_ext):
        assert [c in table for c in classes] == allowed.tolist()


@pytest.mark.parametrize("folder", SETS, ids=lambda f: f.name)
def test_odd_prompts(folder) -> None:
    """What the original refuses with a KeyError is refused with a message; the rest agrees."""
    engine = Engine(reference(folder), BeeLayout(tokenizer()), buckets=[BUCKET])
    for case in read_json(folder / "invalid.json"):
        if case["error"]:
            with pytest.raises(DataError, match="<ans>"):
                prompting.prepare(case["data"], tokenizer())
            continue
        run = {"data": [case["data"]], "max_length": 14}
        records, _ = write(
            run, engine, lambda plan, _: BeamSearch(plan, beams=2, max_new_tokens=16), 2
        )
        assert records == case["result"]


@pytest.mark.parametrize("kind", ["reference", "compiled"])
@pytest.mark.parametrize("folder", SETS, ids=lambda f: f.name)
def test_the_network_equals_the_golden_cache(kind, folder) -> None:
    """Prefill, then four steps; the golden prompts have no begin mark as last column."""
    net = network(kind, folder)
    with np.load(folder / "cache.npz") as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    columns = {ours: golden["in/" + name].astype(np.int32) for ours, name in INPUT_NAMES.items()}
    rel, ext = golden["in/segment_rel"], [np.zeros(2, np.int32)] * 2 + [np.zeros(1, np.int32)]
    real = columns["num_segments"] != 0
    num, width = real.shape
    vocab_size = golden["prefill_logits"].shape[-1]
    rows = np.arange(num, dtype=np.int32)
    lengths = [np.zeros(length, np.int32) for length in (width, 4)]
    inputs = [*columns.values(), rel, *ext]
    logits, caches = net.start([*map(net.put, inputs)], *map(net.put, (rows, *lengths)))
    close = {"rtol": 1e-5, "atol": 5e-5}
    wanted = golden["prefill_logits"][:, -1]
    np.testing.assert_allclose(logits[:, :vocab_size], wanted, **close)
    assert logits[:, vocab_size:].max() < -1e20
    for number in range(2 * sum(name.startswith("prefill_k") for name in golden)):
        cache_bhsk = caches[number]
        wanted = golden[f"prefill_{'kv'[number % 2]}{number // 2}"]
        array = np.asarray(cache_bhsk.asnumpy() if kind == "compiled" else cache_bhsk)
        array = array[:, :, :width].swapaxes(1, 2)
        np.testing.assert_allclose(array[real], wanted.swapaxes(1, 2)[real], **close)
    names = ("positions", "sample_ids", "segment_ids", "num_segments")
    keys = [np.pad(columns[name], ((0, 0), (0, 4))) for name in names]
    segments = columns["num_segments"][:, -1]
    for step in range(4):
        token, sub, segment = (
            golden[f"step{step}/{name}"][:, 0] for name in ("token", "sub", "segment")
        )
        slot = width + step
        for key, value in zip(keys, (step, 0, segment, segments)):
            key[:, slot] = value
        fed = [token, sub, segment, np.full(num, step, np.int32), np.array([slot], np.int32)]
        fixed = [segments, np.zeros(num, np.int32), rel, *ext, rows]
        logits, caches = net.step([*map(net.put, [*fed, *keys, *fixed])], caches)
        wanted = golden[f"step{step}/logits"][:, 0]
        np.testing.assert_allclose(logits[:, :vocab_size], wanted, **close)
    for key, name in zip(keys, ("position", "sample_ids", "segments", "num_segments")):
        np.testing.assert_array_equal(key, golden[f"final/buffer_{name}"])
