"""The main graph of an ONNX model as nodes and constants, for rewrites in memory without the onnx library.

Only what a rewrite looks at is read, when it looks: most graphs have nothing to rewrite, and each is opened at every
start. Everything else goes through as the bytes that it is, and whoever opens the graph says what is wrong with it.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .onnx_wire import (
    BYTES,
    FIXED32,
    MAX_DEPTH,
    VARINT,
    Buffer,
    Malformed,
    Weights,
    fields,
    header,
    integers,
    pair,
    varint,
)


def _tags(*fields: int) -> tuple[int, ...]:
    """Of strings, bytes and messages."""
    return tuple(field << 3 | BYTES for field in fields)


# Tags of onnx.proto, stable since IR version 3; of lists of integers, which have two, the numbers of their fields.
_NODE, _INITIALIZER, _INPUT, _OUTPUT = _tags(1, 5, 11, 12)  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN = _tags(1, 2, 3, 4, 5, 7)  # of NodeProto
_NAME, _S, _GRAPH, _GRAPHS = _tags(1, 4, 6, 11)  # of AttributeProto
_F, _I, _TYPE = 2 << 3 | FIXED32, 3 << 3 | VARINT, 20 << 3 | VARINT
_FIELD_INTS = 8
_MAY_HOLD_GRAPHS = re.compile(b"[%s]" % bytes(tag | more for tag in (_GRAPH, _GRAPHS) for more in (0, 0x80)))
"""The bytes that the tag of a graph in an attribute begins with: without one of them there is no graph."""
_TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA = _tags(8, 9, 13)  # of TensorProto
_DATA_TYPE, _DATA_LOCATION = 2 << 3 | VARINT, 14 << 3 | VARINT
_FIELD_DIMS, _FIELD_INT64_DATA = 1, 7
_VALUE_TYPE, _TENSOR_TYPE, _SHAPE, _DIM = _tags(2, 1, 2, 1)  # of ValueInfoProto and what it holds, from the outside in
_DIM_VALUE = 1 << 3 | VARINT
_EXTERNAL = 1  # of TensorProto.DataLocation
_TYPE_FLOAT, _TYPE_INT = 1, 2  # of AttributeProto.AttributeType
FLOAT, INT64, FLOAT16 = 1, 7, 10
"""Data types of tensors."""
Value = int | float | bytes | tuple[int, ...]


@dataclass(eq=False, repr=False)
class Node:
    """One node: `whole` is it as a field of its graph; `op` has its domain before it unless that is ONNX's own."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    """Names read by the graphs among its attributes."""
    name: str
    whole: Buffer
    stored: tuple[bytes, ...]
    """Its attributes, each as its message."""

    @cached_property
    def attributes(self) -> dict[str, Value | None]:
        """Numbers and strings; None for any other kind.

        Raises:
            Malformed, UnicodeDecodeError: they are none.
        """
        return dict(map(_attribute, self.stored))


class Tensor(NamedTuple):
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
        for tag, value, _, _ in fields(self.message):
            if tag == _RAW_DATA:
                raw = value
            elif tag == _EXTERNAL_DATA:
                entries.update([pair(value)])
            elif tag == _DATA_LOCATION:
                outside = value == _EXTERNAL
        return weights.read(entries) if outside else raw

    def whole_numbers(self) -> tuple[int, ...] | None:
        """The values of a small int64 tensor inside the graph, else None."""
        if self.kind != INT64 or len(self.dims) > 1 or len(self.message) > 1024:
            return None
        listed: list[int] = []
        for tag, value, _, _ in fields(self.message):
            if tag >> 3 == _FIELD_INT64_DATA:
                listed += integers(tag, value)
            elif tag == _RAW_DATA and len(value) % 8 == 0:
                return struct.unpack(f"<{len(value) // 8}q", value)
        return tuple(listed)


class Graph:
    """A GraphProto: who makes each value, how often it is read, and the constants that no caller can override."""

    def __init__(self, message: memoryview) -> None:
        """Read the nodes.

        Raises:
            Malformed, UnicodeDecodeError: the message is none.
        """
        self.nodes: list[Node] = []
        self.made_by: dict[str, Node] = {}
        self.outputs: list[str] = []
        self._given: dict[str, memoryview] = {}
        self._initializers: list[memoryview] = []
        self._parts: list[Node | memoryview] = []
        for tag, value, start, end in fields(message):
            whole = message[start:end]
            if tag == _NODE:
                node = _node(whole, bytes(value), 0)
                self.nodes.append(node)
                self._parts.append(node)
                for name in node.outputs:
                    self.made_by[name] = node
                continue
            self._parts.append(whole)
            if tag == _INITIALIZER:
                self._initializers.append(value)
            elif tag == _INPUT:
                self._given[_text(value, _NAME)] = value
            elif tag == _OUTPUT:
                self.outputs.append(_text(value, _NAME))
        self.made_by.pop("", None)  # an output that a node leaves out

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The constants.

        Raises:
            Malformed, UnicodeDecodeError: one of them is none.
        """
        return {name: tensor for name, tensor in map(_tensor, self._initializers) if name not in self._given}

    def input_dims(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs that are tensors of a known rank, 0 for a free size.

        Raises:
            Malformed: a type is none.
        """
        shapes = {
            name: next(_within(port, _VALUE_TYPE, _TENSOR_TYPE, _SHAPE), None) for name, port in self._given.items()
        }
        return {
            name: tuple(
                next((v for tag, v, _, _ in fields(dim) if tag == _DIM_VALUE), 0) for dim in _within(shape, _DIM)
            )
            for name, shape in shapes.items()
            if shape is not None
        }

    @cached_property
    def _reads(self) -> Counter[str]:
        """How often each value is read, here and by the caller."""
        names = list(self.outputs)
        for node in self.nodes:
            names += node.inputs
            names += node.captured
        return Counter(names)

    def is_regular(self) -> bool:
        """Whether every value is made once and before it is read, as ONNX demands."""
        known = {*self._given, *self.tensors}
        for node in self.nodes:
            known.update(node.inputs, node.captured)
            for name in filter(None, node.outputs):
                if name in known:
                    return False
                known.add(name)
        return True

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
    stored: list[bytes] = []
    for key, value in attributes.items():
        whole = isinstance(value, int)
        number = varint(_I) + varint(int(value)) if whole else varint(_F) + struct.pack("<f", value)
        kind = varint(_TYPE) + varint(_TYPE_INT if whole else _TYPE_FLOAT)
        message = _string(_NAME, key) + number + kind
        stored.append(message)
        pieces.append(message_field(_ATTRIBUTE >> 3, message))
    pieces.append(_string(_DOMAIN, domain))
    node = message_field(_NODE >> 3, b"".join(pieces))
    return Node(f"{domain}.{op}", inputs, (output,), (), name, node, tuple(stored))


def message_field(number: int, content: bytes) -> bytes:
    """A string, bytes or a message as a field."""
    return header(number, len(content)) + content


def _string(tag: int, text: str) -> bytes:
    return message_field(tag >> 3, text.encode())


def _node(whole: Buffer, message: bytes, depth: int) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    stored: list[bytes] = []
    captured: list[str] = []
    name = op = domain = ""
    for tag, value, _, _ in fields(message):
        if tag == _NODE_INPUT:
            inputs.append(value.decode())
        elif tag == _NODE_OUTPUT:
            outputs.append(value.decode())
        elif tag == _ATTRIBUTE:
            stored.append(value)
            if _MAY_HOLD_GRAPHS.search(value):
                captured += _names_captured(value, depth + 1)
        elif tag == _OP_TYPE:
            op = value.decode()
        elif tag == _NODE_NAME:
            name = value.decode()
        elif tag == _DOMAIN:
            domain = value.decode()
    op = op if domain in ("", "ai.onnx") else f"{domain}.{op}"
    return Node(op, tuple(inputs), tuple(outputs), tuple(captured), name, whole, tuple(stored))


def _attribute(message: bytes) -> tuple[str, Value | None]:
    """(name, value)."""
    name = ""
    content: Value | None = None
    numbers: list[int] = []
    for tag, value, _, _ in fields(message):
        if tag >> 3 == _FIELD_INTS:
            numbers += integers(tag, value)
        elif tag == _I:
            (content,) = integers(tag, value)
        elif tag == _F:
            (content,) = struct.unpack("<f", value)
        elif tag == _NAME:
            name = value.decode()
        elif tag == _S:
            content = value
    return name, tuple(numbers) if numbers else content


def _names_captured(attribute: bytes, depth: int) -> Iterator[str]:
    """The names that the graphs in an attribute read."""
    for tag, value, _, _ in fields(attribute):
        if tag in (_GRAPH, _GRAPHS):
            yield from _names_read(value, depth)


def _names_read(message: bytes, depth: int) -> Iterator[str]:
    """The names that an inner graph reads, its own among them."""
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
    for tag, value, _, _ in fields(message):
        if tag == _NODE:
            node = _node(value, value, depth)
            yield from node.inputs
            yield from node.captured
        elif tag == _OUTPUT:
            yield _text(value, _NAME)


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    name, kind = "", 0
    dims: list[int] = []
    for tag, value, _, _ in fields(message):
        if tag >> 3 == _FIELD_DIMS:
            dims += integers(tag, value)
        elif tag == _DATA_TYPE:
            kind = value
        elif tag == _TENSOR_NAME:
            name = str(value, "utf-8")
    return name, Tensor(kind, tuple(dims), message)


def _within(message: Buffer, wanted: int, *inside: int) -> Iterator[Buffer]:
    """The messages of a field, or those that a field of theirs holds."""
    for tag, value, _, _ in fields(message):
        if tag == wanted:
            if inside:
                yield from _within(value, *inside)
            else:
                yield value


def _text(message: Buffer, wanted: int) -> str:
    """A string of a message, "" if it has none."""
    return next((str(value, "utf-8") for tag, value, _, _ in fields(message) if tag == wanted and value), "")
