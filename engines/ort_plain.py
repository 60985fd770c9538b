"""Plain 3x3 convolutions of a graph as nodes of our own (`cpp/plain_conv.h`): which they are, and where that is faster.

`PlainConv`: Conv 3x3 with a border of 1 and a stride of 1 or 2 [-> PRelu with a slope for each channel, LeakyRelu or
Relu], in float32, its weight constant. Networks that read images have them: the inversion, IR-SE50, CLIP's ResNets.

Tiles pay on maps that are not too small; how large a map is follows from the graph's inputs, or the convolution stays.
So does one that differs in anything.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .onnx_graph import Graph, Node, new_node
from .onnx_patterns import Sides, constant, fits, has_inputs, sides

ROWS = 4
"""What the channels out must be a multiple of."""
TILE = 4
"""Pixels a side of a tile of the output."""


def pays(stride: int, tiles: int, inputs: int, outputs: int) -> bool:
    """Whether fewer products pay for the transforms on a map of so many tiles, as measured on AVX2.

    Where they do not, ONNX Runtime's own kernel is as fast, and wants a fourth of the memory for its weights.
    """
    if stride == 1:
        return tiles >= 9 and outputs >= 16 and tiles * outputs >= 1024
    return tiles >= 64 and inputs >= 128 and outputs >= 128


class _Plain(NamedTuple):
    inputs: tuple[str, ...]  # x, weight, its gain, bias
    channels: int  # out
    stride: int

    def node(self, last: Node, domain: str, slopes: str = "", slope: float = 1.0) -> Node:
        """The node in place of `last`; slopes: a value with one for each channel, "" where all have `slope`."""
        inputs, stride = (*self.inputs, slopes), self.stride
        return new_node(domain, "PlainConv", inputs, last.outputs[0], last.name, slope=slope, stride=stride)


def plain(graph: Graph, domain: str) -> dict[Node, Node]:
    """The last node of each convolution that pays, and the node of `domain` that takes its place.

    Raises:
        Malformed, UnicodeDecodeError: the graph is damaged.
    """
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    if not convolutions:  # most graphs
        return {}
    known, found, changed = sides(graph), dict[Node, _Plain](), dict[Node, Node]()
    for node in convolutions:
        of = _convolution(graph, node, known)
        if of is not None:
            found[node], changed[node] = of, of.node(node, domain)
    for node in graph.nodes:
        conv = graph.inner(node.inputs[0], "Conv") if node.inputs and len(node.outputs) == 1 else None
        slope = _slope(graph, node, found[conv].channels) if conv in found else None
        if conv is not None and slope is not None:
            changed[node] = found[conv].node(node, domain, *slope)  # the convolution alone is dead then, and goes
    return changed


def _convolution(graph: Graph, conv: Node, known: dict[str, Sides]) -> _Plain | None:
    count = 3 if len(conv.inputs) > 2 and conv.inputs[2] else 2
    stride = next((s for s in (1, 2) if fits(conv, 3, pads=(1, 1, 1, 1), strides=(s, s))), 0)
    weight = constant(graph, conv.inputs[1], by_channel=True) if stride and has_inputs(conv, count) else None
    if weight is None or len(weight.dims) != 4 or weight.dims[2:] != (3, 3) or len(conv.outputs) != 1:
        return None
    (height, width), (outputs, inputs) = known.get(conv.inputs[0], (0, 0)), weight.dims[:2]
    tiles = math.prod(math.ceil(side / (stride * TILE)) for side in (height, width))
    if outputs % ROWS or not pays(stride, tiles, inputs, outputs):
        return None
    bias = conv.inputs[2] if count == 3 else ""
    return _Plain((conv.inputs[0], weight.stored, weight.gain, bias), outputs, stride)


def _slope(graph: Graph, node: Node, channels: int) -> tuple[str, float] | None:
    """(a value with the slope of each channel, or "", and the slope of all) of an activation; else None."""
    if node.op == "Relu":
        return "", 0.0
    if node.op == "LeakyRelu":
        slope = node.attributes.get("alpha", 0.01)
        return ("", slope) if isinstance(slope, float) else None
    slopes = constant(graph, node.inputs[1]) if node.op == "PRelu" and has_inputs(node, 2) else None
    if slopes is None:
        return None
    each = slopes.dims in ((channels, 1, 1), (1, channels, 1, 1))
    return (node.inputs[1], 1.0) if each or (math.prod(slopes.dims) == 1 and len(slopes.dims) < 5) else None
