"""The main graph of an ONNX model as nodes and constants, for rewrites in memory without the onnx library.

Only what a rewrite looks at is read; everything else goes through as the bytes that it is.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .onnx_wire import MAX_DEPTH, Buffer, Malformed, Weights, fields, fixed32, header, integers, pair, varint

# Fields of onnx.proto, stable since IR version 3.
_NODE = 1  # of GraphProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7  # of NodeProto
_NAME, _F, _I, _S, _GRAPH, _INTS, _GRAPHS, _TYPE = 1, 2, 3, 4, 6, 8, 11, 20  # of AttributeProto
_DIMS, _DATA_TYPE, _INT64_DATA, _TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 7, 8, 9, 13, 14
_EXTERNAL = 1  # of TensorProto.DataLocation
_TYPE_FLOAT, _TYPE_INT = 1, 2  # of AttributeProto.AttributeType
FLOAT, INT64, FLOAT16 = 1, 7, 10
"""Data types of tensors."""
Value = int | float | bytes | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One node: `whole` is it as a field of its graph; `op` has its domain before it unless that is ONNX's own."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value | None] = field(default_factory=dict)
    """Numbers and strings; None for any other kind."""
    captured: tuple[str, ...] = ()
    """Names read by the graphs among its attributes."""
    name: str = ""
    whole: Buffer = b""


@dataclass(frozen=True)
class Tensor:
    """A constant of the graph: its data type, its shape, and the message that holds or names its values."""

    kind: int
    dims: tuple[int, ...]
    message: memoryview

    def content(self, weights: Weights) -> Buffer | None:
        """The values, little-endian and row-major; None where the message lists them one by one.

        Raises:
            Malformed, BundleError: they are in a file and cannot be had.
        """
        raw: Buffer | None = None
        entries: dict[str, str] = {}
        outside = False
        for number, whole, value in fields(self.message):
            if number == _RAW_DATA and value is not None:
                raw = value
            elif number == _EXTERNAL_DATA and value is not None:
                entries.update([pair(value)])
            elif number == _DATA_LOCATION:
                outside = _EXTERNAL in integers(whole, value)
        return weights.read(entries) if outside else raw

    def whole_numbers(self) -> tuple[int, ...] | None:
        """The values of a small int64 tensor inside the graph, else None."""
        if self.kind != INT64 or len(self.dims) > 1 or len(self.message) > 1024:
            return None
        listed: list[int] = []
        for number, whole, value in fields(self.message):
            if number == _INT64_DATA:
                listed += integers(whole, value)
            elif number == _RAW_DATA and value is not None and len(value) % 8 == 0:
                return struct.unpack(f"<{len(value) // 8}q", value)
        return tuple(listed)


class Graph:
    """A GraphProto: who makes each value, how often it is read, and the constants that no caller can override."""

    def __init__(self, message: memoryview) -> None:
        """Read the message.

        Raises:
            Malformed, UnicodeDecodeError: it is none.
        """
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.made_by: dict[str, Node] = {}
        self.outputs: list[str] = []
        self.regular = True
        """Whether every value is made once and before it is read, as ONNX demands."""
        self._reads: Counter[str] = Counter()
        self._parts: list[Node | memoryview] = []
        given: set[str] = set()
        for number, whole, value in fields(message):
            part: Node | memoryview = whole
            if number == _NODE and value is not None:
                part = self._add(_node(whole, value, 0))
            elif number == _INITIALIZER and value is not None:
                self.tensors.update([_tensor(value)])
            elif number == _INPUT and value is not None:
                given.add(_text(value, _NAME))
            elif number == _OUTPUT and value is not None:
                self.outputs.append(_text(value, _NAME))
            self._parts.append(part)
        self.regular = self.regular and self.made_by.keys().isdisjoint(given | self.tensors.keys())
        self._reads.update(self.outputs)
        for name in given:
            self.tensors.pop(name, None)

    def _add(self, node: Node) -> Node:
        for name in filter(None, (*node.inputs, *node.captured)):
            self._reads[name] += 1
        for name in filter(None, node.outputs):
            self.regular = self.regular and name not in self.made_by and name not in self._reads
            self.made_by[name] = node
        self.nodes.append(node)
        return node

    def inner(self, name: str, op: str) -> Node | None:
        """The `op` that makes a value which one node reads, once, and nobody outside the graph; else None."""
        node = self.made_by.get(name)
        return node if node is not None and node.op == op and self._reads[name] == 1 else None

    def rewritten(self, changed: Mapping[Node, Node]) -> bytes:
        """The graph with nodes in the places of others, and without the nodes that nobody needs then."""
        needed = set(self.outputs)
        kept: list[Buffer] = []
        for part in reversed(self._parts):
            if isinstance(part, Node):
                node = changed.get(part, part)
                if needed.isdisjoint(node.outputs):
                    continue
                needed.update(node.inputs, node.captured)
                kept.append(node.whole)
            else:
                kept.append(part)
        return b"".join(reversed(kept))


def new_node(domain: str, op: str, inputs: Iterable[str], output: str, name: str, **attributes: float) -> Node:
    """A node of another domain, its attributes floats and ints; `name` may be empty."""
    inputs = tuple(inputs)
    pieces = [_string(_NODE_INPUT, text) for text in inputs]
    pieces.append(_string(_NODE_OUTPUT, output))
    pieces += [_string(_NODE_NAME, name)] * bool(name)
    pieces.append(_string(_OP_TYPE, op))
    for key, value in attributes.items():
        whole = isinstance(value, int)
        number = varint(_I << 3) + varint(int(value)) if whole else varint(_F << 3 | 5) + struct.pack("<f", value)
        kind = varint(_TYPE << 3) + varint(_TYPE_INT if whole else _TYPE_FLOAT)
        pieces.append(message_field(_ATTRIBUTE, _string(_NAME, key) + number + kind))
    pieces.append(_string(_DOMAIN, domain))
    return Node(f"{domain}.{op}", inputs, (output,), attributes, (), name, message_field(_NODE, b"".join(pieces)))


def message_field(number: int, content: bytes) -> bytes:
    """A string, bytes or a message as a field."""
    return header(number, len(content)) + content


def _string(number: int, text: str) -> bytes:
    return message_field(number, text.encode())


def _node(whole: memoryview, message: memoryview, depth: int) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Value | None] = {}
    captured: list[str] = []
    texts = {_NODE_NAME: "", _OP_TYPE: "", _DOMAIN: ""}
    for number, _, value in fields(message):
        if value is None:
            continue
        if number == _NODE_INPUT:
            inputs.append(bytes(value).decode())
        elif number == _NODE_OUTPUT:
            outputs.append(bytes(value).decode())
        elif number == _ATTRIBUTE:
            key, content, names = _attribute(value, depth)
            attributes[key] = content
            captured += names
        elif number in texts:
            texts[number] = bytes(value).decode()
    domain = texts[_DOMAIN]
    op = texts[_OP_TYPE] if domain in ("", "ai.onnx") else f"{domain}.{texts[_OP_TYPE]}"
    return Node(op, tuple(inputs), tuple(outputs), attributes, tuple(captured), texts[_NODE_NAME], whole)


def _attribute(message: memoryview, depth: int) -> tuple[str, Value | None, list[str]]:
    """(name, value, names that a graph in it reads)."""
    name = ""
    value: Value | None = None
    numbers: list[int] = []
    captured: list[str] = []
    for number, whole, payload in fields(message):
        if number == _F:
            bits = fixed32(whole)
            value = struct.unpack("<f", bits)[0] if bits is not None else value
        elif number == _I:
            value = next(integers(whole, payload), None)
        elif number == _INTS:
            numbers += integers(whole, payload)
        elif payload is not None and number == _NAME:
            name = bytes(payload).decode()
        elif payload is not None and number == _S:
            value = bytes(payload)
        elif payload is not None and number in (_GRAPH, _GRAPHS):
            captured += _names_read(payload, depth + 1)
    return name, tuple(numbers) if numbers else value, captured


def _names_read(message: memoryview, depth: int) -> Iterator[str]:
    """The names that an inner graph reads, its own among them."""
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
    for number, whole, value in fields(message):
        if number == _NODE and value is not None:
            node = _node(whole, value, depth)
            yield from node.inputs
            yield from node.captured
        elif number == _OUTPUT and value is not None:
            yield _text(value, _NAME)


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    name, kind = "", 0
    dims: list[int] = []
    for number, whole, value in fields(message):
        if number == _DIMS:
            dims += integers(whole, value)
        elif number == _DATA_TYPE:
            kind = next(integers(whole, value), 0)
        elif number == _TENSOR_NAME and value is not None:
            name = bytes(value).decode()
    return name, Tensor(kind, tuple(dims), message)


def _text(message: memoryview, number: int) -> str:
    """A string of a message, "" if it has none."""
    return next((bytes(value).decode() for found, _, value in fields(message) if found == number and value), "")
