"""Pickled objects as plain data: the stream is read, and nothing that it names is imported or run.

Some packages ship their tables and weights as pickles, which can run code of whoever made them
when they are loaded as such. Here each opcode that a pickle of data needs is followed over a stack
of lists, dicts and numbers; where it would call something, what it would call is written down as a
``Made``. Any other opcode is an error.

The opcodes are those of the standard library's ``pickletools``, whose reader this builds on.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import IO, Any, Final

from hushtune.common.errors import AssetError


@dataclass(frozen=True, slots=True)
class Named:
    """Something that a pickle refers to: ``module.name``."""

    name: str


@dataclass(slots=True)
class Made:
    """What would have been made by calling ``name`` with ``args``, given ``state``, and filled
    with ``entries``."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict[Any, Any])


def read_inert(stream: IO[bytes]) -> Any:
    """The next pickled object of a stream, which is left right after it.

    Raises AssetError for a stream that ends early or has what no pickle of data needs.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"what should be pickled data is not: {error}") from error
    raise AssetError("what should be pickled data ends early")


_MARK: Final = object()


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            values = tuple(self.stack[len(self.stack) - size :])
            del self.stack[len(self.stack) - size :]
            self.stack.append(values)
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name not in ("PROTO", "FRAME"):
            _STEPS[name](self, argument)

    def to_mark(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Named(f"{module}.{name}"))

    def stack_named(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Named(f"{module}.{name}"))

    def made(self, _: None) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(called.name, tuple(args)))

    def kept_elsewhere(self, _: None) -> None:
        self.stack.append(Made("persistent", (self.stack.pop(),)))

    def stated(self, _: None) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state

    def appended(self, _: None) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def extended(self, _: None) -> None:
        values = self.to_mark()
        self.stack[-1].extend(values)

    def entered(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _entries(self.stack[-1])[key] = value

    def all_entered(self, _: None) -> None:
        values = self.to_mark()
        _entries(self.stack[-1]).update(zip(values[::2], values[1::2], strict=True))


def _entries(target: Any) -> dict[Any, Any]:
    return target.entries if isinstance(target, Made) else target


_ARGUMENTS: Final = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_FRESH: Final[Mapping[str, Callable[[], Any]]] = MappingProxyType(
    {
        "NONE": lambda: None,
        "NEWTRUE": lambda: True,
        "NEWFALSE": lambda: False,
        "EMPTY_LIST": list,
        "EMPTY_DICT": dict,
        "EMPTY_TUPLE": tuple,
        "MARK": lambda: _MARK,
    }
)
_TUPLES: Final[Mapping[str, int]] = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})
_STEPS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = MappingProxyType(
    {
        "GLOBAL": _Machine.named,
        "STACK_GLOBAL": _Machine.stack_named,
        "REDUCE": _Machine.made,
        "NEWOBJ": _Machine.made,
        "BUILD": _Machine.stated,
        "BINPERSID": _Machine.kept_elsewhere,
        "APPEND": _Machine.appended,
        "APPENDS": _Machine.extended,
        "SETITEM": _Machine.entered,
        "SETITEMS": _Machine.all_entered,
        "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    }
)
