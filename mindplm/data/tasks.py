"""Tasks: how a text becomes a CPM-Bee record, with wording drawn at random.

  lm      the text is cut in two; the left part is given, the right part is the answer
  write   the whole text is the answer, to an empty input or an instruction
  infill  pieces of the text are replaced by <mask_0>, <mask_1> ..., the pieces are the answers
  record  the document is a record already and is taken as it is

Every draw depends on the seed, the source, the document's number in it and the number of the
draw, never on the order in which documents are worked on. Text is escaped, so it holds no tags.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mindplm.data.cpm_bee import ANSWER
from mindplm.errors import ConfigError
from mindplm.tokenizers.cpm_bee import escape

TASKS = ("lm", "write", "infill", "record")
_LONGEST_EXTRA = 40
_VERSE_LINE = 40

# The first name of each list is drawn half of the time: it is what a prompt by hand will use.
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "text": ("input", "文本", "正文", "上文", "内容"),
        "prompt": ("prompt", "任务", "要求", "提示"),
        "title": ("title", "题目", "标题"),
        "author": ("author", "作者"),
    },
    "en": {
        "text": ("input", "text", "passage", "document", "source"),
        "prompt": ("prompt", "task", "instruction", "hint"),
        "title": ("title", "heading"),
        "author": ("author", "writer"),
    },
}
_PROMPTS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "lm": ("续写", "接着往下写", "把后面的内容写出来", "顺着上文写完"),
        "lm verse": ("续写这首诗", "把这首诗写完", "接下去写完整首诗"),
        "write": ("写一段话", "随意写一段文字", "写一篇短文"),
        "write verse": ("写一首诗", "作诗一首", "吟一首诗"),
        "infill": ("填空", "把空缺处补全", "写出空白处的文字"),
    },
    "en": {
        "lm": ("Continue the text", "Write what comes next", "Carry on from here"),
        "lm verse": ("Continue the poem", "Finish this poem"),
        "write": ("Write a text", "Write a short passage", "Write something"),
        "write verse": ("Write a poem", "Compose a poem"),
        "infill": ("Fill in the blanks", "Supply the missing words", "Complete the gaps"),
    },
}
_UNIT = re.compile(r"[^\W\u3400-\u9fff]+(?:['’-][^\W\u3400-\u9fff]+)*|\s+|.", re.DOTALL)
_SENTENCE_END = re.compile(r"[。！？；…](?=[^”’」』）。！？…])|[.!?;](?=\s)")


def check_tasks(tasks: Mapping[str, float], where: str, accepted: tuple[str, ...] = TASKS) -> None:
    """Refuses names that are no task."""
    for name in tasks:
        if name not in accepted:
            known = ", ".join(accepted)
            raise ConfigError(f"{where}: task {name!r} is not known; accepted: {known}")


def generator(seed: int, source: str, number: int, draw: int) -> np.random.Generator:
    """The random stream of one draw from one document."""
    key = int.from_bytes(_stream_key(seed, source, number, draw), "little")
    return np.random.Generator(np.random.Philox(key=key))


def _stream_key(seed: int, source: str, number: int, draw: int) -> bytes:
    name = f"{seed}\n{source}\n{number}\n{draw}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


class Streams:
    """Gives what `generator` gives, quickly; what was given before is not to be used any more."""

    def __init__(self) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=0))
        self._begin = self._generator.bit_generator.state

    def __call__(self, seed: int, source: str, number: int, draw: int) -> np.random.Generator:
        """The random stream of one draw from one document."""
        key = np.frombuffer(_stream_key(seed, source, number, draw), np.uint64)
        counter = self._begin["state"]["counter"]
        state = {**self._begin, "state": {"counter": counter, "key": key}}
        self._generator.bit_generator.state = state
        return self._generator


def choose_task(tasks: Mapping[str, float], rng: np.random.Generator) -> str:
    """Draws one of the tasks for texts by weight."""
    names = [name for name, weight in tasks.items() if weight > 0 and name != "record"]
    mark = rng.random() * sum(tasks[name] for name in names)
    for name in names[:-1]:
        mark -= tasks[name]
        if mark < 0:
            return name
    return names[-1]


def make_record(
    task: str,
    text: str,
    document: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    max_blanks: int = 8,
) -> dict[str, Any]:
    """Makes a record of a text by one of the tasks lm, write, infill.

    Args:
        task: Name of the task.
        text: The text, or a piece of it, unescaped.
        document: The fields that the text came with; title and author may go into the record.
        rng: Source of all choices.
        max_blanks: Most blanks of an infill record.
    """
    language = language_of(text)
    verse = is_verse(text)
    record: dict[str, Any] = {}
    text_key = _pick(_NAMES[language]["text"], rng)
    with_prompt = rng.random() < 0.5
    answer: Any
    if task == "write":
        if not with_prompt or rng.random() < 0.5:
            record[text_key] = ""
        answer = escape(text)
    elif task == "lm":
        cut = _cut(text, verse, rng)
        record[text_key] = escape(text[:cut])
        answer = escape(text[cut:])
    else:
        record[text_key], answer = _blanks(text, verse, max_blanks, rng)
    if rng.random() < (0.4 if verse else 0.2):
        _add_extras(record, document, language, rng)
    if with_prompt:
        kind = f"{task} verse" if verse and task != "infill" else task
        key = _pick(_NAMES[language]["prompt"], rng)
        record[key] = escape(_pick(_PROMPTS[language][kind], rng))
    record[ANSWER] = answer
    return record


def language_of(text: str) -> str:
    """zh if at least a tenth of the beginning is Chinese characters, else en."""
    beginning = text[:1000]
    if beginning.isascii() and beginning:
        return "en"
    units = np.frombuffer(beginning.encode("utf-16-le", "surrogatepass"), np.uint16)
    count = np.count_nonzero(units - np.uint16(0x3400) <= 0x9FFF - 0x3400)  # below, it wraps
    return "zh" if 10 * count >= len(beginning) else "en"


def is_verse(text: str) -> bool:
    """Whether a text has several lines and all of them are short."""
    lines = text.strip().split("\n")
    return len(lines) > 1 and all(len(line) <= _VERSE_LINE for line in lines)


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    mark = rng.random()
    if mark < 0.5 or len(names) == 1:
        return names[0]
    return names[1 + int((mark - 0.5) * 2 * (len(names) - 1))]


def _add_extras(
    record: dict[str, Any], document: Mapping[str, Any], language: str, rng: np.random.Generator
) -> None:
    for field in ("title", "author"):
        value = document.get(field)
        if isinstance(value, str) and 0 < len(value) <= _LONGEST_EXTRA and rng.random() < 0.7:
            record[_pick(_NAMES[language][field], rng)] = escape(value)


def _cut(text: str, verse: bool, rng: np.random.Generator) -> int:
    """Where the answer begins: 0 sometimes, early more often than late.

    A line break goes to the answer, so that the given part ends like text typed by hand; so does
    a space between words, like in the vocabulary's entries.
    """
    kind, mark = rng.random(), rng.random()
    if kind < 0.1 or len(text) < 2:
        return 0
    ends: list[int] = []
    if verse and kind < 0.7:
        ends = [i for i, c in enumerate(text) if c == "\n"]
    elif kind < 0.4:
        ends = [m.end() for m in _SENTENCE_END.finditer(text)]
    if ends:
        return ends[int(mark * len(ends))]
    cut = 1 + int(mark * mark * (len(text) - 1))
    near = [*range(cut, max(0, cut - 20), -1), *range(cut + 1, min(cut + 20, len(text)))]
    for at in near:
        left, right = text[at - 1], text[at]
        if not (_is_letter(left) and _is_letter(right)):
            return at - 1 if left == " " and at > 1 else at
    return cut


def _is_letter(character: str) -> bool:
    """Whether a character is part of a word that is not cut."""
    return character.isascii() and character.isalnum()


def _blanks(
    text: str, verse: bool, max_blanks: int, rng: np.random.Generator
) -> tuple[str, dict[str, str]]:
    """The text with blanks, and what stands in them; at least one, never two side by side."""
    bounds = [m.start() for m in _UNIT.finditer(text)] + [len(text)]
    units = len(bounds) - 1
    most = max(1, min(max_blanks, units // 6))
    number = 1 + int(rng.random() * most)
    mean = 3.0 if not verse else 2.0
    parts: list[str] = []
    answers: dict[str, str] = {}
    done = 0
    for k in range(number):
        low, high = k * units // number, (k + 1) * units // number
        start, end = _span(text, bounds, low, high - (number > 1), mean, rng)
        name = f"<mask_{len(answers)}>"
        parts += [escape(text[done:start]), name]
        answers[name] = escape(text[start:end])
        done = end
    return "".join(parts) + escape(text[done:]), answers


def _span(
    text: str, bounds: list[int], low: int, high: int, mean: float, rng: np.random.Generator
) -> tuple[int, int]:
    """A stretch of whole units between two bounds, without white space at its ends if it can be."""
    room = max(1, high - low)
    size = min(room, 1 + int(-mean * np.log1p(-rng.random())))
    first = low + int(rng.random() * (room - size + 1))
    if text[bounds[first] : bounds[first + size]].isspace():
        first = first - 1 if first > low else min(first + 1, high - size)
    start, end = bounds[first], bounds[first + size]
    piece = text[start:end]
    if piece.strip():
        start += len(piece) - len(piece.lstrip())
        end -= len(piece) - len(piece.rstrip())
    return start, end
