"""Strict YAML: scalars stay text, duplicate keys are errors, errors name file and line."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mindplm.errors import ConfigError


class _Loader(yaml.BaseLoader):
    """Scalars stay text, an empty or null scalar is None, duplicate keys are errors."""

    def construct_scalar(self, node: Any) -> Any:
        if node.style is None and node.value in ("", "~", "null"):
            return None
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = True) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key} is given twice, first on line {lines[key]}",
                    key_node.start_mark,
                )
            lines[key] = line
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> Any:
        plain = not any(isinstance(item, (dict, list)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


_Dumper.add_representer(list, lambda dumper, value: dumper.represent_list(value))


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML text into dicts, lists, text and None; raises ConfigError with the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{source}:{mark.line + 1}" if mark is not None else source
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not readable as YAML: {reason}") from error


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that must hold one mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_neighbours(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        raise ConfigError(f"{path}: is empty, expected keys and values such as family: cpm_bee")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(tree).__name__}")
    return tree


def load_plain(path: Path) -> Any:
    """Reads a file that `dump_yaml` wrote; values keep their types."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read back: {str(error)[:200]}") from error


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; folder {folder} does not exist either"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    close = difflib.get_close_matches(path.name, names, 1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; {folder} has {', '.join(names[:8])}" if names else ""


def dump_yaml(tree: Any) -> str:
    """Writes dicts, lists and plain values as YAML text, keys in the given order."""
    return yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=100,
    )
