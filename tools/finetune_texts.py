"""What a small model is pretrained on before it learns tasks: their texts without answers, and
labelled reviews of other goods than those that a task is about.

    python tools/finetune_texts.py downloads data/finetune_base/texts

`downloads` holds the folders ccpm, chnsenticorp, cluener, embedded_default, enzh_tatoeba and
online_shopping as configs/cpm_bee/finetuning.md describes them. Of every task only the training
part is read. Reviews of hotels, books and computers in online_shopping are those of chnsenticorp,
so they stay out, as does each text of a development part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mindplm.config import SourceConfig
from mindplm.config_task import read_task
from mindplm.data.documents import Document
from mindplm.data.sources import SourceReader
from mindplm.errors import UserError
from mindplm.text import unescape

TASKS = Path(__file__).resolve().parents[1] / "configs" / "cpm_bee" / "tasks"
_SAME_GOODS = ("酒店", "书籍", "计算机")


def given(task: str, path: Path, keys: tuple[str, ...] = (), *overrides: str) -> Iterator[str]:
    """Texts of the records that a task file makes of a file, at some keys; (): at "input"."""
    shape = read_task(TASKS / f"{task}.yaml", overrides).shape
    for item in SourceReader(SourceConfig(str(path), shape=shape)):
        if isinstance(item, Document):
            for key in keys or ("input",):
                yield unescape(item.fields[key])


def goods(path: Path) -> Iterator[tuple[str, str]]:
    """Reviews of the goods that no task is about, each with its label."""
    columns = "shape.columns=[kind, label, text]"
    shape = read_task(TASKS / "reviews.yaml", [columns, "shape.inputs={kind: kind, input: text}"])
    for item in SourceReader(SourceConfig(str(path), shape=shape.shape)):
        if isinstance(item, Document) and item.fields["kind"] not in _SAME_GOODS:
            yield unescape(item.fields["input"]), item.label


def collect(data: Path) -> dict[str, Iterator[str]]:
    """Name of a file to its texts."""
    reviews = data / "embedded_default"
    both = ("input", "<ans>")
    return {
        "reviews": given("reviews", reviews / "zh_reviews_train.tsv.gz"),
        "hotels": given("reviews", data / "chnsenticorp" / "train.tsv.gz"),
        "news": given("cluener", data / "cluener" / "train.conll"),
        "sentences": given("en_zh", data / "enzh_tatoeba" / "train.jsonl.gz", both),
        "verse": given("ccpm_verse", data / "ccpm" / "train.jsonl", both),
    }


def bare(text: str) -> str:
    """What two texts have in common that differ in spaces and case only."""
    return "".join(text.split()).lower()


def write(data: Path, out: Path) -> None:
    """Writes a file of JSON lines for each kind of text and prints how many there are."""
    out.mkdir(parents=True, exist_ok=True)
    apart = {bare(text) for text in given("reviews", data / "chnsenticorp" / "dev.tsv")}
    dev = data / "embedded_default" / "zh_reviews_dev.tsv.gz"
    apart |= {bare(text) for text in given("reviews", dev)}
    for name, texts in collect(data).items():
        unique = dict.fromkeys(texts)
        kept = [text for text in unique if bare(text) not in apart]
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in kept)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(kept):,} texts, {len(unique) - len(kept):,} of development parts")
    labelled = dict(goods(data / "online_shopping" / "train.tsv.gz"))
    rows = [f"{text}\t{label}\n" for text, label in labelled.items() if bare(text) not in apart]
    (out / "goods.tsv").write_text("".join(rows), encoding="utf-8")
    print(f"goods: {len(rows):,} reviews with labels")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder of the data sets")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where the texts are written")
    args = parser.parse_args()
    try:
        write(args.data, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
