"""Tasks on models: what is asked, what counts as right, what is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, SHARED_DATA
from reference_cpm_bee import Reference, ReferenceNetwork, random_weights
from test_generate_compiled import SIZES
from test_generate_engine import CONFIG, TOKENIZER
from test_generate_scoring import ReferenceScorer

from mindplm.config_task import TaskConfig, read_task
from mindplm.data.documents import Document
from mindplm.errors import ConfigError, DataError
from mindplm.generate import generate
from mindplm.generate.model import Model
from mindplm.generate.scoring import choose, score, score_each
from mindplm.measure.answers import Prediction, understood
from mindplm.measure.questions import read_questions
from mindplm.measure.results import is_right, prediction_line, save, table
from mindplm.measure.run import evaluate_task

TASKS = sorted((ROOT / "configs" / "cpm_bee" / "tasks").glob("*.yaml"))
REVIEWS = """\
shape: {kind: classification, columns: [text, label], labels: {p: good, n: bad}, question: which}
method: likelihood
metrics: [accuracy]
"""


@pytest.fixture(scope="module")
def model() -> Model:
    network = ReferenceNetwork(Reference(CONFIG, random_weights(CONFIG, 0)))
    return Model("cpm_bee", SIZES, network, ReferenceScorer())


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def reviews(tmp_path: Path, *overrides: str, count: int = 6) -> tuple[TaskConfig, str]:
    lines = [f"{'abc'[i % 3] * (i + 1)}\t{'pn'[i % 2]}\n" for i in range(count)]
    task = read_task(write(tmp_path / "reviews.yaml", REVIEWS), overrides)
    return task, write(tmp_path / "data.tsv", "".join(lines))


# --- likelihood -----------------------------------------------------------------------------------


def test_the_likeliest_candidate_is_chosen(model: Model, tmp_path: Path) -> None:
    task, data = reviews(tmp_path)
    result = evaluate_task(model, TOKENIZER, task, data)
    right = 0
    for prediction in result.predictions:
        best = choose(model, TOKENIZER, prediction.document.fields)
        assert prediction.answer == best.answer
        assert prediction.nats == pytest.approx([s.nats for s in best.scores])
        right += best.answer == prediction.document.fields["<ans>"]
    figure = result.figures[""]["accuracy"]
    assert (figure.value, figure.count) == (right / 6, 6)
    assert "always answering 'p' would be right in 50.0 %" in result.notes


def test_ways_to_compare_candidates(model: Model, tmp_path: Path) -> None:
    texts = ("shape.answer=text", "shape.show_options=false")
    nats = {}
    for way in ("answer", "token", "prior"):
        task, data = reviews(tmp_path, *texts, f"likelihood={way}", count=2)
        result = evaluate_task(model, TOKENIZER, task, data)
        nats[way] = [prediction.nats for prediction in result.predictions]
    record = {"input": "a", "question": "which"}
    plain = score(model, TOKENIZER, [{**record, "<ans>": w} for w in ("good", "bad")])
    before = score(model, TOKENIZER, [{**record, "input": "", "<ans>": w} for w in ("good", "bad")])
    assert nats["answer"][0] == pytest.approx([s.nats for s in plain])
    assert nats["token"][0] == pytest.approx([s.per_token for s in plain])
    wanted = [s.nats - b.nats for s, b in zip(plain, before)]
    assert nats["prior"][0] == pytest.approx(wanted)


def test_the_candidate_that_explains_the_input_best_is_chosen(model: Model, tmp_path: Path) -> None:
    channel = ("shape.answer=input", "shape.show_options=false", "shape.answer_key=label")
    task, data = reviews(tmp_path, *channel, count=2)
    result = evaluate_task(model, TOKENIZER, task, data)
    records = [{"question": "which", "label": word, "<ans>": "a"} for word in ("good", "bad")]
    nats = [found.nats for found in score(model, TOKENIZER, records)]
    first = result.predictions[0]
    assert first.nats == pytest.approx(nats)
    assert first.answer == ("good", "bad")[nats.index(min(nats))]
    assert prediction_line(first)["record"] == {"question": "which", "<ans>": "a"}
    with pytest.raises(ConfigError, match="answer=input needs method=likelihood"):
        reviews(tmp_path, *channel, "likelihood=prior")


def test_examples_that_cannot_be_shown_are_named(model: Model) -> None:
    (bad,) = score_each(model, TOKENIZER, [{"<ans>": "a"}], examples=[{"input": "a"}])
    assert isinstance(bad, DataError) and "example 1: the record has no answers" in str(bad)


# --- shots ----------------------------------------------------------------------------------------


def test_shots_have_all_labels_and_are_never_asked(tmp_path: Path) -> None:
    task, data = reviews(tmp_path, "shots=4", f"shots_path={tmp_path}/shots.tsv")
    lines = Path(data).read_text() + "".join(f"x{i}\tp\n" for i in range(9)) + "y\tn\nyy\tn\n"
    write(tmp_path / "shots.tsv", lines)
    questions = read_questions(task, data)
    answers = sorted(shot["<ans>"] for shot in questions.shots)
    assert answers == ["<option_0>"] * 2 + ["<option_1>"] * 2
    asked = {document.fields["input"] for document in questions.documents}
    assert len(asked) == 6 and not asked & {shot["input"] for shot in questions.shots}
    again = read_questions(task, data)
    assert again.shots == questions.shots
    other, _ = reviews(tmp_path, "shots=4", f"shots_path={tmp_path}/shots.tsv", "shots_seed=1")
    assert read_questions(other, data).shots != questions.shots
    write(tmp_path / "shots.tsv", "x\tp\n")
    with pytest.raises(DataError, match="1 records can be shown"):
        read_questions(task, data)


def test_a_limit_is_spread_over_the_data(tmp_path: Path) -> None:
    task, data = reviews(tmp_path, "limit=3", count=9)
    places = [d.place.rpartition(":")[2] for d in read_questions(task, data).documents]
    assert places == ["1", "4", "7"]


# --- writing --------------------------------------------------------------------------------------


def test_written_answers_are_measured_and_failures_counted(model: Model, tmp_path: Path) -> None:
    lines = [{"input": "abc", "<ans>": "de"}, {"input": "x", "<ans>": "fg"}]
    lines += [{"input": "long" * 20, "<ans>": "h"}]
    data = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n{}\n")
    task = read_task(
        write(tmp_path / "t.yaml", "shape: {kind: records}\nmetrics: [exact, rouge, perplexity]"),
        ["generate.max_new_tokens=3", "generate.buckets=[32, 64]"],
    )
    result = evaluate_task(model, TOKENIZER, task, data)
    written = generate(model, TOKENIZER, lines[:2], max_new_tokens=3, buckets=(32, 64))
    assert [p.written for p in result.predictions[:2]] == [r["<ans>"].strip() for r in written]
    exact = result.figures[""]["exact"]
    assert exact.count == 3
    assert "1 records could not be asked" in " ".join(result.notes)
    assert "1 lines of" in result.notes[0] and "no <ans>" in result.notes[0]
    scores = score(model, TOKENIZER, lines[:2])
    nats = sum(s.nats for s in scores) / sum(s.num_tokens for s in scores)
    perplexity = result.figures[""]["perplexity"]
    assert perplexity.value == pytest.approx(2.718281828**nats, rel=1e-6)
    assert perplexity.count == 2

    save([result], tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved[0]["metrics"]["exact"]["count"] == 3 and saved[0]["task"] == "t"
    assert (tmp_path / "out" / "results.txt").read_text() == table([result]) + "\n"
    kept = (tmp_path / "out" / "predictions-t.jsonl").read_text().splitlines()
    assert len(kept) == 3
    first = json.loads(kept[0])
    assert first["references"] == ["de"] and first["record"] == {"input": "abc"}
    assert "error" in json.loads(kept[2]) and not json.loads(kept[2])["right"]


def test_what_written_answers_mean() -> None:
    reviews = TaskConfig(read_task(TASKS[0]).shape, ("accuracy",))
    document = Document("a:1", {}, candidates=("<option_0>", "<option_1>"))
    assert understood(Prediction(document, written="<option_1>"), reviews) == "<option_1>"
    assert understood(Prediction(document, written="<option_7>"), reviews) is None
    names = read_task(ROOT / "configs/cpm_bee/tasks/cluener.yaml")
    found = understood(
        Prediction(
            Document("a:1", {}), written={"人名": "小楠；王；小楠", "地址": None, "书名": ""}
        ),
        names,
    )
    assert found == [("人名", "小楠"), ("人名", "王")]
    document = Document("a:1", {}, references=(("人名", "王"), ("人名", "小楠")))
    assert is_right(Prediction(document, answer=found))
    assert not is_right(Prediction(document, answer=found[:1]))
    assert not is_right(Prediction(document, answer=[]))


# --- task files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_task_files_that_ship(path: Path) -> None:
    task = read_task(path)
    assert task.name == path.stem
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--task configs/cpm_bee/tasks/{path.name}" in line for line in header)


FILES = {
    "ccpm": "ccpm/eval.jsonl",
    "ccpm_verse": "ccpm/eval.jsonl",
    "ccpm_channel": "ccpm/eval.jsonl",
    "reviews_short": "chnsenticorp/dev_clean.tsv",
    "reviews": "chnsenticorp/dev_clean.tsv",
    "eprstmt": "fewclue/eprstmt/test_public.json",
    "ocnli": "fewclue/ocnli/train_0.json",
    "chid": "fewclue/chid/train_0.json",
    "csl": "fewclue/csl/train_0.json",
    "tnews": "fewclue/tnews/train_0.json",
    "cmrc": "cmrc2018/cmrc2018_dev.json.gz",
    "cluener": "cluener/dev.conll",
    "en_zh": "enzh_tatoeba/valid.jsonl",
    "zh_en": "enzh_tatoeba/valid.jsonl",
}


@pytest.mark.skipif(SHARED_DATA is None, reason="no folder with the real data sets")
@pytest.mark.parametrize("name", FILES)
def test_the_task_files_read_the_real_data(name: str) -> None:
    assert SHARED_DATA is not None
    task = read_task(ROOT / f"configs/cpm_bee/tasks/{name}.yaml")
    questions = read_questions(task, str(SHARED_DATA / FILES[name]))
    assert not questions.problems and len(questions.documents) >= 32
    assert all(document.references for document in questions.documents) or name == "cluener"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics: [accuracy]", "missing shape"),
        ("shape: {kind: records}", "missing metrics"),
        ("shape: {kind: records}\nmetrics: []", "metrics is empty"),
        ("shape: {kind: records}\nmetrics: [blue]", "blue is not known"),
        ("shape: {kind: records}\nmetrics: [accuracy]", "need answers to choose from"),
        ("shape: {kind: records}\nmetrics: [spans]", "needs the shape extraction"),
        (REVIEWS + "shots: 3", "needs shots_path"),
        (REVIEWS.replace("[accuracy]", "[bleu]"), "writes nothing"),
        ("shape: {kind: recrods}\nmetrics: [exact]", "recrods is not accepted; did you mean"),
    ],
)
def test_task_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_task(write(tmp_path / "t.yaml", text))


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    task, data = reviews(tmp_path)
    with pytest.raises(DataError, match="names no data"):
        read_questions(task)
    write(Path(data), "a\tx\nb\ty\n")
    with pytest.raises(DataError, match="nothing in it can be used .* label 'x' is not known"):
        read_questions(task, data)
