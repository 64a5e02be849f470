"""Writes for a file of records: in the file's order, and from where an interrupted run stopped.

What is done is kept in a side file beside the output, one line each, as soon as it is written. When
all is done the lines are put in order and the side file goes. Of the records only those of one
window are in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from mindplm.config import GenerateConfig
from mindplm.data import prompts as prompting
from mindplm.errors import ConfigError, DataError, UserError
from mindplm.files import flush_folder
from mindplm.generate import fill
from mindplm.generate.engine import Engine
from mindplm.generate.layout import Layout
from mindplm.generate.policies import most_tokens, policy_maker, seeds_of, stream_of

if TYPE_CHECKING:
    from mindplm.generate.model import Model

SIDE = ".part"
_WINDOW = 64


@dataclass(frozen=True)
class Settings:
    """How the records of a file are written.

    Attributes:
        config: How to write.
        seed: The record on line n (from 0, empty lines not counted) uses seed + n.
        batch_size: Records at once.
        examples: Records with answers that each record is shown.
        model: What tells the model from others.
    """

    config: GenerateConfig
    seed: int = 0
    batch_size: int = 8
    examples: Sequence[Mapping[str, Any]] = ()
    model: str = ""


@dataclass
class Report:
    """What became of the records: all, those with an error, those done by an earlier run."""

    total: int = 0
    failed: int = 0
    resumed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.total} records"]
        parts += [f"{self.resumed} of them done before"] if self.resumed else []
        parts += [f"{self.failed} with an error in their place"] if self.failed else []
        return ", ".join(parts)


class FileJob:
    """Records of a JSON-lines file to filled records.

    Args:
        source: One record or text a line; empty lines do not count.
        out: The output; None: the results are only given out by `results`.
        settings: How to write.

    Raises:
        DataError: The file holds nothing.
        ConfigError: The side file belongs to a run with other settings.
    """

    def __init__(self, source: Path, out: Path | None, settings: Settings):
        if settings.batch_size < 1:
            raise ConfigError(f"batch_size={settings.batch_size}, expected at least 1")
        self.source, self.out, self.settings = source, out, settings
        self._lines, digest = _index(source)
        if not self._lines:
            raise DataError(f"{source} is empty, expected one record per line")
        seeds_of(settings.seed, 1)
        self.report = Report(total=len(self._lines))
        self._side = None if out is None else _Side(source, out, _header(digest, settings))
        if self._side:
            self.report.resumed = len(self._side.done)

    def run(self, model: Model, tokenizer: Any, *, progress: bool = True) -> Report:
        """Writes what is not done yet, then the output."""
        assert self._side is not None and self.out is not None
        done = self.report.resumed
        bar = tqdm(total=self.report.total, initial=done, unit="record", disable=not progress)
        with bar, self._side as side:
            for number, result in self.results(model, tokenizer, side.done):
                side.add(number, result)
                bar.update()
            self.report.failed = side.finish(len(self._lines), self.out)
        return self.report

    def results(
        self, model: Model, tokenizer: Any, done: Mapping[int, Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(number of the record, filled record or its error), window by window."""
        config, layout = self.settings.config, model.layout(tokenizer)
        engine = Engine(
            model.network,
            layout,
            buckets=config.buckets,
            batch_size=self.settings.batch_size,
            fill=len(self._lines) > self.settings.batch_size,
        )
        todo = [n for n in range(len(self._lines)) if n not in (done or {})]
        size = _WINDOW * self.settings.batch_size
        for first in range(0, len(todo), size):
            yield from self._window(todo[first : first + size], engine, layout)

    def _window(
        self, numbers: Sequence[int], engine: Engine, layout: Layout
    ) -> Iterator[tuple[int, Any]]:
        config = self.settings.config
        good: list[tuple[int, dict[str, Any], Any]] = []
        for number, place, line in self._read(numbers):
            try:
                record = prompting.as_record(parse_line(line))
                ready = layout.prepare(
                    record, strict=config.strict, examples=self.settings.examples
                )
                engine.check(ready, most_tokens(config, [ready]))
                good.append((number, record, ready))
            except UserError as error:
                yield number, {"error": f"{place}: {error}"}
        prompts = [ready for _, _, ready in good]
        seeds = [stream_of(self.settings.seed, number) for number, _, _ in good]
        written = engine.run(
            prompts,
            policy_maker(config, seeds, [record for _, record, _ in good]),
            rows_per_prompt=config.beams,
            max_new_tokens=most_tokens(config, prompts),
        )
        for i, found in written:
            number, record, ready = good[i]
            yield number, fill(record, ready, found, layout, config)

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, str, bytes]]:
        with open(self.source, "rb") as file:
            for number in numbers:
                offset, line = self._lines[number]
                file.seek(offset)
                yield number, f"{self.source}:{line}", file.readline()


def is_error(result: Any) -> bool:
    """Whether a result is the error of a record that could not be used."""
    return isinstance(result, dict) and set(result) == {"error"}


def check_output(path: Path) -> None:
    """Raises ConfigError for a file that cannot be written, before work is spent on it."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file for the output")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent} to write it in")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ConfigError(f"{path}: no permission to write it")


def parse_line(line: bytes) -> Any:
    """A line's JSON value.

    Raises:
        DataError: It is none.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text") from None
    except RecursionError:
        raise DataError("not JSON that can be used: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from None


class _Side:
    """The side file: a header, then a line for each record that is done, in any order."""

    def __init__(self, source: Path, out: Path, header: dict[str, Any]):
        if out.exists() and out.samefile(source):
            raise ConfigError(f"{out} is both input and output; name another output")
        self.path = out.with_name(out.name + SIDE)
        self.done: dict[int, tuple[int, int]] = {}
        self._header = (json.dumps(header, sort_keys=True) + "\n").encode()
        check_output(out)
        self._end = self._resume() if self.path.exists() else 0

    def __enter__(self) -> _Side:
        self._file: BinaryIO = open(self.path, "r+b" if self._end else "wb")  # noqa: SIM115
        self._file.seek(self._end)
        self._file.truncate()
        if not self._end:
            self._write(self._header)
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def add(self, number: int, result: Any) -> None:
        """Keeps a result."""
        failed = is_error(result)
        text = json.dumps(result, ensure_ascii=False)
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = json.dumps(result).encode()
        start = self._end + len(f"{number} {int(failed)} ")
        self._write(f"{number} {int(failed)} ".encode() + data + b"\n")
        self.done[number] = (start, int(failed))

    def finish(self, total: int, out: Path) -> int:
        """Writes the output and removes the side file; returns how many records failed."""
        self._file.flush()
        temporary = out.with_name(out.name + ".tmp")
        with open(temporary, "wb") as file, open(self.path, "rb") as side:
            for number in range(total):
                side.seek(self.done[number][0])
                file.write(side.readline())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
        flush_folder(out.resolve().parent)
        self.path.unlink()
        return sum(failed for _, failed in self.done.values())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        self._end += len(data)

    def _resume(self) -> int:
        """Finds what is done; returns where the whole lines end."""
        with open(self.path, "rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                return 0
            if header != self._header:
                raise ConfigError(
                    f"{self.path} is of an interrupted run with another input, model or settings "
                    f"({_difference(header, self._header)}); remove it, or name another output"
                )
            end = len(header)
            for line in file:
                number, _, rest = line.partition(b" ")
                if not line.endswith(b"\n") or not number.isdigit():
                    break
                self.done[int(number)] = (end + len(number) + 3, int(rest[:1] == b"1"))
                end += len(line)
        return end


def _index(source: Path) -> tuple[list[tuple[int, int]], str]:
    """(offset, line number) of each line that is not empty; checksum of the file."""
    lines, offset, digest = [], 0, hashlib.sha256()
    with open(source, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                lines.append((offset, number))
            offset += len(line)
            digest.update(line)
    return lines, digest.hexdigest()


def _header(digest: str, settings: Settings) -> dict[str, Any]:
    """What must be equal for a run to go on with another's results."""
    config = {k: v for k, v in asdict(settings.config).items() if k != "buckets"}
    shown = json.dumps(list(settings.examples), sort_keys=True, default=str)
    return {
        **json.loads(json.dumps(config)),
        "input": digest,
        "model": settings.model,
        "seed": settings.seed,
        "examples": hashlib.sha256(shown.encode()).hexdigest(),
    }


def _difference(theirs: bytes, ours: bytes) -> str:
    try:
        old, new = json.loads(theirs), json.loads(ours)
        names = [name for name in new if old.get(name) != new[name]]
    except (ValueError, AttributeError):
        return "its first line is not ours"
    return ", ".join(names) + " differ" if names else "its first line is not ours"
