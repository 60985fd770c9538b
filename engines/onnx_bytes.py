"""An ONNX file as bytes with every weight inside, without the onnx library: one pass over the protobuf wire format.

TensorRT is given bytes that name no other file, because its parser follows symbolic links in external data. Weights may
only come from files beside the graph, and only from where a graph may keep them; everything else is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from .errors import EngineError
from .manifest import path_inside

# Which fields of which messages lead to tensors (onnx.proto, stable since IR version 3): kind -> {field: kind}.
_TREE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_EXTERNAL = 1
_BYTES = 2  # wire type of strings, bytes and messages
_FIXED = {1: 8, 5: 4}
_MAX_DEPTH = 32
Buffer = bytes | memoryview


def inline_weights(model: Path | bytes) -> bytes:
    """The model with external tensors replaced by their bytes; a model without any comes back as it is.

    Raises:
        EngineError: the file cannot be read, is not protobuf, or names weights that are missing, too short, or
            outside the folder of the graph.
    """
    if isinstance(model, bytes):
        return _inlined(model, None, "a graph in memory")
    try:
        data = model.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot load {model}: {error.strerror or error}") from error
    return _inlined(data, model.parent, str(model))


def _inlined(data: bytes, folder: Path | None, name: str) -> bytes:
    if not data:
        raise EngineError(f"cannot load {name}: it is empty; export the bundle again")
    weights = _Weights(folder)
    try:
        return bytes(_rewrite(memoryview(data), "model", weights, 0))
    except (_Malformed, UnicodeDecodeError) as error:
        raise EngineError(f"cannot load {name}: {error}; export the bundle again") from error
    finally:
        weights.close()


class _Malformed(ValueError):
    """The bytes are not the message they should be, or name weights that cannot be had."""


class _Weights:
    """Files beside a graph, each mapped once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.maps: dict[str, mmap.mmap] = {}

    def read(self, location: str, offset: int, length: int | None) -> memoryview:
        """A view of the bytes; `length` None is the rest of the file."""
        if self.folder is None:
            raise _Malformed(f"a graph in memory names the file {location[:80]!r}; give the file's path instead")
        data = self.maps.get(location) or self._map(self.folder, location)
        end = len(data) if length is None else offset + length
        if not 0 <= offset <= end <= len(data):
            raise _Malformed(f"{location} has {len(data)} bytes, the graph wants {offset} to {end}")
        return memoryview(data)[offset:end]

    def _map(self, folder: Path, location: str) -> mmap.mmap:
        path = path_inside(folder, location)
        try:
            with path.open("rb") as file:
                self.maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise _Malformed(f"the weights {location} cannot be read ({error})") from error
        return self.maps[location]

    def close(self) -> None:
        """Forget the maps; the operating system unmaps each with its last view."""
        self.maps.clear()


def _rewrite(message: memoryview, kind: str, weights: _Weights, depth: int) -> Buffer:
    """The message with its external tensors inlined; the very same view if it holds none."""
    if depth > _MAX_DEPTH:
        raise _Malformed(f"nested deeper than {_MAX_DEPTH} levels")
    if kind == "tensor":
        return _tensor(message, weights)
    below = _TREE[kind]
    pieces: list[Buffer] = []
    changed = False
    for field, whole, value in _fields(message):
        if field not in below or value is None:
            pieces.append(whole)
            continue
        new = _rewrite(value, below[field], weights, depth + 1)
        changed = changed or new is not value
        pieces += [whole] if new is value else [_header(field, len(new)), new]
    return b"".join(pieces) if changed else message


def _tensor(message: memoryview, weights: _Weights) -> Buffer:
    """A TensorProto with its data inside: the external fields go, raw_data comes."""
    kept: list[Buffer] = []
    entries: dict[str, str] = {}
    external = False
    for field, whole, value in _fields(message):
        if field == _EXTERNAL_DATA and value is not None:
            entries.update(_entry(value))
        elif field == _DATA_LOCATION:
            external = _varint(whole, _varint(whole, 0)[1])[0] == _EXTERNAL
        else:
            kept.append(whole)
    if not external:
        return message
    data = weights.read(entries.get("location", ""), _number(entries, "offset") or 0, _number(entries, "length"))
    return b"".join([*kept, _header(_RAW_DATA, len(data)), data])


def _entry(message: memoryview) -> Iterator[tuple[str, str]]:
    """One StringStringEntryProto."""
    parts = {field: bytes(value).decode() for field, _, value in _fields(message) if value is not None}
    yield parts.get(1, ""), parts.get(2, "")


def _number(entries: dict[str, str], key: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _Malformed(f"external data with {key} {text[:40]!r}")
    return int(text)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """(field number, the field with its tag, its payload if it is length-delimited) in the order of the message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        value = None
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == _BYTES:
            size, at = _varint(message, at)
            value = message[at : at + size]
            at += size
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise _Malformed(f"not an ONNX file (wire type {wire} at byte {start})")
        if at > len(message) or field == 0:
            raise _Malformed(f"not an ONNX file, or cut short (a field at byte {start} runs past the end)")
        yield field, message[start:at], value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Malformed("not an ONNX file, or cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Malformed("not an ONNX file (a number longer than 64 bits)")


def _header(field: int, size: int) -> bytes:
    out = bytearray()
    for number in (field << 3 | _BYTES, size):
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)
