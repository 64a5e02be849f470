"""BERT's rows: whole texts, masks drawn anew each epoch, the same from any step and on any rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_samples import write_lines
from tiny_run import VERSES

from mindplm import assets
from mindplm.config import SourceConfig
from mindplm.data import masking
from mindplm.data.kinds import RowSettings
from mindplm.data.loader import RowStream, eval_batches
from mindplm.data.masked_rows import COLUMNS, ROWS
from mindplm.data.packing import IGNORE, RowShape
from mindplm.data.preprocess import preprocess
from mindplm.data.records import RowFolder, open_folder
from mindplm.tokenizers.wordpiece import WordPieceTokenizer

SHAPE = RowShape(seq_len=40, max_rel=0, max_ext=0, max_targets=8)
TOKENIZER = WordPieceTokenizer.from_file(assets.path("vocab_wordpiece.txt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RowFolder:
    path = tmp_path_factory.mktemp("masked")
    texts = [{"text": VERSES[i % 4][i % 5 :] + VERSES[(i + 1) % 4]} for i in range(40)]
    source = SourceConfig(path=write_lines(path / "texts.jsonl", texts))
    preprocess([source], TOKENIZER, RowSettings(SHAPE), path / "rows", kind=ROWS, progress=False)
    return open_folder(path / "rows", kind=ROWS)


def stream(folder: RowFolder, **changes):
    return RowStream(folder, **{"seed": 3, "batch_size": 4, **changes})


def original(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The ids with the labels put back."""
    ids = columns["ids"].copy()
    rows, places = np.nonzero(columns["targets"] != IGNORE)
    ids[rows, columns["target_pos"][rows, places]] = columns["targets"][rows, places]
    return ids


def test_batches_hold_whole_texts_with_their_budget_of_guesses(folder):
    batches = list(eval_batches(folder, batch_size=4))
    assert tuple(batches[0][0]) == COLUMNS
    for columns, info in batches:
        ids, spans = original(columns), columns["spans"]
        counts = (columns["targets"] != IGNORE).sum(1)
        assert info["targets"] == counts.sum()
        for row in range(len(info["rows"])):
            for number in range(1, spans[row].max() + 1):
                text = ids[row][spans[row] == number]
                assert (text[0], text[-1]) == (TOKENIZER.cls_id, TOKENIZER.sep_id)
                assert not np.isin(text[1:-1], (TOKENIZER.cls_id, TOKENIZER.pad_id)).any()
                positions = columns["positions"][row][spans[row] == number]
                assert (positions == np.arange(len(text))).all()
            assert 0 < counts[row] <= SHAPE.max_targets
        assert not columns["ids"][spans == 0].any() and not columns["types"].any()


def test_most_guessed_tokens_are_masked_and_some_are_kept(folder):
    masked = kept = total = 0
    with stream(folder) as batches:
        for _, (columns, _) in zip(range(60), batches):
            rows, places = np.nonzero(columns["targets"] != IGNORE)
            shown = columns["ids"][rows, columns["target_pos"][rows, places]]
            masked += (shown == TOKENIZER.mask_id).sum()
            kept += (shown == columns["targets"][rows, places]).sum()
            total += len(rows)
    assert total > 400
    assert masked / total == pytest.approx(0.8, abs=0.06)
    assert kept / total == pytest.approx(0.1, abs=0.05)


def test_epochs_differ_and_steps_repeat(folder):
    steps = 2 * -(-len(folder) // 4)
    with stream(folder) as batches:
        first = [next(batches) for _ in range(steps)]
    seen: dict[int, set[bytes]] = {}
    for columns, info in first:
        for place, row in enumerate(info["rows"].tolist()):
            seen.setdefault(row, set()).add(columns["ids"][place].tobytes())
    assert sum(len(kinds) > 1 for kinds in seen.values()) > len(seen) // 2
    with stream(folder, start_step=steps - 1) as batches:
        columns, info = next(batches)
    for name, array in first[-1][0].items():
        assert (columns[name] == array).all(), name


def test_ranks_share_the_batch_of_one(folder):
    with stream(folder) as alone:
        whole = [next(alone) for _ in range(5)]
    parts = []
    for rank in range(2):
        with stream(folder, rank=rank, world=2) as batches:
            parts.append([next(batches) for _ in range(5)])
    for (columns, info), left, right in zip(whole, *parts):
        for name, array in columns.items():
            assert (np.concatenate([left[0][name], right[0][name]]) == array).all(), name
        assert info["targets"] == left[1]["targets"] == right[1]["targets"]


def test_whole_words_are_masked_together():
    text = "今天天气真不错"
    ids, pieces = TOKENIZER.encode_pieces(text)
    marks = masking.group_marks(masking.mark_words(pieces, masking.chinese_words(text)))
    groups = masking.groups_of(marks)
    assert [len(group) for group in groups] == [4, 3]
    assert masking.select(groups, [0, 1], 5) == [1, 2, 3, 4]
    assert masking.select(groups, [1, 0], 3) == [5, 6, 7]
    assert masking.select(groups, [0, 1], 2) == []
    assert len(ids) == len(marks) == 9


def test_another_kind_of_rows_is_refused(folder: RowFolder, tmp_path: Path):
    from mindplm.errors import DataError

    with pytest.raises(DataError, match="holds rows of masked, expected those of cpm_bee"):
        open_folder(folder.path)
