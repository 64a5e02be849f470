"""What two sets of documents have in common, and repetitions in one."""

from __future__ import annotations

from typing import Any

from mindplm.data.documents import Document
from mindplm.data.overlap import Mark, fixed_texts, mark_of, overlap, repeats


def marks(*records: dict[str, Any], place: str = "a") -> list[Mark]:
    return [mark_of(Document(f"{place}:{i}", r)) for i, r in enumerate(records, start=1)]


def asked(text: str, answer: str, question: str = "好吗？") -> dict[str, Any]:
    return {"input": text, "question": question, "<ans>": answer}


def test_the_same_text_with_another_question_or_spacing_is_found() -> None:
    train = marks(*(asked(f"text {i}", "x") for i in range(12)))
    valid = marks(
        *(asked(f"other {i}", "x", "怎样？") for i in range(9)),
        asked("Text  3", "x", "怎样？"),
        asked("ｔｅｘｔ４", "y", "怎样？"),
        place="b",
    )
    found = overlap([train], [valid])
    assert (found.total, found.count, found.with_answer) == (11, 2, 1)
    assert found.first == [("b:10", "a:4"), ("b:11", "a:5")]


def test_answers_and_parts_are_no_overlap() -> None:
    train = marks({"input": "a", "passage": "p", "<ans>": "x"})
    valid = marks({"input": "b", "passage": "p", "<ans>": "a"}, {"input": "", "<ans>": "x"})
    assert overlap([train], [valid]).count == 0


def test_repeats_within_a_set() -> None:
    found = repeats([marks(asked("a", "x"), asked("b", "x"), asked("a", "y"), asked("a", "x"))])
    assert (found.total, found.count, found.with_answer) == (4, 2, 1)
    assert found.first == [("a:3", "a:1"), ("a:4", "a:1")]


def test_few_documents_have_no_fixed_texts() -> None:
    assert not fixed_texts([marks(asked("a", "x"), asked("a", "x"))])
    assert len(fixed_texts([marks(*(asked(str(i), "x") for i in range(6)))])) == 1
