"""Building vocabularies, reading corpora, and the vocabulary and texts that ship."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mindplm import assets
from mindplm.errors import ConfigError, DataError, VocabError
from mindplm.tokenizers import vocab
from mindplm.tokenizers.cpm_bee import SPECIALS, CpmBeeTokenizer, escape

TEXTS = [
    "我们在北京看天安门。我们爱北京！\n",
    "the whale and the sea\u3000and the sailor\t",
    "我们在上海，the sailor 在 the sea\u00a0",
] * 4  # fmt: skip


@pytest.fixture(scope="module")
def default():
    return CpmBeeTokenizer.from_file(assets.path(assets.DEFAULT_VOCAB))


def read_all(*names):
    return [text for name in names for text in vocab.read_texts(assets.corpus(name))]


def test_lines_make_a_tokenizer():
    lines = vocab.build_vocab(TEXTS, 400)
    assert tuple(lines[:11]) == SPECIALS
    assert len(lines) == len(set(lines)) <= 400
    tokenizer = CpmBeeTokenizer(lines)
    assert {chr(code) for code in range(32, 127)} <= tokenizer.token_to_id.keys()
    assert {
        "我们",
        "北京",
        " the",
        " sea",
        "the",
        "，",
        "门",
        "input",
    } <= tokenizer.token_to_id.keys()
    assert not [token for token in tokenizer.token_to_id if token in "\t\u3000\u00a0"]
    for text in TEXTS:
        ids, table = tokenizer.encode(escape(text))
        assert tokenizer.decode(ids, table) == escape(text)
    assert [t.text for t in tokenizer.tokenize("我们 the sea")] == ["我们", " the", " sea"]


def test_same_texts_give_the_same_lines():
    assert vocab.build_vocab(TEXTS, 300) == vocab.build_vocab(iter(TEXTS), 300)


def test_size_is_kept_and_frequent_characters_come_first():
    counts = vocab.count_corpus(["天天天地地黄"])
    lines, report = vocab.choose_entries(counts, vocab.MIN_SIZE + 2, min_char_count=1, always=())
    assert lines[vocab.MIN_SIZE :] == ["天", "地"]
    assert report["characters_left_out"] == 1
    assert report["coverage"] == pytest.approx(5 / 6, abs=1e-6)
    assert report["size"] == len(lines)


def test_rare_characters_are_left_out():
    lines = vocab.build_vocab(["天天地"], 500, min_char_count=2)
    assert "天" in lines
    assert "地" not in lines


@pytest.mark.parametrize(("share", "words"), [(0.0, 0), (0.5, 5), (1.0, 10)])
def test_share_divides_the_places_for_words(share, words):
    chinese = [a + b for a in "天地玄黄" for b in "宇宙洪荒"]
    counts = vocab.Counts(
        chars=Counter("ab"),
        chinese=Counter(dict.fromkeys(chinese, 9)),
        english=Counter({f" {a}{b}{c}": 9 for a in "abc" for b in "def" for c in "ghi"}),
    )
    options = {"chinese_share": share, "always": ()}
    lines, report = vocab.choose_entries(counts, vocab.MIN_SIZE + 10, **options)
    assert (report["words"], report["pieces"]) == (words, 10 - words)
    assert len(lines) == vocab.MIN_SIZE + 10


def test_a_side_that_runs_short_leaves_its_places():
    counts = vocab.Counts(chars=Counter("a"), chinese=Counter({"天地": 9, "宇宙": 9, "洪荒": 9}))
    report = vocab.choose_entries(counts, 500, chinese_share=0.0, always=())[1]
    assert (report["words"], report["pieces"]) == (3, 0)


def test_pieces_cut_unseen_words_short():
    words = [f" {a}{b}" for a in ("walk", "talk", "jump", "paint") for b in ("", "ing", "ed", "er")]
    tokenizer = CpmBeeTokenizer(vocab.build_vocab(["".join(words)] * 5, 140, always=()))
    text = " walked talking jumper"
    assert len(tokenizer.encode(text)[0]) < len(text) / 2


@pytest.mark.parametrize("texts", [[], [""], ["\n \t", "  "]])
def test_empty_corpus_is_refused(texts):
    with pytest.raises(DataError, match=r"holds no text \(\d texts read\)"):
        vocab.build_vocab(texts, 500)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (50, {}, "size=50 is too small: .* need"),
        (500, {"chinese_share": 1.5}, "chinese_share=1.5, expected"),
    ],
)
def test_settings_that_cannot_be_are_refused(size, options, message):
    with pytest.raises(ConfigError, match=message):
        vocab.build_vocab(TEXTS, size, **options)


def test_run_reads_every_kind_of_file(tmp_path):
    record = {"input": "天天", "list": ["地地"], "<ans>": {"a": "玄玄"}, "n": 1}
    contents = {
        "a.txt": "宇宇\n宙宙\r\n",
        "b.jsonl": json.dumps(record, ensure_ascii=False) + "\n\n" + json.dumps("洪洪"),
        "c.tsv": "荒荒\t日日\n",
    }
    paths = []
    for name, content in contents.items():
        paths += [tmp_path / name, tmp_path / f"{name}.gz"]
        paths[-2].write_bytes(content.encode())
        paths[-1].write_bytes(gzip.compress(content.encode()))
    output = tmp_path / "made" / "vocab.txt"
    report = vocab.run([str(p) for p in paths], 500, str(output), progress=False)
    tokenizer = CpmBeeTokenizer.from_file(output)
    assert set("天地玄宇宙洪荒日") <= tokenizer.token_to_id.keys()
    assert report["size"] == tokenizer.vocab_size
    assert report["fingerprint"] == tokenizer.fingerprint
    assert report["coverage"] == 1.0
    assert [p.name for p in output.parent.iterdir()] == ["vocab.txt"]
    assert list(vocab.read_texts(paths[2], ["list", "<ans>"])) == ["地地", "玄玄", "洪洪"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"x", r"a.md: expected a name ending in .txt, .jsonl, .tsv"),
        ("a.gz", b"x", r"a.gz: expected a name"),
        ("a.jsonl", b'{"a": "b"}\n{"a"\n', r"a.jsonl:2: not JSON"),
        ("a.txt", b"x\n\xff\n", r"a.txt:2: not UTF-8"),
        ("a.txt.gz", b"plain", r"a.txt.gz: cannot be read"),
        ("a.txt.gz", gzip.compress(b"long text" * 99, mtime=0)[:-12], r"a.txt.gz: cannot be read"),
        ("a.txt", None, r"a.txt: no such file"),
    ],
)
def test_bad_corpus_file_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        vocab.run([str(tmp_path / name)], 500, str(tmp_path / "v.txt"), progress=False)
    assert not (tmp_path / "v.txt").exists()


def test_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VocabError, match="v.txt: cannot be written"):
        vocab.write_vocab(["a"], tmp_path / "file" / "v.txt")


def test_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "v.txt"
    vocab.write_vocab(["old"], path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(VocabError, match="No space left"):
        vocab.write_vocab(["new"], path)
    assert [p.name for p in tmp_path.iterdir()] == ["v.txt"]
    assert path.read_text("utf-8") == "old\n"


def test_default_vocabulary_holds_the_frequent_characters(default):
    assert default.vocab_size == 7000
    counts: Counter = Counter()
    for text in read_all("poems", "classics", "sanguo"):
        counts.update(text)
    frequent = {c for c, n in counts.items() if n >= 3 and c.isprintable()}
    assert len(frequent) > 5000
    assert frequent <= default.token_to_id.keys()


@pytest.mark.parametrize(
    ("name", "most", "unknown"), [("poems_valid", 1.0, 0.004), ("english_valid", 0.45, 0.0005)]
)
def test_default_vocabulary_cuts_unseen_text_short(default, name, most, unknown):
    ids = characters = fake = 0
    for text in read_all(name):
        tokens = default.tokenize(escape(text))
        ids += len(tokens)
        characters += len(text)
        fake += sum(token.is_unknown for token in tokens)
    assert ids / characters < most
    assert fake / ids < unknown


NOTICE_COMMANDS = re.findall(
    r"python - <<'END'\n(.*?)\n    END\n", assets.path("NOTICE").read_text("utf-8"), re.DOTALL
)


@pytest.mark.parametrize("code", NOTICE_COMMANDS, ids=range(len(NOTICE_COMMANDS)))
def test_a_command_in_notice_makes_the_vocabulary_that_ships(tmp_path, code):
    program = "\n".join(line[4:] for line in code.splitlines())
    for name in assets.CORPORA.values():
        (tmp_path / name).symlink_to(assets.path(name))
    root = Path(assets.__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
    )
    (made,) = (path for path in tmp_path.iterdir() if not path.is_symlink())
    assert made.read_bytes() == assets.path(made.name).read_bytes()


def test_notice_makes_the_default_vocabulary():
    assert any(f'output="{assets.DEFAULT_VOCAB}"' in code for code in NOTICE_COMMANDS)


@pytest.mark.parametrize("name", sorted(assets.CORPORA))
def test_embedded_corpus_is_readable_and_in_notice(name):
    file = assets.corpus(name)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        assert all({"title", "text"} <= json.loads(line).keys() for line in lines)
    assert file.name in assets.path("NOTICE").read_text("utf-8")


def test_unknown_asset_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="'prose'; there are poems, .*english_valid"):
        assets.corpus("prose")
    with pytest.raises(ConfigError, match="there are bpe_english.json, "):
        assets.path("../errors.py")


def test_no_mindspore_is_imported():
    program = (
        "import sys, mindplm.assets, mindplm.tokenizers.vocab\n"
        "assert 'mindspore' not in sys.modules"
    )
    root = Path(assets.__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
