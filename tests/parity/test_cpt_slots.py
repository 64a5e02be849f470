"""Classification by filling slots against the original's inputs and scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs
from mindspore import Tensor

from mindplm import assets
from mindplm.config import RuntimeConfig, SourceConfig
from mindplm.config_shape import ShapeConfig
from mindplm.config_slots import SlotsConfig, pieces_of
from mindplm.config_task import TaskConfig
from mindplm.data import cpt_rows
from mindplm.data.documents import Document
from mindplm.data.draw import Work
from mindplm.data.head_rows import ROWS
from mindplm.data.kinds import Draws, RowSettings
from mindplm.data.packing import RowShape
from mindplm.data.slots import Slots, shortened, slots_of, votes
from mindplm.errors import ConfigError
from mindplm.generate.model import Model
from mindplm.measure.questions import Questions
from mindplm.measure.run import asked
from mindplm.models.cpt.cell import Cpt, CptSlots
from mindplm.models.cpt.config import CptConfig
from mindplm.nn.init import initialise
from mindplm.runtime import setup
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

PATHS = golden_dirs("cpt", "prompt_classification.json")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_inputs_and_scores_are_those_of_the_original(path):
    vocab = (SHARED_DATA or path.parent) / "bert" / "vocab.txt"
    if not vocab.is_file():
        pytest.skip("needs the vocabulary data/bert/vocab.txt beside the golden set")
    tokenizer = WordPieceTokenizer.from_file(vocab)
    for case in json.loads(path.read_text()):
        words = {label: case["label_words"][label] for label in case["labels"]}
        assert pieces_of("".join(case["template"])) == case["template"]
        slots = Slots(
            case["template"],
            words,
            tokenizer,
            case["max_seq_length"],
            written=case["gen_template"],
            strip=tuple(case["remove_punc"]),
        )
        assert slots.word_ids == [case["label_word_ids"][str(i)] for i in range(len(words))]
        decoder = case["batch"]["decoder_input_ids"]
        for number, (example, wanted) in enumerate(zip(case["examples"], case["features"])):
            made = slots(example["text_a"], example["text_b"])
            assert made.ids == wanted["input_ids"] and made.written == wanted["gen_prompt"]
            assert made.places == wanted["mlm_positions"]
            assert slots.word_ids[wanted["label"]] == wanted["lm_label"]
            found = slots.decoder_ids(made, wanted["label"])
            assert found == decoder[number][: len(found)]
            # What stands behind it is the rest of the padded row that theirs is shifted from.
            assert set(decoder[number][len(found) :]) <= {0, tokenizer.sep_id}
        for logits, wanted in zip(case["slot_logits"], case["class_scores"]):
            whole = np.zeros((slots.num_slots, tokenizer.vocab_size))
            whole[:, case["slot_logits_columns"]] = logits
            np.testing.assert_allclose(slots.scores(whole), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("states", ["understanding", "writing"])
def test_rows_of_training_are_the_originals_features(path, states):
    vocab = (SHARED_DATA or path.parent) / "bert" / "vocab.txt"
    if not vocab.is_file():
        pytest.skip("needs the vocabulary data/bert/vocab.txt beside the golden set")
    tokenizer = WordPieceTokenizer.from_file(vocab)
    for case in json.loads(path.read_text()):
        if case["gen_template"] and states == "understanding":
            continue  # its slots are the writing decoder's
        shape = shape_of(case, states)
        keys = list(shape.shown)
        settings = RowSettings(RowShape(case["max_seq_length"], 0, 0, case["max_seq_length"]))
        sources = [SourceConfig("x", shape=shape)]
        drawer = cpt_rows.CptDrawer(sources, ["x"], tokenizer, settings)
        pieces = []
        for number, example in enumerate(case["examples"]):
            texts = dict(zip(keys, (example["text_a"], example["text_b"])))
            drawn = drawer(Work(0, number, 0, Document("x", texts, label=example["label"])))
            assert not drawn.problems
            pieces += drawn.instances
        packer = cpt_rows.ROWS.packer(3, settings.shape)
        rows = [row for piece in pieces for row in packer.add(piece)]
        columns = cpt_rows.collate(
            rows, num_rows=len(rows), shape=settings.shape, marks=tokenizer, draws=Draws((), 1, [])
        )
        assert columns["ids"].tolist() == case["batch"]["input_ids"]
        assert (columns["writes"] == (states == "writing")).all()
        for number, wanted in enumerate(case["features"]):
            count = len(wanted["lm_label"])
            assert columns["target_pos"][number, :count].tolist() == wanted["mlm_positions"]
            assert columns["targets"][number, :count].tolist() == wanted["lm_label"]
            assert (columns["targets"][number, count:] == -100).all()
            if states == "writing":
                length = len(wanted["gen_prompt"] or wanted["input_ids"])
                theirs = case["batch"]["decoder_input_ids"][number][:length]
                assert columns["decoder_ids"][number, :length].tolist() == theirs


def shape_of(case: dict, states: str) -> ShapeConfig:
    slots = SlotsConfig(
        ("".join(case["template"]),),
        "".join(case["gen_template"] or ()),
        states,
        *case["remove_punc"],
    )
    words = {label: case["label_words"][label] for label in case["labels"]}
    kind = "pairs" if "[textb]" in case["template"] else "classification"
    return ShapeConfig(kind, labels=words, answer="text", show_options=False, slots=slots)


@pytest.mark.parametrize("states", ["understanding", "writing"])
def test_labels_are_chosen_by_their_words(states):
    """Against single rows without padding, one by one."""
    setup(RuntimeConfig(device="cpu"))
    tokenizer = WordPieceTokenizer.from_file(assets.path("vocab_wordpiece.txt"))
    sizes = {"hidden_size": 32, "num_heads": 2, "ffn_size": 48, "num_layers": 2, "max_len": 40}
    config = CptConfig(vocab_size=tokenizer.vocab_size, num_decoder_layers=1, **sizes)
    cell = Cpt(config)
    initialise(cell, 3)
    slots = SlotsConfig(("[texta]，很[mask]。", "[texta][sep][mask]"), states=states)
    shape = ShapeConfig("classification", labels={"a": "好", "b": "不好"}, answer="text",
                        show_options=False, slots=slots)  # fmt: skip
    task = TaskConfig(shape, ("accuracy",), method="likelihood")
    documents = [
        Document("x", {"input": text}, label="a", candidates=("好", "不好"), references=("好",))
        for text in ("明月", "春风又绿江南岸" * 9, "山")
    ]
    questions = Questions("x", documents)
    model = Model("cpt", config, None, None, cell)
    result = asked(model, tokenizer, task, questions, batch_size=4)
    assert "texts were cut 2 times" in result.notes[0]
    scorer, writes = CptSlots(cell), states == "writing"
    for prediction in result.predictions:
        chosen = []
        for own in slots_of(shape, tokenizer, config.max_len):
            made, scores = own(prediction.document.fields["input"]), []
            assert len(made.ids) <= config.max_len
            for label in range(2):
                asking = own.decoder_ids(made, label) if writes else [0] * len(made.ids)
                columns = ([made.ids], [asking], [int(writes)], [made.places])
                logits = scorer(*(Tensor(np.array(c, np.int32)) for c in columns)).asnumpy()
                scores.append(own.scores(logits)[label])
            chosen.append(np.array(scores))
        assert prediction.answer == ("好", "不好")[votes(chosen)]
        np.testing.assert_allclose(prediction.nats, -np.mean(chosen, 0), rtol=1e-4, atol=1e-5)
    other = Model("bert", config, None, None, cell)
    with pytest.raises(ConfigError, match="bert has none, but cpt"):
        asked(other, tokenizer, task, questions)


def test_templates_that_cannot_be_used_are_named():
    for changes, message in (
        ({"templates": ("[mask]",)}, r"expected one \[texta\]"),
        ({"templates": ("[texta]",)}, r"expected one \[mask\]"),
        ({"templates": ("[texta][mask]",), "written": "[mask]", "states": "writing"}, "no other"),
        ({"templates": ("[texta]",), "written": "[mask]"}, "states=writing"),
    ):
        with pytest.raises(ConfigError, match=message):
            SlotsConfig(**changes)
    slots = SlotsConfig(("[texta][mask]",))
    with pytest.raises(ConfigError, match="slots need classification or pairs"):
        ShapeConfig("translation", slots=slots)
    shape = ShapeConfig("classification", labels={"a": "x", "b": "y"}, slots=slots)
    with pytest.raises(ConfigError, match=r"metrics must be \[accuracy\]"):
        TaskConfig(shape, ("f1",))
    with pytest.raises(ConfigError, match="have no slots"):
        ROWS["text"].sources([SourceConfig("x", shape=shape)])


def test_the_longer_text_is_cut_first_and_most_templates_win():
    assert shortened([1, 2, 3, 4], [5, 6], 1) == ([1, 2, 3], [5, 6])
    assert shortened([1, 2, 3, 4], [5, 6, 7], 4) == ([1, 2], [5])
    assert shortened([1, 2, 3], [], 2) == ([1], [])
    assert votes([np.array([0, 1]), np.array([2, 1]), np.array([0, 3])]) == 1
