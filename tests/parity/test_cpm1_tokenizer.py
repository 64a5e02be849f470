"""CPM-1's words, ids and texts, and those of the tokenizer of Transformers 4.6."""

from __future__ import annotations

import json
import pickle

import pytest
from conftest import SHARED_DATA, golden_dirs

from mindplm.tokenizers.sentencepieces import Cpm1Tokenizer

FILES = golden_dirs("cpm1", "tokenization*.json")
FOLDER = SHARED_DATA / "cpm1" if SHARED_DATA else None
if FOLDER is None or not FOLDER.is_dir():
    pytest.skip("no folder data/cpm1 with the vocabulary", allow_module_level=True)


@pytest.fixture(scope="module")
def tokenizer() -> Cpm1Tokenizer:
    return Cpm1Tokenizer.from_file(FOLDER)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_words_ids_and_texts(path, tokenizer):
    for item in read(path)["items"]:
        assert tokenizer.words(item["text"]) == item["jieba"]
        assert tokenizer.encode(item["text"]) == item["ids"]
        model = tokenizer.pieces.model
        known = [(i, piece) for i, piece in zip(item["ids"], item["pieces"]) if i]
        assert [model.id_to_piece(i) for i, _ in known] == [piece for _, piece in known]
        assert tokenizer.decode(item["ids"]) == item["decoded"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_variant_of_transformers(path, tokenizer):
    for item in read(path)["items"]:
        assert tokenizer.encode_hf46(item["text"]) == item["hf46_ids"], item["text"]
        decoded = tokenizer.decode(item["hf46_ids"]).replace("\u2047", "<unk>")
        assert decoded == item["hf46_decoded"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_special_ids(path, tokenizer):
    special = read(path)["special"]
    own = {"<unk>": tokenizer.unk_id, "<sep>": tokenizer.sep_id, "<pad>": tokenizer.pad_id,
           "<mask>": tokenizer.mask_id, "<eod>": tokenizer.eos_id}  # fmt: skip
    assert {name: special[name] for name in own} == own
    assert all(tokenizer.pieces.id_of(piece) == i for piece, i in special.items())


def test_files_and_processes_keep_the_tokenizer(tokenizer, tmp_path):
    for name, data in tokenizer.files().items():
        (tmp_path / name).write_bytes(data)
    for again in (Cpm1Tokenizer.from_file(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode("欢迎\n来 到") == tokenizer.encode("欢迎\n来 到")
        assert again.fingerprint == tokenizer.fingerprint
