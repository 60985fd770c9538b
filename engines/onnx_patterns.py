"""What the patterns of a rewrite are made of: operands in either order, plain attributes, constants, sides of maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .onnx_graph import FLOAT, FLOAT16, Graph, Node, Value

_USUAL: dict[str, dict[str, Value]] = {
    "Conv": {"auto_pad": b"NOTSET", "dilations": (1, 1), "group": 1, "pads": (0, 0, 0, 0), "strides": (1, 1)}
}
_USUAL["ConvTranspose"] = _USUAL["Conv"] | {"output_padding": (0, 0)}
_WINDOW: dict[str, Value | None] = {**_USUAL["Conv"], "ceil_mode": 0}
_KEEP_SIDES = (
    "Add", "BatchNormalization", "Clip", "Div", "LeakyRelu", "Mul", "PRelu", "Relu", "Sigmoid", "Sub",
)  # fmt: skip
Sides = tuple[int, int]


class Constant(NamedTuple):
    """A float32 value of the graph that is a stored tensor times a gain."""

    stored: str
    """Its initializer, float32, or float16 behind a Cast."""
    gain: str
    """A float32 initializer, "" for none."""
    dims: tuple[int, ...]


def orders(node: Node) -> Iterator[tuple[str, str]]:
    """The operands of a Mul or an Add, in both orders."""
    if len(node.inputs) == 2:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def has_inputs(node: Node, count: int) -> bool:
    """Whether a node has so many inputs, not counting those left out at the end."""
    return all(node.inputs[:count]) and len(node.inputs) >= count and not any(node.inputs[count:])


def fits(conv: Node, taps: int, **wanted: Value) -> bool:
    """Whether a convolution has these attributes and the usual values of all others."""
    usual = _USUAL[conv.op] | {"kernel_shape": (taps, taps)}
    return {**usual, **conv.attributes} == {**usual, **wanted}


def is_scalar(graph: Graph, name: str) -> bool:
    """Whether a value is a float32 constant of one element."""
    tensor = graph.tensors.get(name)
    return tensor is not None and tensor.kind == FLOAT and len(tensor.dims) < 5 and math.prod(tensor.dims) == 1


def constant(graph: Graph, name: str, by_channel: bool = False) -> Constant | None:
    """The constant behind a value, with a gain that is a scalar, or may be [O, 1, 1, 1]; else None."""
    node, gain = graph.made_by.get(name), ""
    if node is not None and node.op == "Mul":
        fitting = (
            (a, b) for a, b in orders(node) if is_scalar(graph, a) or (by_channel and _is_channel_gain(graph, a))
        )
        gain, name = next(fitting, ("", name))
        node = graph.made_by.get(name)
    kind = FLOAT
    if node is not None:
        if node.op != "Cast" or len(node.inputs) != 1 or node.attributes.get("to") != FLOAT:
            return None
        name, kind = node.inputs[0], FLOAT16
    tensor = graph.tensors.get(name)
    if tensor is None or tensor.kind != kind:
        return None
    own_gain = graph.tensors[gain].dims[0] if gain and not is_scalar(graph, gain) else 0
    return Constant(name, gain, tensor.dims) if not own_gain or tensor.dims[:1] == (own_gain,) else None


def _is_channel_gain(graph: Graph, name: str) -> bool:
    tensor = graph.tensors.get(name)
    return tensor is not None and tensor.kind == FLOAT and len(tensor.dims) == 4 and tensor.dims[1:] == (1, 1, 1)


# Sides ------------------------------------------------------------------------------------------------------------


def sides(graph: Graph) -> dict[str, Sides]:
    """(height, width) of the maps [N, C, H, W] whose size follows from the graph's inputs; 0 for a side that does not.

    Raises:
        Malformed, UnicodeDecodeError: an input's type, a constant or an attribute is none.
    """
    known = {name: (dims[2], dims[3]) for name, dims in graph.input_dims().items() if len(dims) == 4}
    for node in graph.nodes:
        rule = _SIDES.get(node.op)
        if rule is None or not node.inputs or not node.outputs:
            continue
        found = rule(graph, node, [known.get(name, _UNKNOWN) for name in node.inputs])
        if any(found):
            known[node.outputs[0]] = found
    return known


def _by_element(graph: Graph, node: Node, given: list[Sides]) -> Sides:
    """A side of 1 may be that of a factor; any other is the result's, whatever it is combined with."""
    return max((height for height, _ in given if height > 1), default=0), max(
        (width for _, width in given if width > 1), default=0
    )


def _by_window(graph: Graph, node: Node, given: list[Sides]) -> Sides:
    """Of a convolution or a pooling."""
    about = _WINDOW | node.attributes
    if node.op == "Conv" and "kernel_shape" not in about:
        weight = constant(graph, node.inputs[1], by_channel=True) if len(node.inputs) > 1 else None
        about["kernel_shape"] = weight.dims[2:] if weight is not None else ()
    lists = [about.get(name) for name in ("kernel_shape", "strides", "dilations", "pads")]
    kernel, strides, dilations, pads = (of if isinstance(of, tuple) else () for of in lists)
    if (about["auto_pad"], about["ceil_mode"]) != (b"NOTSET", 0) or min(strides, default=0) < 1:
        return _UNKNOWN
    if (len(kernel), len(strides), len(dilations), len(pads)) != (2, 2, 2, 4):
        return _UNKNOWN
    after = [0, 0]
    for axis, side in enumerate(given[0]):
        room = side + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1
        after[axis] = room // strides[axis] + 1 if side and room >= 0 else 0
    return after[0], after[1]


def _by_product(graph: Graph, node: Node, given: list[Sides]) -> Sides:
    """Of a matrix times a map, or a map times a matrix, as a pooling by matrices has them."""
    if len(node.inputs) != 2:
        return _UNKNOWN
    left, right = (constant(graph, name) for name in node.inputs)
    if left is not None and len(left.dims) == 2:
        return left.dims[0], given[1][1]
    if right is not None and len(right.dims) == 2:
        return given[0][0], right.dims[1]
    return _UNKNOWN


_UNKNOWN: Sides = (0, 0)
_SIDES: dict[str, Callable[[Graph, Node, list[Sides]], Sides]] = {
    **dict.fromkeys(_KEEP_SIDES, _by_element),
    **dict.fromkeys(("Conv", "AveragePool", "MaxPool"), _by_window),
    "MatMul": _by_product,
}
