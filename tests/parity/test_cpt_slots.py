"""Classification by filling slots against the original's inputs and scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.data.slots import Slots, shortened, votes
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


def test_the_longer_text_is_cut_first_and_most_templates_win():
    assert shortened([1, 2, 3, 4], [5, 6], 1) == ([1, 2, 3], [5, 6])
    assert shortened([1, 2, 3, 4], [5, 6, 7], 4) == ([1, 2], [5])
    assert shortened([1, 2, 3], [], 2) == ([1], [])
    assert votes([np.array([0, 1]), np.array([2, 1]), np.array([0, 3])]) == 1
