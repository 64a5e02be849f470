"""CPM-1's formats: samples of documents, dialogues, essays, idioms, labels and their scores."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs
from mindspore import Tensor
from safetensors.numpy import load_file

from mindplm.config import RuntimeConfig, ShapeConfig
from mindplm.config_task import TaskConfig
from mindplm.data import cpm1_tasks as tasks
from mindplm.generate.model import from_cell
from mindplm.generate.sampling import nucleus
from mindplm.measure.run import evaluate_task
from mindplm.models.cpm1.cell import network
from mindplm.models.cpm1.config import Cpm1Config, parameter_shapes, rules
from mindplm.nn.causal import CausalLoss
from mindplm.nn.values import load_model
from mindplm.runtime import setup
from mindplm.tokenizers.sentencepieces import Cpm1Tokenizer
from mindplm.weights.rules import to_ours

FOLDER = SHARED_DATA / "cpm1" if SHARED_DATA else None
NEEDS_VOCAB = pytest.mark.skipif(
    FOLDER is None or not FOLDER.is_dir(), reason="no folder data/cpm1 with the vocabulary"
)


@pytest.fixture(scope="module")
def tokenizer() -> Cpm1Tokenizer:
    return Cpm1Tokenizer.from_file(FOLDER)


def cases(pattern: str) -> list:
    found = [json.loads(p.read_text(encoding="utf-8")) for p in golden_dirs("cpm1", pattern)]
    return [case for made in found for case in (made if isinstance(made, list) else [made])]


@pytest.mark.parametrize("case", cases("packed_sample_index*.json"), ids=lambda c: c["seq_length"])
def test_samples_of_documents_laid_end_to_end(case):
    found = tasks.sample_bounds(case["sizes"], case["doc_idx"], case["seq_length"])
    assert found.tolist() == case["sample_idx"]


@NEEDS_VOCAB
@pytest.mark.parametrize("case", cases("lm_packing*.json"), ids=lambda c: c["text"][:5])
def test_chunks_of_a_text(case, tokenizer):
    ids = [*tokenizer.encode(case["text"]), tokenizer.eos_id]
    assert tasks.chunks(ids, case["seq_length"], tokenizer.pad_id) == case["samples"]


def test_dialogues_hold_no_blanks():
    assert tasks.dialogue("今天 天气\n怎么样", " 挺好 的") == "对话上文:今天天气怎么样 回复:挺好的"


@NEEDS_VOCAB
@pytest.mark.parametrize("case", cases("essay_windows*.json"), ids=lambda c: c["win_size"])
def test_windows_of_essays(case, tokenizer):
    title, text = tasks.read_essay(case["file_lines"])
    assert (title, text) == (case["title"], case["article"])
    ids = tasks.essay_ids(title, text, tokenizer)
    assert ids == case["ids"]
    assert tasks.windows(ids, case["win_size"], case["step"]) == case["windows"]


@NEEDS_VOCAB
@pytest.mark.parametrize("case", cases("chid*.json"), ids=lambda c: "chid")
def test_idioms(case, tokenizer):
    found = [
        cloze
        for passage in case["input"]["lines"]
        for cloze in tasks.clozes(passage, case["input"]["ans"])
    ]
    assert tasks.digit_ids(tokenizer) == case["finetune"]["num_ids"]
    wanted = case["finetune"]["data"]
    assert [tasks.cloze_ids(cloze, tokenizer) for cloze in found] == [w["sent"] for w in wanted]
    assert [cloze.answer for cloze in found] == [w["truth"] for w in wanted]
    filled = [tasks.filled_ids(cloze, tokenizer) for cloze in found]
    assert filled == [w["cands"] for w in case["zeroshot"]]


# --- zero-shot ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot_model():
    """The golden set's model, ready to be asked."""
    setup(RuntimeConfig(device="cpu"))
    (path,) = golden_dirs("cpm1", "zeroshot_model*.safetensors")
    theirs = {name: np.asarray(a, np.float32) for name, a in load_file(path).items()}
    vocab, hidden = theirs["word_embeddings.weight"].shape
    config = Cpm1Config(
        vocab, hidden, 2, 4 * hidden, 2, max_len=len(theirs["position_embeddings.weight"])
    )
    model = network(config)
    load_model(model, to_ours(rules(config), theirs, parameter_shapes(config)), "zeroshot")
    return from_cell(model, config, "cpm1")


@pytest.fixture(scope="module")
def scores_of(zero_shot_model):
    """Function from rows and masks to the mean loss of the masked tokens."""
    loss = CausalLoss(zero_shot_model.cell)

    def scores(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        rows, count = ids.shape
        order = np.broadcast_to(np.arange(count - 1), (rows, count - 1))
        targets = np.where(mask == 1, ids[:, 1:], -100)
        columns = (ids[:, :-1], order, np.ones_like(order), order, targets)
        losses, real = loss.tokens(*(Tensor(np.asarray(a, np.int32)) for a in columns))
        losses, real = (part.asnumpy().reshape(rows, -1) for part in (losses, real))
        return (losses * real).sum(1) / real.sum(1)

    return scores


ZERO_SHOT = [(name, group) for case in cases("zeroshot*.json") for name, group in case.items()]


@NEEDS_VOCAB
@pytest.mark.parametrize(("name", "case"), ZERO_SHOT, ids=[name for name, _ in ZERO_SHOT])
def test_labels_by_likelihood(name, case, tokenizer, scores_of):
    length = case["seq_length"]
    if "connectives" in case:
        assert list(tasks.CONNECTIVES.values()) == case["connectives"]
        raw = [item for item in case["raw"] if item["label"] != "-"]
        groups = [
            [
                tasks.inference(item["sentence1"], item["sentence2"], relation, tokenizer)
                for relation in tasks.CONNECTIVES
            ]
            for item in raw
        ]
        wanted = {
            key: [item[key] for item in case["items"]]
            for key in ("tokens", "masks", "scores", "label", "prediction")
        }
        relations = list(tasks.CONNECTIVES)
        assert [relations.index(item["label"]) for item in raw] == wanted["label"]
        predictions = wanted["prediction"]
    else:
        labels = case["raw"]["labels"]
        names = [label if isinstance(label, str) else label[1] for label in labels]
        form = tasks.APPLICATION if name == "iflytek" else tasks.TOPIC
        groups = [
            [tasks.topic(label, text, tokenizer, form, length - 20) for label in names]
            for text, _ in case["raw"]["items"]
        ]
        wanted, predictions = case, case["predictions"]
    ids, mask = tasks.scored_rows([row for group in groups for row in group], length, PAD_ID)
    assert ids.tolist() == np.array(wanted["tokens"]).reshape(ids.shape).tolist()
    assert mask.tolist() == np.array(wanted["masks"]).reshape(mask.shape).tolist()
    found = scores_of(ids, mask)
    np.testing.assert_allclose(found, np.array(wanted["scores"]).reshape(-1), rtol=2e-4)
    assert found.reshape(len(groups), -1).argmin(1).tolist() == predictions


PAD_ID = 5


@NEEDS_VOCAB
@pytest.mark.parametrize(("name", "case"), ZERO_SHOT, ids=[name for name, _ in ZERO_SHOT])
def test_tasks_choose_as_the_original_does(name, case, tokenizer, zero_shot_model, tmp_path):
    """The same scores and choices by way of a task file's template."""
    length, lines, inputs = case["seq_length"], [], {"input": "sentence1"}
    if "connectives" in case:
        template, labels = "{input}{answer}|{second}", dict(tasks.CONNECTIVES)
        inputs["second"] = "sentence2"
        lines = [item for item in case["raw"] if item["label"] != "-"]
        wanted = [item["scores"] for item in case["items"]]
        predictions = [item["prediction"] for item in case["items"]]
    else:
        form = tasks.APPLICATION if name == "iflytek" else tasks.TOPIC
        template = form.format("{answer}") + "|{input}"
        found = [label if isinstance(label, str) else label[1] for label in case["raw"]["labels"]]
        labels = {word: word for word in found}
        wanted = np.reshape(case["scores"], (len(case["predictions"]), -1))
        predictions = case["predictions"]
        lines = [{"sentence1": text, "label": found[0]} for text, _ in case["raw"]["items"]]
    # What the original cuts by tokens, a task cuts by characters: only whole texts are compared.
    whole = [i for i, line in enumerate(lines) if "connectives" in case
             or len(tokenizer.encode(line["sentence1"])) <= length - 20]  # fmt: skip
    assert whole
    path = tmp_path / "data.jsonl"
    rows = [json.dumps(lines[i], ensure_ascii=False) for i in whole]
    path.write_text("\n".join(rows), encoding="utf-8")
    shape = ShapeConfig("pairs", inputs=inputs, labels=labels, answer="text")
    task = TaskConfig(shape, ("accuracy",), method="likelihood", likelihood="token",
                      template=template, name=name)  # fmt: skip
    answered = evaluate_task(zero_shot_model, tokenizer, task, str(path)).predictions
    words = list(labels.values())
    for prediction, i in zip(answered, whole):
        np.testing.assert_allclose(prediction.nats, wanted[i], rtol=2e-4)
        assert words.index(prediction.answer) == predictions[i]


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("sampling_filters*.json"), ids=lambda c: "logits")
def test_what_sampling_keeps(case):
    """Cuts before and after the temperature; a share of 0 means no cut there."""
    logits = np.array(case["logits"], np.float32)
    cuts = (case["top_k"], case["top_p"] or 1.0)
    heat = case["temperature"]
    for order, name in enumerate(("filter_then_temperature", "temperature_then_filter")):
        classes, weights = nucleus(logits / (heat if order else 1.0), *cuts)
        weights = weights if order else weights ** (1 / heat)
        wanted = SimpleNamespace(**case[name])
        assert sorted(classes.tolist()) == sorted(wanted.kept)
        shares = np.zeros(len(logits))
        shares[classes] = weights / weights.sum()
        probs = np.array(wanted.probs)
        if len(probs) == len(logits):
            np.testing.assert_allclose(shares, probs, atol=1e-5)
        else:
            np.testing.assert_allclose(shares[wanted.kept], probs, atol=1e-5)
