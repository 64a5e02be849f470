"""CPT's heads against the original's arrays: scores, losses, gradients; and its reading windows."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs
from mindspore import ops
from safetensors.numpy import load_file
from test_cpt_model import FOLDER, LOGITS, TAGS, Case, tensors

from mindplm.data.documents import Document
from mindplm.data.reading import answer_words, best_answers, windows, words_of
from mindplm.data.shapes import joined
from mindplm.models.cpt.cell import CptStates
from mindplm.nn.heads import HeadedModel, HeadLoss
from mindplm.nn.loss import IGNORE
from mindplm.nn.values import from_arrays
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

NAMES = {1: "understanding", 2: "writing", 3: "both"}
OURS = {
    "cls_head.dense": "task.dense",
    "cls_head.out_proj": "task.out",
    "qa_outputs": "task.out",
    "classifier": "task.out",
}
MRC = golden_dirs("cpt", "mrc.json")


@pytest.fixture(params=TAGS, scope="module")
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def golden(case) -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / f"heads_{case.tag}.npz"))


def headed(case: Case, name: str, form: str, states: CptStates) -> HeadedModel:
    """The network with the head of this name in the golden set."""
    file = load_file(FOLDER / f"heads_{case.tag}.safetensors")
    arrays = {}
    for theirs, ours in OURS.items():
        for kind in ("weight", "bias"):
            if f"{name}.{theirs}.{kind}" in file:
                arrays[f"{ours}.{kind}"] = file[f"{name}.{theirs}.{kind}"]
    classes = len(arrays["task.out.bias"])
    model = HeadedModel(states, form, classes, std=0.02, dtype=ms.float32)
    from_arrays([w for w in model.get_parameters() if w.name in arrays], arrays, name)
    return model


def read(case: Case):
    return tensors(case.arrays["input_ids"], case.arrays["attention_mask"])


def loss_and_gradients(model: HeadedModel, form: str, columns, places, labels):
    weights = [*model.task.get_parameters(), model.model.encoder.embed.weight]
    loss = HeadLoss(model, form)

    def mean(*columns):
        total, count = loss(*columns)
        return total / count

    compute = ms.jit(ops.value_and_grad(mean, None, weights))
    value, grads = compute(*columns, *tensors(places, labels))
    return float(value.asnumpy()), {w.name: g.asnumpy() for w, g in zip(weights, grads)}


@pytest.mark.parametrize("mode", NAMES)
def test_classes_of_texts_agree(case, golden, mode):
    model = headed(case, f"cls{mode}", "text", CptStates(case.model, NAMES[mode]))
    columns = read(case)
    assert np.abs(model(*columns).asnumpy() - golden[f"cls{mode}_logits"]).max() < LOGITS
    labels = golden["cls_labels"][:, None]
    value, grads = loss_and_gradients(model, "text", columns, np.zeros_like(labels), labels)
    assert value == pytest.approx(float(golden[f"cls{mode}_loss"]), rel=1e-4)
    for name, wanted in golden.items():
        begin, _, theirs = name.partition("_grad.")
        if begin != f"cls{mode}" or not theirs:
            continue
        stem, _, kind = theirs.rpartition(".")
        own = "encoder.embed.weight" if theirs == "word_embeddings" else f"{OURS[stem]}.{kind}"
        found = grads[own]
        if theirs == "word_embeddings":
            found[0] = wanted[0]  # the original's lookup gives padding no gradient
        assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted) + 1e-5, name


@pytest.mark.parametrize("mode", NAMES)
def test_ends_of_spans_agree(case, golden, mode):
    model = headed(case, f"qa{mode}", "span", CptStates(case.model, NAMES[mode]))
    columns = read(case)
    scores = model(*columns).asnumpy()
    ends = np.stack([golden["qa_start_positions"], golden["qa_end_positions"]], 1)
    for side, name in enumerate(("start", "end")):
        assert np.abs(scores[..., side] - golden[f"qa{mode}_{name}_logits"]).max() < LOGITS
    ends = np.where(ends < scores.shape[1], ends, IGNORE)
    total, count = HeadLoss(model, "span")(*columns, *tensors(ends, ends))
    mean = float(total.asnumpy()) / float(count.asnumpy())
    assert mean == pytest.approx(float(golden[f"qa{mode}_loss"]), rel=1e-4)


def test_tags_of_tokens_agree(case, golden):
    """The original calls the bare encoder here, which has types 0."""
    model = headed(case, "cws", "tokens", CptStates(case.model, "understanding", types=0))
    columns = read(case)
    assert np.abs(model(*columns).asnumpy() - golden["cws_logits"]).max() < LOGITS
    labels = golden["cws_labels"]
    places = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
    labels = np.where((case.arrays["attention_mask"] != 0) & (labels >= 0), labels, IGNORE)
    total, count = HeadLoss(model, "tokens")(*columns, *tensors(places, labels))
    mean = float(total.asnumpy()) / float(count.asnumpy())
    assert mean == pytest.approx(float(golden["cws_loss"]), rel=1e-4)


# --- reading --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    path = (SHARED_DATA or FOLDER) / "bert" / "vocab.txt"
    if not path.is_file():
        pytest.skip("needs the vocabulary data/bert/vocab.txt beside the golden set")
    return WordPieceTokenizer.from_file(path)


def questions(tree: dict) -> list[tuple[str, dict]]:
    paragraphs = [p for article in tree["data"] for p in article["paragraphs"]]
    return [(p["context"], question) for p in paragraphs for question in p["qas"]]


@pytest.mark.parametrize("path", MRC, ids=lambda path: path.stem)
def test_windows_are_those_of_the_original(path, tokenizer):
    whole = json.loads(path.read_text())
    for name, case in whole["cases"].items():
        if "features" not in case:
            continue
        size, stride = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        theirs = list(case["features"])
        for (context, question), example in zip(questions(whole["input"]), case["examples"]):
            words, numbers = words_of(context)
            assert words == example["doc_tokens"]
            answer = None
            if name.endswith("train"):
                given = question["answers"][0]
                first, last = answer_words(context, numbers, given["text"], given["answer_start"])
                assert (first, last) == (example["start_position"], example["end_position"])
                answer = (first, last, given["text"])
            found = windows(
                question["question"], words, tokenizer, size, stride=stride, answer=answer
            )
            for window in found:
                wanted = theirs.pop(0)
                assert window.ids == [
                    i for i, m in zip(wanted["input_ids"], wanted["input_mask"]) if m
                ]
                owner = {int(k): v for k, v in wanted["token_to_orig_map"].items()}
                assert dict(enumerate(window.words, window.first)) == owner
                best = {int(k): v for k, v in wanted["token_is_max_context"].items()}
                assert dict(enumerate(window.best, window.first)) == best
                if answer is not None:
                    ends = (wanted["start_position"], wanted["end_position"])
                    assert (window.begin, window.end) == ends
        assert not theirs


@pytest.mark.parametrize("path", MRC, ids=lambda path: path.stem)
def test_answers_are_those_of_the_original(path, tokenizer):
    whole = json.loads(path.read_text())
    case = whole["cases"]["predictions"]
    raw = list(case["raw"])
    for context, question in questions(whole["input"]):
        words, _ = words_of(context)
        found = windows(question["question"], words, tokenizer, 64, stride=20)
        own = [raw.pop(0) for _ in found]
        ends = [(np.array(r["start_logits"]), np.array(r["end_logits"])) for r in own]
        best = best_answers(
            words, found, ends, num_best=case["n_best_size"], most=case["max_answer_length"]
        )
        assert best[0][0] == case["best"][question["id"]]
        wanted = case["nbest"][question["id"]]
        for (text, chance), entry in zip(best, wanted):
            assert text == entry["text"] and chance == pytest.approx(entry["probability"], rel=1e-3)
    assert not raw


def test_an_answer_that_is_not_in_the_text_is_named():
    document = Document("x:1", {"input": "ab", "question": "?"}, references=("c",))
    _, numbers = words_of("ab")
    with pytest.raises(ValueError, match="'c' is not in the text"):
        answer_words("ab", numbers, document.references[0], -1)
    assert joined(["Open", "AI"]) == "Open AI"
