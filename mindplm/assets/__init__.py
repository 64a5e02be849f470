"""The texts and the vocabulary that ship with the package; NOTICE says where each is from."""

from __future__ import annotations

from pathlib import Path

from mindplm.errors import ConfigError

CORPORA = {
    "poems": "zh_poems_train.jsonl.gz",
    "poems_valid": "zh_poems_valid.jsonl.gz",
    "sanguo": "zh_sanguo_train.jsonl.gz",
    "sanguo_valid": "zh_sanguo_valid.jsonl.gz",
    "classics": "zh_classics.jsonl.gz",
    "english": "en_train.jsonl.gz",
    "english_valid": "en_valid.jsonl.gz",
}
DEFAULT_VOCAB = "vocab_default.txt"
_FOLDER = Path(__file__).resolve().parent


def path(name: str) -> Path:
    """The file of this name in the package.

    Raises:
        ConfigError: There is none.
    """
    file = _FOLDER / name
    if not file.is_file() or file.parent != _FOLDER:
        kinds = (".gz", ".txt", ".json", ".model", ".yaml")
        known = sorted(p.name for p in _FOLDER.iterdir() if p.suffix in kinds)
        raise ConfigError(f"no embedded file {name!r}; there are {', '.join(known)}")
    return file


def corpus(name: str) -> Path:
    """The file of an embedded corpus: a key of CORPORA.

    Raises:
        ConfigError: There is no such corpus.
    """
    if name not in CORPORA:
        raise ConfigError(f"no embedded corpus {name!r}; there are {', '.join(CORPORA)}")
    return path(CORPORA[name])
