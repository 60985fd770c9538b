"""The protobuf wire format of ONNX files, and the tensors that a graph keeps in files beside it.

What reads or rewrites a graph without the onnx library stands on this: one pass over the bytes, every length checked.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .errors import EngineError
from .manifest import path_inside

BYTES = 2
"""Wire type of strings, bytes and messages."""
MAX_DEPTH = 32
"""Levels of messages in messages; a file with more is refused."""
_VARINT = 0
_FIXED = {1: 8, 5: 4}
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


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """(field number, the field with its tag, its payload if it is length-delimited) in the order of the message.

    Raises:
        Malformed: the bytes are no message of protobuf.
    """
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = (message[at], at + 1) if message[at] < 0x80 else _varint(message, at)  # nearly all are one byte
        field, wire = tag >> 3, tag & 7
        value = None
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == BYTES:
            size, at = (message[at], at + 1) if at < end and message[at] < 0x80 else _varint(message, at)
            value = message[at : at + size]
            at += size
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise Malformed(f"not an ONNX file (wire type {wire} at byte {start})")
        if at > end or field == 0:
            raise Malformed(f"not an ONNX file, or cut short (a field at byte {start} runs past the end)")
        yield field, message[start:at], value


def integers(whole: memoryview, value: memoryview | None) -> Iterator[int]:
    """The signed numbers of one field of an integer, or of a packed list of them; of another wire type none."""
    if value is None:
        tag, at = _varint(whole, 0)
        value = whole[at:] if tag & 7 == _VARINT else whole[:0]
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        number &= (1 << 64) - 1
        yield number - (1 << 64) if number >> 63 else number


def fixed32(whole: memoryview) -> memoryview | None:
    """The four bytes of a field of a float, None for another wire type."""
    return whole[-4:] if whole[0] & 7 == 5 else None


def pair(message: memoryview) -> tuple[str, str]:
    """(key, value) of one StringStringEntryProto, as `external_data` has them."""
    parts = {field: bytes(value).decode() for field, _, value in fields(message) if value is not None}
    return parts.get(1, ""), parts.get(2, "")


def _number(entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Malformed(f"external data with {key} {text[:40]!r}")
    return int(text)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
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
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
