"""An ONNX file as bytes with every weight inside, without the onnx library: one pass over the protobuf wire format.

TensorRT is given bytes that name no other file, because its parser follows symbolic links in external data. Weights may
only come from files beside the graph, and only from where a graph may keep them; everything else is refused.
"""

from __future__ import annotations

from pathlib import Path

from .onnx_wire import BYTES, MAX_DEPTH, Buffer, Malformed, Weights, fields, header, integers, pair, with_bytes

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
_EXTERNAL = 1  # of TensorProto.DataLocation


def inline_weights(model: Path | bytes) -> bytes:
    """The model with external tensors replaced by their bytes; a model without any comes back as it is.

    Raises:
        EngineError: the file cannot be read, is not protobuf, or names weights that are missing, too short, or
            outside the folder of the graph.
    """
    return bytes(with_bytes(model, lambda message, weights: _rewrite(message, "model", weights, 0)))


def _rewrite(message: memoryview, kind: str, weights: Weights, depth: int) -> Buffer:
    """The message with its external tensors inlined; the very same view if it holds none."""
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
    if kind == "tensor":
        return _tensor(message, weights)
    below = _TREE[kind]
    pieces: list[Buffer] = []
    changed = False
    for tag, value, start, end in fields(message):
        field = tag >> 3
        if field not in below or tag & 7 != BYTES:
            pieces.append(message[start:end])
            continue
        new = _rewrite(value, below[field], weights, depth + 1)
        changed = changed or new is not value
        pieces += [message[start:end]] if new is value else [header(field, len(new)), new]
    return b"".join(pieces) if changed else message


def _tensor(message: memoryview, weights: Weights) -> Buffer:
    """A TensorProto with its data inside: the external fields go, raw_data comes."""
    kept: list[Buffer] = []
    entries: dict[str, str] = {}
    external = False
    for tag, value, start, end in fields(message):
        if tag == _EXTERNAL_DATA << 3 | BYTES:
            entries.update([pair(value)])
        elif tag >> 3 == _DATA_LOCATION:
            external = _EXTERNAL in integers(tag, value)
        else:
            kept.append(message[start:end])
    if not external:
        return message
    data = weights.read(entries)
    return b"".join([*kept, header(_RAW_DATA, len(data)), data])
