"""A graph with the layers that the custom operators of ONNX Runtime run (`cpp/`), rewritten when it is opened.

The ONNX file stays as it is, for every engine; the rewrite keeps the maths, and changes it by rounding alone. Plain
convolutions are those of `ort_plain`. Two patterns of StyleGAN2 (Karras et al. 2020), in float32, become one node each:

`StyledConv`: Mul(x, style) -> Conv 3x3, or ConvTranspose 3x3 of stride 2 -> Conv depthwise 4x4 -> Mul(demodulation)
-> Add(noise and bias) -> LeakyRelu.

`StyledRgb`: Mul(x, style) -> Conv 1x1 to 3 channels [-> Add(the colours before, by a ConvTranspose depthwise 4x4 of
stride 2)], where a StyledConv made x.

Both orders of the operands of a Mul and of an Add are known. A layer that differs in anything, whose size is not in its
constants, or of which anybody else reads a value in between, is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .errors import BundleError
from .onnx_graph import FLOAT16, Graph, Node, message_field, new_node
from .onnx_patterns import Constant, constant, fits, has_inputs, is_scalar, orders
from .onnx_wire import BYTES, Malformed, Weights, fields, varint, with_bytes
from .ort_plain import plain

DOMAIN, VERSION = "styleclip_rt", 1
"""Of the operators."""
WIDTH, HEIGHT, CHANNELS = 32, 4, 4
"""What the sides of an input, and the channels in and out, must be multiples of. The kernel takes any size, but with
vectors that are partly empty it is no faster than ONNX Runtime's own."""

_GRAPH, _OPSET, _FUNCTION = 7, 8, 25  # fields of ModelProto
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2  # of OperatorSetIdProto


def styled(model: Path | bytes) -> bytes | None:
    """The graph with every layer for the kernels as one StyledConv, StyledRgb or PlainConv node; None without any.

    External tensors stay outside: their locations are still relative to the folder of the graph.

    Raises:
        EngineError: the file cannot be read or is not protobuf.
    """
    return with_bytes(model, _styled)


def _styled(message: memoryview, weights: Weights) -> bytes | None:
    graphs: list[memoryview] = []
    pieces: list[bytes | memoryview] = []
    for tag, value, start, end in fields(message):
        if tag >> 3 == _FUNCTION or (tag == _OPSET << 3 | BYTES and _is_ours(value)):
            return None  # a function may redefine an operator; a graph that has ours already is no file of a bundle
        if tag == _GRAPH << 3 | BYTES:
            graphs.append(value)
        else:
            pieces.append(message[start:end])
    if len(graphs) != 1:
        return None
    graph = Graph(graphs[0])
    changed = {**plain(graph, DOMAIN), **_Forms(graph, weights).found()}
    if not changed or not graph.is_regular():
        return None
    opset = message_field(_OPSET_DOMAIN, DOMAIN.encode()) + varint(_OPSET_VERSION << 3) + varint(VERSION)
    return b"".join([*pieces, message_field(_GRAPH, graph.rewritten(changed)), message_field(_OPSET, opset)])


def _is_ours(opset: memoryview) -> bool:
    return any(tag == _OPSET_DOMAIN << 3 | BYTES and value == DOMAIN.encode() for tag, value, _, _ in fields(opset))


class _Offset(NamedTuple):
    noise: str
    bias: str
    gain: str
    channels: tuple[int, ...]  # of the noise and of the bias, where they have any
    height: int
    width: int


class _Product(NamedTuple):
    convolution: Node
    value: str
    demod: str


class _Convolution(NamedTuple):
    first: Node  # the one that reads the styled input
    weight: Constant
    inputs: int
    outputs: int
    fir: str


class _Forms:
    """The layers of one graph."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph, self.weights = graph, weights
        self.channels: dict[str, int] = {}
        """Of each map that a StyledConv makes."""

    def found(self) -> dict[Node, Node]:
        """The last node of each layer, and the node that takes its place."""
        changed: dict[Node, Node] = {}
        for build, op in ((self._layer, "LeakyRelu"), (self._rgb, "Conv"), (self._rgb_sum, "Add")):
            for node in self.graph.nodes:
                new = build(node) if node.op == op and len(node.outputs) == 1 else None
                if new is not None:
                    changed[node] = new  # a Conv to RGB inside a sum is dead then, and goes
            if not changed:
                break  # most graphs: no map is of ours, so no colours are either
        return changed

    # StyledConv -------------------------------------------------------------------------------------------------------

    def _layer(self, relu: Node) -> Node | None:
        add = self.graph.inner(relu.inputs[0], "Add") if len(relu.inputs) == 1 else None
        for offset_name, product_name in orders(add) if add is not None else ():
            offset = self._offset(offset_name)
            if offset is None or not _sides_fit(offset, 1):  # most layers are too small, which costs least to see
                continue
            slope, product = relu.attributes.get("alpha", 0.01), self._product(product_name)
            body = self._convolution(product.convolution) if product is not None else None
            if product is None or body is None or not _sizes_fit(offset, body):
                continue
            if isinstance(slope, float) and 0 <= slope <= 1:
                return self._fused(relu, slope, offset, product, body)
        return None

    def _fused(self, relu: Node, slope: float, offset: _Offset, product: _Product, body: _Convolution) -> Node | None:
        source = self._source(body.first)
        if source is None:
            return None
        x, style = source
        self.channels[relu.outputs[0]] = body.outputs
        layer = (x, body.weight.stored, style, product.demod, offset.noise, offset.bias, offset.gain, product.value)
        inputs = (*layer, body.fir, body.weight.gain)
        up = int(bool(body.fir))
        return new_node(DOMAIN, "StyledConv", inputs, relu.outputs[0], relu.name, slope=slope, up=up)

    def _offset(self, name: str) -> _Offset | None:
        """(noise + bias) * gain, all constant, bias and gain where there are any."""
        made_by, gain = self.graph.made_by, ""
        node = made_by.get(name)
        if node is not None and node.op == "Mul":
            gain, name = next(((a, b) for a, b in orders(node) if is_scalar(self.graph, a)), ("", name))
            node = made_by.get(name)
        pairs = orders(node) if node is not None and node.op == "Add" else iter([(name, "")])
        for noise_name, bias_name in pairs:
            noise = constant(self.graph, noise_name)
            bias = constant(self.graph, bias_name) if bias_name else None
            if noise is None or len(noise.dims) not in (2, 3):
                continue
            if bias_name and (bias is None or len(bias.dims) != 3 or bias.dims[1:] != (1, 1)):
                continue
            channels = noise.dims[:-2] + (bias.dims[:1] if bias is not None else ())
            return _Offset(noise_name, bias_name, gain, channels, *noise.dims[-2:])
        return None

    def _product(self, name: str) -> _Product | None:
        """A convolution times a scalar and times a demodulation, in any order; either may be missing."""
        value = demod = ""
        while (node := self.graph.inner(name, "Mul")) is not None:
            for factor, rest in orders(node):
                if not value and is_scalar(self.graph, factor):
                    value, name = factor, rest
                elif not demod and self._is_column(factor):
                    demod, name = factor, rest
                else:
                    continue
                break
            else:
                return None
        convolution = self.graph.inner(name, "Conv")
        return _Product(convolution, value, demod) if convolution is not None else None

    def _convolution(self, conv: Node) -> _Convolution | None:
        """A plain 3x3 convolution, or a transposed one that ends in the depthwise filter `conv`; neither has a bias."""
        if not has_inputs(conv, 2):
            return None
        weight = constant(self.graph, conv.inputs[1])
        if weight is not None and len(weight.dims) == 4 and fits(conv, 3, pads=(1, 1, 1, 1)):
            outputs, inputs = weight.dims[:2]
            return _Convolution(conv, weight, inputs, outputs, "") if weight.dims[2:] == (3, 3) else None
        transposed = self.graph.inner(conv.inputs[0], "ConvTranspose")
        if transposed is None or not has_inputs(transposed, 2) or not fits(transposed, 3, strides=(2, 2)):
            return None
        weight = constant(self.graph, transposed.inputs[1])
        if weight is None or len(weight.dims) != 4 or weight.dims[2:] != (3, 3):
            return None
        inputs, outputs = weight.dims[:2]
        fir = self._fir(conv.inputs[1], outputs) if fits(conv, 4, group=outputs, pads=(1, 1, 1, 1)) else ""
        return _Convolution(transposed, weight, inputs, outputs, fir) if fir and self._is_one_filter(fir) else None

    # StyledRgb --------------------------------------------------------------------------------------------------------

    def _rgb(self, conv: Node) -> Node | None:
        inputs = self._rgb_inputs(conv)
        return self._rgb_node(conv, inputs, "", "") if inputs is not None else None

    def _rgb_sum(self, add: Node) -> Node | None:
        for conv_name, up_name in orders(add):
            conv, up = self.graph.inner(conv_name, "Conv"), self.graph.inner(up_name, "ConvTranspose")
            if conv is None or up is None or not has_inputs(up, 2):
                continue
            inputs = self._rgb_inputs(conv)
            if inputs is None or not fits(up, 4, group=3, strides=(2, 2), pads=(1, 1, 1, 1)):
                continue
            fir = self._fir(up.inputs[1], 3)
            if fir:
                return self._rgb_node(add, inputs, up.inputs[0], fir)
        return None

    def _rgb_node(self, last: Node, inputs: tuple[str, ...], previous: str, fir: str) -> Node:
        *four, gain = inputs
        return new_node(DOMAIN, "StyledRgb", (*four, previous, fir, gain), last.outputs[0], last.name)

    def _rgb_inputs(self, conv: Node) -> tuple[str, ...] | None:
        """(x, weight, style, bias, weight gain)."""
        x, style = (self._source(conv) if has_inputs(conv, 3) else None) or ("", "")
        if x not in self.channels or not fits(conv, 1):
            return None
        weight, bias = constant(self.graph, conv.inputs[1]), constant(self.graph, conv.inputs[2])
        if weight is None or bias is None or weight.dims != (3, self.channels[x], 1, 1) or bias.dims != (3,):
            return None
        return x, weight.stored, style, conv.inputs[2], weight.gain

    # What both are made of --------------------------------------------------------------------------------------------

    def _source(self, conv: Node) -> tuple[str, str] | None:
        """(x, style) of the product that a convolution reads."""
        product = self.graph.inner(conv.inputs[0], "Mul")
        if product is None:
            return None
        return next(((x, style) for x, style in orders(product) if self._is_column(style)), None)

    def _is_column(self, name: str) -> bool:
        """Whether a value is [N, C, 1, 1]: an Unsqueeze by the axes 2 and 3, which a product of rank 4 leaves no rank
        but 4."""
        node = self.graph.made_by.get(name)
        if node is None or node.op != "Unsqueeze" or not has_inputs(node, 2):
            return False
        axes = self.graph.tensors.get(node.inputs[1])
        return axes is not None and axes.whole_numbers() == (2, 3)

    def _fir(self, name: str, channels: int) -> str:
        """The initializer of a filter [channels, 1, 4, 4], else ""."""
        found = constant(self.graph, name)
        return found.stored if found is not None and not found.gain and found.dims == (channels, 1, 4, 4) else ""

    def _is_one_filter(self, stored: str) -> bool:
        """Whether a filter [channels, 1, 4, 4] is the same for every channel, which the file's values tell."""
        tensor = self.graph.tensors[stored]
        try:
            data = tensor.content(self.weights)
        except (Malformed, BundleError):
            return False  # whoever opens the graph says what is wrong with the file
        size = 16 * (2 if tensor.kind == FLOAT16 else 4)
        return data is not None and len(data) == tensor.dims[0] * size and data == bytes(data[:size]) * tensor.dims[0]


def _sizes_fit(offset: _Offset, body: _Convolution) -> bool:
    return (
        all(count == body.outputs for count in offset.channels)
        and all(count > 0 and count % CHANNELS == 0 for count in (body.inputs, body.outputs))
        and _sides_fit(offset, 2 if body.fir else 1)
    )


def _sides_fit(offset: _Offset, scale: int) -> bool:
    """Whether the kernel takes maps of this size; scale: of the layer."""
    pairs = ((offset.width, WIDTH), (offset.height, HEIGHT))
    return all(side > 0 and side % (multiple * scale) == 0 for side, multiple in pairs)
