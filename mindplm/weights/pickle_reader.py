"""A pickle reader that executes nothing: it knows tensors, dictionaries and plain values.

Python's own machine calls what a pickle names. This one walks over the instructions and builds
only inert values; a name outside the short list below is refused and told, and nothing is ever
imported, called or looked up by a name from the file.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from mindplm.errors import CheckpointError
from mindplm.tensors import BF16

_TYPES: dict[str, np.dtype] = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": BF16,
    "Double": np.dtype("<f8"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
STORAGES = {f"torch {name}Storage": dtype for name, dtype in _TYPES.items()}
"""Names of storage classes, as a pickle has them, and what they hold."""
ORDERED_DICT = "collections OrderedDict"
REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_CALLABLE = {ORDERED_DICT, REBUILD, _PARAMETER}
_MAX_AXES = 16
_MAX_STEPS = 4_000_000
"""A tensor takes about forty instructions; each can put something of 50 bytes on the stack."""


@dataclass(frozen=True)
class Global:
    """A name on the short list; it stands for itself and can do nothing."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of values in a file."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data: bytes) -> Any:
    """Reads the pickle of a PyTorch file into plain values, dictionaries and `Tensor`.

    Raises:
        CheckpointError: It is damaged, or asks for anything that is not on the list.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in texts
            for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if number == _MAX_STEPS:
                    raise CheckpointError(f"refused: its pickle has over {_MAX_STEPS:,} steps")
                if opcode.name == "STOP":
                    (value,) = machine.stack
                    return value
                machine.step(opcode.name, argument)
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error, MemoryError):
        pass
    raise CheckpointError("its pickle is damaged")


_PLAIN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    """The stack, the marks and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name == "INST":
            raise _asks(argument)
        elif name.startswith("EXT"):
            raise CheckpointError(f"refused: its pickle asks for extension code {argument}")
        else:
            raise CheckpointError(f"refused: its pickle uses {name}, which no set of tensors needs")

    # Marks and containers.

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.above_mark()

    def pop_mark(self, _: Any) -> None:
        self.above_mark()

    def marked_tuple(self, _: Any) -> None:
        items = tuple(self.above_mark())
        self.stack.append(items)

    def short_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def marked_list(self, _: Any) -> None:
        items = self.above_mark()
        self.stack.append(items)

    def marked_dict(self, _: Any) -> None:
        items = self.above_mark()
        self.stack.append({})
        self._fill(items)

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.above_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self.above_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys = items[::2]
        # Nested tuples as keys could take forever to hash, long numbers to print.
        if type(target) is not dict or not all(map(_is_key, keys)):
            raise TypeError
        if len(items) % 2:
            raise ValueError
        target.update(zip(items[::2], items[1::2]))

    # The memo.

    def put(self, index: Any) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    # Names and what is made with them.

    def ask(self, name: Any) -> None:
        if name not in _CALLABLE and name not in STORAGES:
            raise _asks(name)
        self.stack.append(Global(name))

    def ask_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError
        self.ask(f"{module} {name}")

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or function.name not in _CALLABLE:
            what = (
                function.name.replace(" ", ".")
                if type(function) is Global
                else type(function).__name__
            )
            raise CheckpointError(f"refused: its pickle wants to call {what[:80]}")
        if type(arguments) is not tuple:
            raise TypeError
        if function.name == ORDERED_DICT:
            self.stack.append({})
            for pair in arguments[0] if arguments else []:
                if type(pair) not in (list, tuple) or len(pair) != 2:
                    raise TypeError
                self._fill(list(pair))
        elif function.name == REBUILD:
            self.stack.append(_tensor(*arguments[:4]))
        else:
            if type(arguments[0]) is not Tensor:
                raise TypeError
            self.stack.append(arguments[0])

    def build(self, _: Any) -> None:
        # Only attributes of dictionaries, such as a state dict's _metadata; they are left out.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise CheckpointError("refused: its pickle sets the inner state of an object")

    def persistent(self, _: Any) -> None:
        mark, kind, key, _place, size = self.stack.pop()[:5]
        if mark != "storage" or type(kind) is not Global or type(key) is not str:
            raise TypeError
        self.stack.append(Storage(key, STORAGES[kind.name], _count(size)))


def _asks(name: Any) -> CheckpointError:
    text = str(name).replace(" ", ".")[:120]
    return CheckpointError(f"refused: its pickle asks for {text}, which is no part of a tensor")


def _is_key(value: Any) -> bool:
    return type(value) is str or (type(value) is int and abs(value) < 1 << 63)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Checks that a view lies inside its storage and shows every value at most once."""
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError
    if len(shape) != len(strides) or len(shape) > _MAX_AXES:
        raise ValueError
    offset = _count(offset)
    for value in (*shape, *strides):
        _count(value)
    if 0 not in shape:
        reach = 1
        for step, length in sorted((s, n) for n, s in zip(shape, strides) if n > 1):
            if step < reach:
                raise ValueError
            reach += step * (length - 1)
        if offset + reach > storage.size:
            raise ValueError
    return Tensor(storage, offset, shape, strides)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "LIST": _Machine.marked_list,
    "DICT": _Machine.marked_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.ask,
    "STACK_GLOBAL": _Machine.ask_from_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
