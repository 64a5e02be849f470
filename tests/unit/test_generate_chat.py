"""Dialogues: what the model is shown, what is remembered, and what is left out."""

from __future__ import annotations

import argparse
import io
import sys

import pytest
from test_generate_engine import TOKENIZER, model

from mindplm import cli_write
from mindplm import generate as writing
from mindplm.config import GenerateConfig, RuntimeConfig
from mindplm.errors import ConfigError, DataError
from mindplm.generate import generate
from mindplm.generate.chat import STOP, Chat
from mindplm.generate.policies import stream_of

OPTIONS = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def test_a_turn_is_the_record_of_the_published_form() -> None:
    chat = Chat(model(), TOKENIZER, **OPTIONS)
    shown = "".join(chat.say("ab"))
    record = {"input": "用户： ab\n<sep>AI：", "<ans>": ""}
    whole = generate(model(), TOKENIZER, [record], stop=STOP, **OPTIONS)[0]["<ans>"]
    assert shown == whole.lstrip(" ")
    assert chat.turns == [("ab", shown)]
    again = "".join(chat.say("1 < b"))
    first = f" {shown.strip()}" if shown.strip(" \n") else ""
    text = f"用户： ab\n<sep>AI：{first}\n<sep>用户： 1 << b\n<sep>AI："
    options = {**OPTIONS, "seed": [stream_of(3, 1)]}
    record = {"input": text, "<ans>": ""}
    whole = generate(model(), TOKENIZER, [record], stop=STOP, strict=True, **options)[0]["<ans>"]
    assert again == whole.lstrip(" ")
    chat.reset()
    assert (chat.turns, chat.dropped) == ([], 0)
    assert "".join(chat.say("ab")) == shown


def test_the_system_stands_before_the_first_turn() -> None:
    chat = Chat(model(), TOKENIZER, system="cd <", **OPTIONS)
    shown = "".join(chat.say("ab"))
    record = {"input": "cd <<\n<sep>用户： ab\n<sep>AI：", "<ans>": ""}
    whole = generate(model(), TOKENIZER, [record], stop=STOP, strict=True, **OPTIONS)[0]["<ans>"]
    assert shown == whole.lstrip(" ")


def test_the_oldest_turns_are_left_out_when_the_window_is_full() -> None:
    chat = Chat(model(), TOKENIZER, buckets=(64,), **OPTIONS)
    dropped = []
    for _ in range(6):
        list(chat.say("abcdefgh"))
        dropped.append(chat.dropped)
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert 0 < dropped[-1] < 6
    assert len(chat.turns) == 6
    with pytest.raises(DataError, match="this turn takes .* leave room for 63"):
        list(chat.say("a" * 100))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="no setting beem"):
        Chat(model(), TOKENIZER, beem=1)
    with pytest.raises(ConfigError, match="seed=-1"):
        Chat(model(), TOKENIZER, seed=-1)


def test_the_command_reads_turns_and_says_when_it_forgets(monkeypatch, capsys) -> None:
    config = GenerateConfig(max_new_tokens=6, temperature=1.0, buckets=(64,))
    monkeypatch.setattr(cli_write, "settings_of", lambda _: (config, RuntimeConfig(), None))
    monkeypatch.setattr(writing, "load", lambda *_, **__: (model(), TOKENIZER))
    lines = ["abcdefgh"] * 4 + ["", "/new", "abcdefgh", "a" * 99, "b"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    parser = argparse.ArgumentParser()
    cli_write.add_chat(parser)
    cli_write.chat(parser.parse_args([], argparse.Namespace(model="x")))
    out, err = capsys.readouterr()
    assert "mindplm: the window is full, the oldest" in err
    assert "mindplm: error: this turn takes" in err
    chat = Chat(model(), TOKENIZER, config)
    assert out.startswith("".join(chat.say("abcdefgh")).replace("<<", "<"))
