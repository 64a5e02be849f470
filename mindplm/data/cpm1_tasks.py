"""CPM-1's data formats on token ids: documents cut to samples, dialogues, essays, idioms, labels.

Source: TsinghuaAI/CPM-1-Pretrain, CPM-1-Finetune and yangjianxin1/CPM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindplm.tokenizers.sentencepieces import Cpm1Tokenizer

CONNECTIVES = {"entailment": "？对，", "contradiction": "？错，", "neutral": "？也许，"}
"""What stands between premise and hypothesis for each relation."""
TOPIC, APPLICATION = "这是关于{}的文章：", "这是关于{}的应用程序："
"""Prompts of TNEWS and IFLYTEK around a label."""
NUM_IDIOMS = 10
_BLANK = re.compile(r"#idiom\d+#")
_ESSAY_HEAD, _ESSAY_BODY, _ESSAY_TAIL = 1, 7, 50


# --- pretraining ----------------------------------------------------------------------------------


def sample_bounds(sizes: Sequence[int], order: Sequence[int], seq_len: int) -> np.ndarray:
    """Where samples of seq_len + 1 ids begin in documents laid end to end.

    Neighbours share one id: the last label of one is the first input of the next.

    Args:
        sizes: Ids of each document.
        order: Documents in the order in which they are laid, any number of times each.
        seq_len: Inputs of a sample.

    Returns:
        int64 [samples + 1, 2]: (place in `order`, id in that document) of each beginning, and of
        the last end.
    """
    ends = np.cumsum([sizes[i] for i in order])
    starts = np.arange((int(ends[-1]) - 1) // seq_len + 1) * seq_len
    places = np.searchsorted(ends, starts, side="right")
    offsets = starts - np.concatenate([[0], ends])[places]
    return np.stack([places, offsets], 1)


@dataclass(frozen=True)
class Positions:
    """What a row of documents says of each token: its position, the number of its document."""

    positions: np.ndarray
    spans: np.ndarray


def document_positions(
    ids: np.ndarray, end_id: int, *, restart: bool = True, apart: bool = True
) -> Positions:
    """Positions and documents of rows in which end marks end documents.

    Args:
        ids: int [B, T].
        end_id: The end mark; it belongs to the document that it ends.
        restart: Positions begin anew with each document.
        apart: Documents have numbers of their own, so that they do not see each other.
    """
    order = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    begins = np.zeros(ids.shape, np.int64)
    begins[:, 1:] = ids[:, :-1] == end_id
    spans = 1 + np.cumsum(begins, 1)
    first = np.maximum.accumulate(np.where(begins > 0, order, 0), 1)
    return Positions(
        (order - first if restart else order).astype(np.int32),
        (spans if apart else np.ones_like(spans)).astype(np.int32),
    )


# --- fine-tuning ----------------------------------------------------------------------------------


def dialogue(context: str, reply: str) -> str:
    """A turn and its answer as one text."""
    return f"对话上文:{_without_blanks(context)} 回复:{_without_blanks(reply)}"


def chunks(ids: Sequence[int], seq_len: int, pad_id: int) -> list[list[int]]:
    """Samples of seq_len + 1 ids of one text, each from one id after the other's last; padded."""
    ids, made = list(ids), []
    while len(ids) > seq_len + 1:
        made.append(ids[: seq_len + 1])
        ids = ids[seq_len + 1 :]
    return [*made, ids + [pad_id] * (seq_len + 1 - len(ids))]


def read_essay(lines: Sequence[str]) -> tuple[str, str]:
    """Title and text of a file of essays: a head of five lines, the text from the eighth on."""
    title = lines[_ESSAY_HEAD].strip()[len("标题：") :]
    return title, "".join(line for line in lines[_ESSAY_BODY:] if line.strip())


def essay_ids(title: str, text: str, tokenizer: Cpm1Tokenizer) -> list[int]:
    """title sep text end."""
    head = [*tokenizer.encode(title), tokenizer.sep_id]
    return [*head, *tokenizer.encode(text), tokenizer.eos_id]


def windows(ids: Sequence[int], size: int, step: int) -> list[list[int]]:
    """The first window, and further ones while more than a tail stands behind them."""
    made = [list(ids[:size])]
    start = step
    while start + size + _ESSAY_TAIL < len(ids):
        made.append(list(ids[start : start + size]))
        start += step
    return made


@dataclass(frozen=True)
class Cloze:
    """One blank of a passage of ChID.

    Attributes:
        before, after: The text around it, other blanks left out.
        answer: Number of the right idiom.
        candidates: The idioms.
    """

    before: str
    after: str
    answer: int
    candidates: tuple[str, ...]


def clozes(passage: Mapping[str, Any], answers: Mapping[str, int]) -> list[Cloze]:
    """The blanks of the sentences of a passage, in order."""
    made = []
    for content in passage["content"]:
        for found in _BLANK.finditer(content):
            before, after = content[: found.start()], content[found.end() :]
            before, after = (_BLANK.sub("", part).strip() for part in (before, after))
            answer = answers[found[0]]
            made.append(Cloze(before, after, answer, tuple(passage["candidates"])))
    return made


def digit_ids(tokenizer: Cpm1Tokenizer) -> list[int]:
    """Ids of the digits that stand for the idioms."""
    return [tokenizer.encode(f"选项{i}:")[1] for i in range(NUM_IDIOMS)]


def cloze_ids(cloze: Cloze, tokenizer: Cpm1Tokenizer) -> list[int]:
    """A passage with its blank, its idioms by number, and the number of the right one."""
    encode, digits = tokenizer.encode, digit_ids(tokenizer)
    ids = [*encode("上下文:"), *encode(cloze.before), tokenizer.mask_id, *encode(cloze.after)]
    ids.append(tokenizer.eos_id)
    for number, idiom in enumerate(cloze.candidates):
        ids += [*encode(f"选项{number}:"), *encode(idiom), tokenizer.sep_id]
    return [*ids, tokenizer.mask_id, *encode("答案是:"), digits[cloze.answer]]


def filled_ids(cloze: Cloze, tokenizer: Cpm1Tokenizer) -> list[list[int]]:
    """The passage with each idiom in the blank."""
    texts = (cloze.before + idiom + cloze.after for idiom in cloze.candidates)
    return [tokenizer.encode(text) for text in texts]


# --- zero-shot ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A text behind a prompt; only the tokens of the text are scored.

    Attributes:
        ids: All of it.
        num_prompt: Ids of the prompt.
    """

    ids: tuple[int, ...]
    num_prompt: int


def topic(label: str, text: str, tokenizer: Cpm1Tokenizer, form: str, room: int) -> Scored:
    """A text of at most `room` ids behind a prompt of its label: TOPIC or APPLICATION."""
    prompt = tokenizer.encode(form.format(label))
    return Scored((*prompt, *tokenizer.encode(text)[:room]), len(prompt))


def inference(first: str, second: str, relation: str, tokenizer: Cpm1Tokenizer) -> Scored:
    """A hypothesis behind its premise and what says the relation."""
    prompt = tokenizer.encode(first + CONNECTIVES[relation])
    return Scored((*prompt, *tokenizer.encode(second)), len(prompt))


def scored_rows(
    items: Sequence[Scored], seq_len: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """ids [N, seq_len], and mask [N, seq_len - 1] of the inputs whose next id is scored."""
    ids = np.full((len(items), seq_len), pad_id, np.int32)
    mask = np.zeros((len(items), seq_len - 1), np.int32)
    for i, item in enumerate(items):
        ids[i, : len(item.ids)] = item.ids
        mask[i, item.num_prompt - 1 : len(item.ids) - 1] = 1
    return ids, mask


def _without_blanks(text: str) -> str:
    return "".join(text.split())
