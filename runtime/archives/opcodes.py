"""The pickle language as data: a reader of its opcodes that calls nothing but a given table.

Python's own unpickler imports modules, calls what it finds there and hands objects to methods of theirs. This one never
imports: a global is a name, and `World` decides what a name, a call or a state means. Large byte strings are views of
the input. Protocols 0 to 5, without extension codes and out-of-band buffers.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any, Protocol

from ...engines.errors import PackError
from .source import Budget

MAX_LINE = 1 << 20  # of the text protocols
MAX_LONG = 64  # bytes of an integer: the longest in use, torch's magic number, has ten
KEYS = (str, int, float, bool, type(None))


class World(Protocol):
    """What names and calls in a pickle mean; each method raises PackError for what it does not know."""

    def find(self, module: str, name: str) -> Any:
        """A global by name."""

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """REDUCE, NEWOBJ, INST and OBJ: `function` called with `args`."""

    def build(self, instance: Any, state: Any) -> Any:
        """BUILD: the instance once it took its state."""

    def persistent(self, pid: Any) -> Any:
        """An object that lies outside the pickle."""


class Reader:
    """Reads one pickle from `data` at `position`; after `read`, `position` is behind its STOP."""

    def __init__(self, data: memoryview, world: World, budget: Budget, position: int = 0):
        self.data, self.world, self.budget, self.position = data, world, budget, position
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle. Raises PackError for all that is malformed or refused."""
        try:
            while True:
                self.budget.operation()
                code = self.data[self.position]
                self.position += 1
                if code == STOP:
                    return self.stack.pop()
                OPCODES[code](self)
        except PackError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, AttributeError) as error:
            raise PackError(
                f"its pickle is malformed near byte {self.position} ({type(error).__name__}); it may be cut or damaged"
            ) from None

    # input

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count < 0 or count > len(self.data) - self.position:
            raise PackError(
                f"its pickle asks for {count} bytes and {len(self.data) - self.position} are left; it is cut"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> int:
        """A little-endian number in the layout of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Text up to the end of the line."""
        return str(self.raw_line(), "utf-8", "surrogatepass")

    def raw_line(self) -> bytes:
        """Bytes up to the end of the line."""
        size, end = 128, -1
        while end < 0 and size <= MAX_LINE:  # the window grows with the line, so that short lines cost little
            window = bytes(self.data[self.position : self.position + size])
            end, size = window.find(b"\n"), 4 * size
        if end < 0:
            raise PackError("its pickle has a line of text without an end")
        self.position += end + 1
        return window[:end]

    def text(self, layout: str) -> str:
        """A string in UTF-8 behind its length."""
        view = self.take(self.number(layout))
        self.budget.copy(len(view))
        return str(view, "utf-8", "surrogatepass")

    def latin(self, layout: str) -> str:
        """A string of Python 2, whose characters are bytes."""
        view = self.take(self.number(layout))
        self.budget.copy(len(view))
        return str(view, "latin-1")

    # stack

    def push(self, value: Any) -> None:
        """Onto the stack."""
        self.stack.append(value)

    def popped(self) -> Any:
        """The top of the stack."""
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        """Everything above the last mark."""
        above, self.stack = self.stack, self.marks.pop()
        return above

    def top(self, kind: type) -> Any:
        """The top of the stack, left there; it must be of exactly this kind."""
        value = self.stack[-1]
        if type(value) is not kind:
            raise PackError(f"its pickle fills a {type(value).__name__} as if it were a {kind.__name__}")
        return value

    def store(self, target: dict[Any, Any], items: list[Any]) -> None:
        """Key, value, key, value ... into a dict."""
        if len(items) % 2:
            raise PackError("its pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, KEYS):
                raise PackError(f"its pickle has a {type(key).__name__} as a key; expected strings or numbers")
            target[key] = value


def _mark(r: Reader) -> None:
    r.marks.append(r.stack)
    r.stack = []


def _pop(r: Reader) -> None:
    if r.stack:
        r.stack.pop()
    else:
        r.to_mark()


def _frame(r: Reader) -> None:
    if r.number("<Q") > len(r.data) - r.position:
        raise PackError("its pickle states a frame beyond its end; it is cut")


def _protocol(r: Reader) -> None:
    version = r.number("<B")
    if version > 5:
        raise PackError(f"its pickle is of protocol {version}; expected 5 at most")


def _long(r: Reader, layout: str) -> None:
    size = r.number(layout)
    if size > MAX_LONG:
        raise PackError(f"its pickle holds an integer of {size} bytes; expected {MAX_LONG} at most")
    r.push(int.from_bytes(r.take(size), "little", signed=True))


def _text_integer(r: Reader) -> None:
    line = r.line()
    if len(line) > 3 * MAX_LONG:
        raise PackError(f"its pickle holds an integer of {len(line)} digits")
    r.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line.rstrip("L"), 10))


def _quoted(r: Reader) -> None:
    line = r.raw_line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PackError("its pickle holds a string without quotes")
    r.budget.copy(len(line))
    r.push(str(codecs.escape_decode(line[1:-1])[0], "latin-1"))  # type: ignore[attr-defined]


def _raw_unicode(r: Reader) -> None:
    line = r.raw_line()
    r.budget.copy(len(line))
    r.push(str(line, "raw-unicode-escape"))


def _bytes(layout: str) -> Callable[[Reader], None]:
    return lambda r: r.push(r.take(r.number(layout)))


def _tuple(count: int) -> Callable[[Reader], None]:
    def build(r: Reader) -> None:
        if len(r.stack) < count:
            raise IndexError(count)
        r.stack[len(r.stack) - count :] = [tuple(r.stack[len(r.stack) - count :])]

    return build


def _append(r: Reader) -> None:
    value = r.popped()
    r.top(list).append(value)


def _appends(r: Reader) -> None:
    items = r.to_mark()
    r.top(list).extend(items)


def _set_item(r: Reader) -> None:
    value, key = r.popped(), r.popped()
    r.store(r.top(dict), [key, value])


def _set_items(r: Reader) -> None:
    items = r.to_mark()
    r.store(r.top(dict), items)


def _new_dict(r: Reader) -> None:
    items, target = r.to_mark(), {}  # type: tuple[list[Any], dict[Any, Any]]
    r.store(target, items)
    r.push(target)


def _checked_set(items: list[Any]) -> set[Any]:
    for item in items:
        if not isinstance(item, KEYS):
            raise PackError(f"its pickle has a {type(item).__name__} in a set; expected strings or numbers")
    return set(items)


def _add_items(r: Reader) -> None:
    items = r.to_mark()
    r.top(set).update(_checked_set(items))


def _stack_global(r: Reader) -> None:
    name, module = r.popped(), r.popped()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PackError("its pickle names a global by something that is not a string")
    r.push(r.world.find(module, name))


def _instance(r: Reader) -> None:
    found = r.world.find(r.line(), r.line())
    r.push(r.world.call(found, tuple(r.to_mark())))


def _object(r: Reader) -> None:
    function, *args = r.to_mark()
    r.push(r.world.call(function, tuple(args)))


def _call(r: Reader) -> None:
    args, function = r.popped(), r.popped()
    if type(args) is not tuple:
        raise PackError(f"its pickle calls with a {type(args).__name__}; expected a tuple")
    r.push(r.world.call(function, args))


def _call_with_names(r: Reader) -> None:
    if r.popped() != {}:
        raise PackError("its pickle creates an object with named arguments, which is refused")
    _call(r)


def _build(r: Reader) -> None:
    state = r.popped()
    r.stack[-1] = r.world.build(r.stack[-1], state)


def _put(r: Reader, index: int) -> None:
    if index < 0:
        raise PackError("its pickle has a negative place in its memo")
    r.memo[index] = r.stack[-1]


def _refused(what: str) -> Callable[[Reader], None]:
    def refuse(r: Reader) -> None:
        raise PackError(f"its pickle uses {what}, which is refused")

    return refuse


STOP = ord(".")
CODES: dict[bytes, Callable[[Reader], None]] = {
    b"\x80": _protocol, b"\x95": _frame, b"(": _mark, b"0": _pop, b"1": lambda r: r.to_mark().clear(),
    b"2": lambda r: r.push(r.stack[-1]), b"N": lambda r: r.push(None), b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False), b"I": _text_integer, b"L": _text_integer,
    b"J": lambda r: r.push(r.number("<i")), b"K": lambda r: r.push(r.number("<B")),
    b"M": lambda r: r.push(r.number("<H")), b"\x8a": lambda r: _long(r, "<B"), b"\x8b": lambda r: _long(r, "<I"),
    b"F": lambda r: r.push(float(r.line()[:64])), b"G": lambda r: r.push(r.number(">d")), b"S": _quoted,
    b"T": lambda r: r.push(r.latin("<I")), b"U": lambda r: r.push(r.latin("<B")), b"B": _bytes("<I"),
    b"C": _bytes("<B"), b"\x8e": _bytes("<Q"), b"\x96": _bytes("<Q"), b"V": _raw_unicode,
    b"X": lambda r: r.push(r.text("<I")), b"\x8c": lambda r: r.push(r.text("<B")),
    b"\x8d": lambda r: r.push(r.text("<Q")), b"]": lambda r: r.push([]), b"l": lambda r: r.push(r.to_mark()),
    b"a": _append, b"e": _appends, b")": lambda r: r.push(()), b"t": lambda r: r.push(tuple(r.to_mark())),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3), b"}": lambda r: r.push({}), b"d": _new_dict,
    b"s": _set_item, b"u": _set_items, b"\x8f": lambda r: r.push(set()), b"\x90": _add_items,
    b"\x91": lambda r: r.push(frozenset(_checked_set(r.to_mark()))),
    b"c": lambda r: r.push(r.world.find(r.line(), r.line())), b"\x93": _stack_global, b"i": _instance, b"o": _object,
    b"R": _call, b"\x81": _call, b"\x92": _call_with_names, b"b": _build,
    b"P": lambda r: r.push(r.world.persistent(r.line())), b"Q": lambda r: r.push(r.world.persistent(r.popped())),
    b"p": lambda r: _put(r, int(r.line()[:20], 10)), b"q": lambda r: _put(r, r.number("<B")),
    b"r": lambda r: _put(r, r.number("<I")), b"\x94": lambda r: _put(r, len(r.memo)),
    b"g": lambda r: r.push(r.memo[int(r.line()[:20], 10)]), b"h": lambda r: r.push(r.memo[r.number("<B")]),
    b"j": lambda r: r.push(r.memo[r.number("<I")]), b"\x82": _refused("extension codes"),
    b"\x83": _refused("extension codes"), b"\x84": _refused("extension codes"),
    b"\x97": _refused("buffers outside the file"), b"\x98": lambda r: None,
}  # fmt: skip
OPCODES = {code[0]: action for code, action in CODES.items()}
