"""Dialogues as lists of messages, as records whose answers are what the model says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindplm.data.cpm_bee import ANSWER
from mindplm.errors import DataError
from mindplm.text import SPEAKERS, dialogue, escape

_LISTS = ("messages", "conversations", "dialogue")
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text")
_USER, _MODEL = SPEAKERS
_ROLES = {
    "system": "",
    **dict.fromkeys(("user", "human", "用户"), _USER),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai", "AI"), _MODEL),
}
"""Who speaks -> marker of the turn; what the system says stands before the first marker."""


def dialogue_records(
    fields: Mapping[str, Any], *, together: bool = False, markers: bool = False
) -> list[tuple[dict[str, Any], tuple[Any, ...]]]:
    """Records of a dialogue, each with its references.

    Args:
        fields: Holds a list of messages such as {"role": "user", "content": "..."} under
            messages, conversations or dialogue.
        together: One record with all answers as blanks, instead of one for each answer.
        markers: The vocabulary has the markers as tags, so turns are not laid out.

    Raises:
        DataError: There is no list of messages, a message cannot be used, or none is the model's.
    """
    turns = _turns(fields)
    if not any(marker == _MODEL and said for marker, said in turns):
        raise DataError("no message is the model's, so there is nothing to learn")
    lay = str if markers else dialogue
    gap = "" if markers else " "
    made: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
    if together:
        text = ""
        answers: dict[str, str] = {}
        for marker, said in turns:
            if marker == _MODEL:
                name = f"<mask_{len(answers)}>"
                answers[name], said = said, name
            text += marker + (said if marker == _MODEL else escape(said))
        record = {"input": lay(text), ANSWER: {k: escape(v) for k, v in answers.items()}}
        return [(record, (answers,))]
    text = ""
    for marker, said in turns:
        if marker == _MODEL:
            record = {"input": lay(text + marker), ANSWER: gap + escape(said)}
            made.append((record, (said,)))
        text += marker + escape(said)
    return made


def _turns(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(marker, text) of each message."""
    messages = next((fields[name] for name in _LISTS if name in fields), None)
    if not isinstance(messages, list) or not messages:
        keys = ", ".join(fields) or "none"
        raise DataError(f"no list of messages under {', '.join(_LISTS)} (keys: {keys})")
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} is no object with a role and a content")
        role = next((message[key] for key in _ROLE_KEYS if key in message), None)
        text = next((message[key] for key in _TEXT_KEYS if key in message), None)
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise DataError(f"message {number} has role {role!r}; accepted: {known}")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"message {number} has no text")
        if role == "system" and number > 1:
            raise DataError(f"message {number} is the system's, which must be the first")
        turns.append((_ROLES[role], text.strip(" \n")))
    return turns
