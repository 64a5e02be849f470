"""A dialogue with a model: keeps what was said, and leaves out the oldest turns when it must.

The record that is asked holds all turns in one text, in the form in which the published
checkpoints saw dialogues; see `mindplm.text.dialogue`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mindplm.config import GenerateConfig
from mindplm.data.cpm_bee import ANSWER
from mindplm.errors import DataError
from mindplm.generate.engine import Engine
from mindplm.generate.layout import Prompt
from mindplm.generate.policies import policy_maker, seeds_of, stream_of, with_changes
from mindplm.generate.streaming import Piece, pieces
from mindplm.text import SPEAKERS, escape_lenient

if TYPE_CHECKING:
    from mindplm.generate.model import Model

STOP = ("<sep>", "\n用户：", "<用户>")
"""Where an answer ends besides its end mark: the model began the user's next turn."""
_USER, _MODEL = SPEAKERS


class Chat:
    """A dialogue.

    Attributes:
        turns: What was said: (text of the user, answer), the oldest first.
        dropped: How many of the oldest turns the model does not see any more.

    Args:
        model: From `load`.
        tokenizer: From `load`.
        settings: How to write.
        seed: Of the drawing; turn n uses seed + n.
        system: What stands before all turns and is never left out, as in dialogues to learn from
            the message of the system.
        **changes: Fields of GenerateConfig that win over `settings`.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        settings: GenerateConfig | None = None,
        *,
        seed: int = 0,
        system: str = "",
        **changes: Any,
    ):
        config = with_changes(settings, changes)
        self._config = with_changes(config, {"stop": (*config.stop, *STOP), "strict": False})
        self._tokenizer = tokenizer
        seeds_of(seed, 1)
        self._seed, self._system = seed, system
        self._form = model.layout(tokenizer)
        self._engine = Engine(model.network, self._form, buckets=self._config.buckets, batch_size=1)
        self._window = self._config.buckets[-1] - 1
        self.turns: list[tuple[str, str]] = []
        self.dropped = 0

    def say(self, text: str) -> Iterator[Piece]:
        """Says something and gives out the answer as it is written.

        The turn is remembered when the answer is complete. A literal `<` in the pieces is doubled.

        Raises:
            DataError: The text alone is too long, or cannot be used.
        """
        record, prompt = self._prompt(text)
        number = len(self.turns)
        answer: list[str] = []
        random_stream = stream_of(self._seed, number)
        policies = policy_maker(self._config, [random_stream], [record])
        written = pieces(self._engine, prompt, self._form, self._config, policies)
        for piece in written:
            # The form puts a space before the answer.
            shown = piece if answer else Piece(piece.lstrip(" "), piece.path)
            if shown:
                answer.append(shown)
                yield shown
        self.turns.append((text, "".join(answer)))

    def reset(self) -> None:
        """Forgets what was said."""
        self.turns.clear()
        self.dropped = 0

    def _prompt(self, text: str) -> tuple[dict[str, str], Prompt]:
        """The dialogue with a new turn; drops old turns until it fits."""
        while True:
            record = {"input": self._layout(text), ANSWER: ""}
            prompt = self._form.prepare(record, strict=False, examples=())
            if len(prompt) <= self._window:
                return record, prompt
            if self.dropped == len(self.turns):
                raise DataError(
                    f"this turn takes {len(prompt)} tokens, generate.buckets leave room for "
                    f"{self._window}; shorten it"
                )
            self.dropped += 1

    def _layout(self, text: str) -> str:
        tags = [tag for tag in self._tokenizer.special_tokens if tag not in SPEAKERS]

        def quiet(said: str) -> str:
            """A turn's text whose own markers, if any, are plain text."""
            return escape_lenient(said, tags)

        said = "".join(
            f"{_USER}{quiet(user)}{_MODEL}{quiet(answer)}"
            for user, answer in self.turns[self.dropped :]
        )
        return f"{quiet(self._system)}{said}{_USER}{quiet(text)}{_MODEL}"
