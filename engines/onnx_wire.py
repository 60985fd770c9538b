"""The protobuf wire format of ONNX files, and the tensors that a graph keeps in files beside it.

What reads or rewrites a graph without the onnx library stands on this: one pass over the bytes, every length checked.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import EngineError
from .manifest import path_inside

VARINT, BYTES, FIXED32 = 0, 2, 5
"""Wire types: of integers; of strings, bytes and messages; of floats."""
_COUNTED = (BYTES, VARINT)
_FIXED = {1: 8, FIXED32: 4}
MAX_DEPTH = 32
"""Levels of messages in messages; a file with more is refused."""
_BITS, _SIGN = (1 << 64) - 1, 1 << 63
Buffer = bytes | memoryview
Result = TypeVar("Result")


class Malformed(ValueError):
    """The bytes are not the message they should be, or name weights that cannot be had."""


class Weights:
    """Files beside a graph, each mapped once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.maps: dict[str, mmap.mmap] = {}

    def read(self, entries: dict[str, str]) -> memoryview:
        """The bytes that the `external_data` of a tensor names: `location`, `offset` (0), `length` (to the end).

        Raises:
            Malformed: they cannot be had.
            BundleError: the location is outside the folder of the graph.
        """
        location, offset = entries.get("location", ""), _number(entries, "offset") or 0
        length = _number(entries, "length")
        if self.folder is None:
            raise Malformed(f"a graph in memory names the file {location[:80]!r}; give the file's path instead")
        data = self.maps.get(location) or self._map(self.folder, location)
        end = len(data) if length is None else offset + length
        if not 0 <= offset <= end <= len(data):
            raise Malformed(f"{location} has {len(data)} bytes, the graph wants {offset} to {end}")
        return memoryview(data)[offset:end]

    def _map(self, folder: Path, location: str) -> mmap.mmap:
        path = path_inside(folder, location)
        try:
            with path.open("rb") as file:
                self.maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise Malformed(f"the weights {location} cannot be read ({error})") from error
        return self.maps[location]

    def close(self) -> None:
        """Forget the maps; the operating system unmaps each with its last view."""
        self.maps.clear()


def with_bytes(model: Path | bytes, use: Callable[[memoryview, Weights], Result]) -> Result:
    """What `use` makes of the bytes of a model and of the files beside it.

    Raises:
        EngineError: the file cannot be read, or `use` finds it `Malformed`.
    """
    if isinstance(model, bytes):
        return _used(model, None, "a graph in memory", use)
    try:
        data = model.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot load {model}: {error.strerror or error}") from error
    return _used(data, model.parent, str(model), use)


def _used(data: bytes, folder: Path | None, name: str, use: Callable[[memoryview, Weights], Result]) -> Result:
    if not data:
        raise EngineError(f"cannot load {name}: it is empty; export the bundle again")
    weights = Weights(folder)
    try:
        return use(memoryview(data), weights)
    except (Malformed, UnicodeDecodeError) as error:
        raise EngineError(f"cannot load {name}: {error}; export the bundle again") from error
    finally:
        weights.close()


def fields(message: Buffer) -> Iterator[tuple[int, Any, int, int]]:
    """(tag, value, start, end) of each field in the order of the message.

    The tag is field number << 3 | wire type. The value is an int of 0 or more for `VARINT`, and bytes for all others.

    Raises:
        Malformed: the bytes are no message of protobuf.
    """
    at, end = 0, len(message)
    value: Any
    while at < end:
        start, tag = at, message[at]
        at += 1
        if tag > 0x7F:  # nearly all tags, sizes and numbers are one byte
            tag, at = _varint(message, start)
        wire = tag & 7
        if wire in _COUNTED:
            if at < end and message[at] < 0x80:
                value = message[at]
                at += 1
            else:
                value, at = _varint(message, at)
            if wire == BYTES:
                at += value
                value = message[at - value : at]
        elif wire in _FIXED:
            value = message[at : at + _FIXED[wire]]
            at += _FIXED[wire]
        else:
            raise Malformed(f"not an ONNX file (wire type {wire} at byte {start})")
        if at > end or tag < 8:
            raise Malformed(f"not an ONNX file, or cut short (a field at byte {start} runs past the end)")
        yield tag, value, start, at


def integers(tag: int, value: Any) -> list[int]:
    """The signed numbers of one field of an integer, or of a packed list of them; of another wire type none."""
    if tag & 7 == VARINT:
        return [_signed(value)]
    numbers: list[int] = []
    at, end = 0, len(value) if tag & 7 == BYTES else 0
    while at < end:
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number if number < _SIGN else (number & _BITS) - 2 * (number & _SIGN)


def pair(message: Buffer) -> tuple[str, str]:
    """(key, value) of one StringStringEntryProto, as `external_data` has them."""
    parts = {tag >> 3: str(value, "utf-8") for tag, value, _, _ in fields(message) if tag & 7 == BYTES}
    return parts.get(1, ""), parts.get(2, "")


def _number(entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Malformed(f"external data with {key} {text[:40]!r}")
    return int(text)


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed("not an ONNX file, or cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("not an ONNX file (a number longer than 64 bits)")


def header(field: int, size: int) -> bytes:
    """What stands before the `size` bytes of a string, bytes or a message."""
    return varint(field << 3 | BYTES) + varint(size)


def varint(number: int) -> bytes:
    """A number of 0 or more as the wire has it."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
