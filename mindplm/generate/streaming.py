"""Text as it is written: pieces that are certain, none of them half a character."""

from __future__ import annotations

from collections.abc import Iterator

from mindplm.config import GenerateConfig
from mindplm.generate.engine import Engine, PolicyMaker
from mindplm.generate.layout import Layout, Prompt
from mindplm.generate.policies import most_tokens
from mindplm.generate.rows import Pairs


class Piece(str):
    """A piece of text; `path` holds the keys of its blank below `<ans>`, () if there is but one."""

    path: tuple[str, ...]

    def __new__(cls, text: str, path: tuple[str, ...] = ()) -> Piece:
        piece = super().__new__(cls, text)
        piece.path = path
        return piece


def pieces(
    engine: Engine, prompt: Prompt, layout: Layout, config: GenerateConfig, policies: PolicyMaker
) -> Iterator[Piece]:
    """Writes for one prompt.

    With beams, what all beams that can still win agree on is given out; with stop strings an end
    that may become one is held back.
    """
    steps = engine.stream(
        prompt,
        policies,
        rows_per_prompt=config.beams,
        max_new_tokens=most_tokens(config, [prompt]),
    )
    shown = [0] * len(prompt.blanks)
    for pairs, table, is_all in steps:
        for place, text in _texts(pairs, table, prompt, layout, config.stop, is_all):
            if len(text) > shown[place]:
                yield Piece(text[shown[place] :], prompt.blanks[place].path)
                shown[place] = len(text)


def _texts(
    pairs: Pairs,
    table: dict[int, str],
    prompt: Prompt,
    layout: Layout,
    stop: tuple[str, ...],
    is_all: bool,
) -> Iterator[tuple[int, str]]:
    """(place of a blank, its certain text) for each blank that was reached."""
    if not pairs:
        return
    for place, blank in enumerate(prompt.blanks):
        classes = [token for token, number in pairs if number == blank.number]
        if not classes:
            continue
        is_open = not is_all and pairs[-1][1] == blank.number and not layout.is_end(classes[-1])
        yield place, layout.answer(classes, table, stop, is_open=is_open)
