"""Guessing masks: what is refused, and that batches and padding change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import VERSES

from mindplm import checkpoint, cli
from mindplm.config import RuntimeConfig
from mindplm.errors import DataError
from mindplm.fill import Filler
from mindplm.models.bert.cell import Bert
from mindplm.models.bert.config import BertConfig
from mindplm.nn.init import initialise
from mindplm.nn.values import to_arrays
from mindplm.runtime import setup
from mindplm.strict import to_plain
from mindplm.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fill") / "bert"
    tokenizer = WordPieceTokenizer([*SPECIALS, *sorted({c for v in VERSES for c in v.lower()})])
    sizes = {"hidden_size": 16, "num_heads": 2, "ffn_size": 24, "num_layers": 1, "max_len": 40}
    config = BertConfig(vocab_size=tokenizer.vocab_size, **sizes, init_std=0.3)
    setup(RuntimeConfig(device="cpu"))
    model = Bert(config)
    initialise(model, 1)
    checkpoint.write(
        path,
        family="bert",
        model_config=to_plain(config),
        weights=to_arrays(model.get_parameters()),
        tokenizer_files=tokenizer.files(),
    )
    return path


def test_guesses_do_not_depend_on_the_other_texts(folder):
    filler = Filler(folder)
    texts = ["床前[MASK]月光", "[MASK]", "疑是地上霜" * 6 + "[MASK][MASK]", "举头[MASK]明月"] * 3
    together = filler(texts, top=3)
    for text, filled in zip(texts[:4], together):
        (alone,) = filler([text], top=3)
        assert alone.text == filled.text and "[MASK]" not in filled.text
        for ours, theirs in zip(alone.guesses, filled.guesses):
            assert [piece for piece, _ in ours] == [piece for piece, _ in theirs]
            assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], rel=1e-4)
    assert [len(filled.guesses) for filled in together[:4]] == [1, 1, 2, 1]


def test_what_cannot_be_filled_is_refused(folder, tmp_path):
    filler = Filler(folder)
    with pytest.raises(DataError, match=r"text 2 has no \[MASK\]: '床前'"):
        filler(["[MASK]", "床前"])
    with pytest.raises(DataError, match="text 1 has 44 tokens, at most 40 are read"):
        filler(["月" * 41 + "[MASK]"])
    run = tmp_path / "bee"
    run.mkdir()
    assert cli.main(["fill", "-m", str(run), "--input", "[MASK]"]) == 2


def test_the_command_prints_texts_and_guesses(folder, capsys):
    assert cli.main(["fill", "-m", str(folder), "--input", "床前[MASK]月光", "--top", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("床前") and first.endswith("月光")
    assert second.startswith("  [MASK] 1: ") and second.count(", ") == 1
    assert cli.main(["fill", "-m", str(folder), "--input", "床前", "--top", "2"]) == 2
