"""What a family tells the engine about its prompts: how they are read, fed on and turned to text.

The engine knows token ids, rows and columns only. A family brings one class with the methods of
`Layout`; it is made of a tokenizer and the settings of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mindplm.generate.rows import Feed, Pairs, Plan


class Blank(Protocol):
    """A text to be written."""

    @property
    def number(self) -> int:
        """From 1 on."""

    @property
    def path(self) -> tuple[str, ...]:
        """Keys below `<ans>`; () if that is the text itself."""


class Prompt(Protocol):
    """A record that is ready to be read."""

    @property
    def blanks(self) -> Sequence[Blank]:
        """What is to be written."""

    def __len__(self) -> int:
        """Tokens."""


class Steps(Protocol):
    """The columns of the steps of one batch, besides the parents."""

    @property
    def fixed(self) -> Sequence[np.ndarray]:
        """Those that never change; they come after the changing ones."""

    def columns(self, feed: Feed, parents: np.ndarray, slot: int) -> list[np.ndarray]:
        """Those that change.

        Args:
            feed: The tokens that are read now.
            parents: The row that each row goes on from.
            slot: The place of the tokens in the caches.
        """


class Batch(Protocol):
    """Prompts of one bucket, ready for the network."""

    @property
    def columns(self) -> Sequence[np.ndarray]:
        """What the first call takes."""

    @property
    def tables(self) -> Sequence[dict[int, str]]:
        """For each prompt the texts of classes that the vocabulary does not hold."""

    @property
    def first_slot(self) -> int | None:
        """Place of the first written token in the caches; None: behind the longest prompt."""

    def plan(self, num: int) -> Plan:
        """The plan of the first `num` prompts; the others are copies."""

    def steps(self, rows: np.ndarray, cache_len: int) -> Steps:
        """The columns of the steps; `rows` names the prompt of each row of the caches."""


class Layout(Protocol):
    """A family's side of writing."""

    def prepare(
        self, record: Mapping[str, Any], *, strict: bool, examples: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Turns a record into a prompt.

        Raises:
            DataError: It cannot be used.
        """

    def check(self, prompt: Any, max_new_tokens: int) -> None:
        """Raises DataError if the model cannot hold the prompt and so many tokens more."""

    def room(self, prompts: Sequence[Any]) -> Any:
        """Further sizes that all batches of a call share."""

    def batch(self, prompts: Sequence[Any], bucket: int, room: Any) -> Batch:
        """Lays prompts side by side."""

    def answers(
        self, pairs: Pairs, prompt: Any, table: Mapping[int, str], stop: Sequence[str] = ()
    ) -> list[str | None]:
        """A text for each blank; None for those that were not reached."""

    def answer(
        self,
        classes: Sequence[int],
        table: Mapping[int, str],
        stop: Sequence[str] = (),
        *,
        is_open: bool = False,
    ) -> str:
        """The text of one blank.

        Args:
            classes: What was written, with or without the end mark.
            table: Texts of classes.
            stop: The text ends before the first of these.
            is_open: More may follow: what may yet change is left out.
        """

    def is_end(self, token: int) -> bool:
        """Whether a class ends a blank."""
