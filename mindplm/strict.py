"""Typed dataclasses out of plain trees: every key is known, every value has its declared type.

Scalars are read as text and converted by the declared type of the field, so that `1e-4` is a
number, `no` stays a word, and what is refused can be named together with what is accepted.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import inspect
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mindplm.errors import ConfigError
from mindplm.yaml_io import parse_yaml

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where values come from, for messages.

    Attributes:
        name: File (or other place) that holds the tree.
        overrides: `key=value` texts that were laid over it, in order.
        known: All dotted keys of the schema, to find a key that was put into the wrong section.
    """

    name: str
    overrides: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def of(self, path: str) -> str:
        """Names the place that set a dotted key."""
        for text in reversed(self.overrides):
            key = text.partition("=")[0]
            if _within(path, key) or _within(key, path):
                return f"override {text}"
        return self.name

    def of_message(self, message: str, path: str) -> str:
        """Names the place of a failed check of a section whose message names what it looked at."""
        named = []
        for text in self.overrides:
            key = text.partition("=")[0]
            leaf = key.rpartition(".")[2]
            if key in message or (path and _within(key, path) and f"{leaf}=" in message):
                named.append(text)
        return " ".join(["override", *named]) if named else self.name


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


# --- overrides ------------------------------------------------------------------------------------


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays `key=value` texts over a tree; later ones win. The tree itself is not changed."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not all(key.split(".")) or key != key.strip():
            raise ConfigError(
                f"override {text!r} is not of the form key=value, such as optim.lr=1e-4"
            )
        _put(result, key.split("."), value, text)
    return result


def _put(tree: dict[str, Any], parts: list[str], value: str, text: str) -> None:
    node: Any = tree
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        key: Any = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) > len(node):
                raise ConfigError(
                    f"override {text}: {here} is a list of {len(node)}, "
                    f"expected a number from 0 to {len(node)} after it, got {part!r}"
                )
            key = int(part)
            if key == len(node):
                node.append(None)
        if depth == len(parts) - 1:
            node[key] = value
            return
        child = node[key] if isinstance(node, list) else node.get(key)
        child = _unfold(child, f"override {text}")
        if child is None:
            child = [] if parts[depth + 1].isdigit() else {}
        if not isinstance(child, (dict, list)):
            raise ConfigError(
                f"override {text}: {'.'.join(parts[: depth + 1])} is a value "
                f"({describe(child)}), it has no keys"
            )
        node[key] = child
        node = child


def _unfold(value: Any, source: str) -> Any:
    """Parses text such as [1, 2] or {lm: 1}; anything else is returned as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return parse_yaml(value, source)
    return value


# --- typed building -------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """A value as it should appear in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values" if value else "an empty section"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(key: str, accepted: Sequence[str], prefix: str = "", known: Sequence[str] = ()) -> str:
    """Says which accepted name was probably meant, or else what is accepted."""
    elsewhere = [path for path in known if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    close = difflib.get_close_matches(key, accepted, 1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"accepted: {', '.join(accepted)}"


def key_paths(kind: Any, prefix: str = "") -> list[str]:
    """Lists the dotted keys of a dataclass and of the dataclasses in it."""
    paths = []
    for name, hint in get_type_hints(kind).items():
        paths.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            paths += key_paths(hint, f"{prefix}{name}.")
    return paths


def build(kind: type[T], tree: Any, path: str, source: Source) -> T:
    """Builds a dataclass from a mapping; unknown, missing and ill-typed keys are ConfigErrors.

    Args:
        kind: The dataclass.
        tree: The mapping, None for an empty one.
        path: Dotted key of the mapping, "" for the root.
        source: Where the mapping comes from.
    """
    tree = _unfold(tree, source.of(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{source.of(path)}: {path or 'the file'} must be a section of keys and values, "
            f"got {describe(tree)}"
        )
    prefix = path + "." if path else ""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            hint = suggest(str(key), list(fields), prefix, source.known)
            raise ConfigError(f"{source.of(prefix + str(key))}: unknown key {prefix}{key}; {hint}")
    values = {key: convert(value, hints[key], prefix + key, source) for key, value in tree.items()}
    missing = []
    for name, field in fields.items():
        if name in values or not _required(field):
            continue
        if dataclasses.is_dataclass(hints[name]):
            values[name] = build(hints[name], {}, prefix + name, source)  # type: ignore[arg-type]
        else:
            missing.append(prefix + name)
    if missing:
        raise ConfigError(f"{source.name}: missing {', '.join(missing)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{source.of_message(str(error), path)}: {error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: Any, kind: Any, path: str, source: Source) -> Any:
    """Converts one value to its declared type or raises ConfigError."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Union:
        inner = [arg for arg in args if arg is not type(None)]
        if value is None:
            return None
        return convert(value, inner[0], path, source)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path, source)  # type: ignore[arg-type]
    if origin in (list, tuple):
        return _sequence(value, origin, args, path, source)
    if origin is dict:
        value = _unfold(value, source.of(path))
        if not isinstance(value, Mapping):
            raise _refused(value, "a mapping such as {name: value}", path, source)
        return {
            convert(key, args[0], f"{path}.{key}", source): convert(
                item, args[1], f"{path}.{key}", source
            )
            for key, item in value.items()
        }
    if origin is Literal:
        if value in args:
            return value
        hint = suggest(str(value), [str(arg) for arg in args])
        if hint.startswith("did"):
            hint += f" (accepted: {', '.join(map(str, args))})"
        raise ConfigError(f"{source.of(path)}: {path}={value} is not accepted; {hint}")
    result = _scalar(value, kind)
    if result is None:
        raise _refused(value, _ACCEPTED[kind], path, source)
    return result


def _refused(value: Any, accepted: str, path: str, source: Source) -> ConfigError:
    return ConfigError(f"{source.of(path)}: {path}: expected {accepted}, got {describe(value)}")


def _sequence(value: Any, origin: Any, args: tuple[Any, ...], path: str, source: Source) -> Any:
    value = _unfold(value, source.of(path))
    if not isinstance(value, (list, tuple)):
        raise _refused(value, "a list such as [a, b]", path, source)
    kinds: Sequence[Any]
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        kinds = [args[0]] * len(value)
    elif len(args) != len(value):
        raise _refused(value, f"a list of {len(args)}", path, source)
    else:
        kinds = args
    items = [
        convert(item, kind, f"{path}.{i}", source)
        for i, (item, kind) in enumerate(zip(value, kinds))
    ]
    return origin(items)


_ACCEPTED = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text (put it in quotes)",
}


def _scalar(value: Any, kind: type) -> Any:
    """Converts to int, float, bool or str; None if the value cannot be read as that."""
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}.get(str(value).lower())
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        if kind is int and not isinstance(value, float):
            return int(value)
    except ValueError:
        pass  # 1e5 is a whole number too
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    if kind is int:
        return int(number) if number == int(number) else None
    return number


def to_plain(value: Any) -> Any:
    """Turns dataclasses and tuples into dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def field_help(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass, or under that of the one it is derived from."""
    result = {f.name: "" for f in dataclasses.fields(kind)}
    for part in [c for c in reversed(kind.__mro__) if dataclasses.is_dataclass(c)]:
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:]):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(following, ast.Expr):
                continue
            if isinstance(following.value, ast.Constant) and isinstance(statement.target, ast.Name):
                result[statement.target.id] = " ".join(str(following.value.value).split())
    return result


def sections(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The dataclasses of a tree by their dotted prefix; of a list only the first."""
    result = {prefix: tree}
    for f in dataclasses.fields(tree):
        value = getattr(tree, f.name)
        if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            result.update(sections(value[0], f"{prefix}{f.name}.0."))
        elif dataclasses.is_dataclass(value):
            result.update(sections(value, f"{prefix}{f.name}."))
    return result


def help_lines(tree: Any) -> list[str]:
    """One line for each key: its value, what it means, and the words it takes if they are few."""
    lines = []
    for prefix, section in sections(tree).items():
        hints = get_type_hints(type(section))
        for name, text in field_help(type(section)).items():
            value = getattr(section, name)
            if not text or dataclasses.is_dataclass(value):
                continue
            if get_origin(hints[name]) is Literal:
                text += f" One of: {', '.join(map(str, get_args(hints[name])))}."
            shown = value if isinstance(value, (str, int, float, bool)) else to_plain(value)
            if isinstance(shown, list) and any(isinstance(item, dict) for item in shown):
                shown = describe(shown)
            lines.append(f"{prefix}{name}={shown}  # {text}")
    return lines


# --- checks for __post_init__ ---------------------------------------------------------------------


def require(fact: bool, message: str) -> None:
    """Raises ConfigError with the message unless the fact holds."""
    if not fact:
        raise ConfigError(message)


def at_least(section: str, config: Any, **limits: float) -> None:
    """Checks fields of a section against their lowest values."""
    for name, limit in limits.items():
        value = getattr(config, name)
        require(value >= limit, f"{section}.{name}={value}, expected >= {limit}")


def between(section: str, config: Any, low: float, high: float, *names: str) -> None:
    """Checks that fields of a section are in low <= value < high."""
    for name in names:
        value = getattr(config, name)
        require(low <= value < high, f"{section}.{name}={value}, expected {low} <= value < {high}")
