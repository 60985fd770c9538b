"""Joins exported graphs into one: the fused edits are their parts plus a few glue nodes, traced once each.

`style`, `synthesize`, `direction` and the mappers are traced from PyTorch; `synthesize_u8`, `edit_global` and
`edit_mapper/<name>` are put together from these here, so they share every weight byte. The result is verified against
the fused PyTorch module like any other graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper, parser

OPSET = 20
_HEADER = f'<ir_version: 10, opset_import: ["" : {OPSET}]>'

TO_U8 = f"""{_HEADER}
to_u8 (float[N,3,R,R] image) => (uint8[N,R,R,3] image_u8)
<float one = {{1}}, float half = {{127.5}}, float low = {{0}}, float high = {{255}}>
{{
  shifted = Add(image, one)
  scaled = Mul(shifted, half)
  clipped = Clip(scaled, low, high)
  rounded = Round(clipped)
  pixels = Transpose<perm = [0, 2, 3, 1]>(rounded)
  image_u8 = Cast<to = 2>(pixels)
}}"""

ADD_DIRECTION = f"""{_HEADER}
add_direction (float[N,S] s, float[N,S] delta_s, float[N] alpha) => (float[N,S] edited)
<int64[1] axis = {{1}}>
{{
  column = Unsqueeze(alpha, axis)
  step = Mul(column, delta_s)
  edited = Add(s, step)
}}"""

ADD_OFFSET = f"""{_HEADER}
add_offset (float[N,L,W] w, float[N,L,W] delta_w, float[N] strength) => (float[N,L,W] edited)
<int64[2] axes = {{1, 2}}>
{{
  cube = Unsqueeze(strength, axes)
  step = Mul(cube, delta_w)
  edited = Add(w, step)
}}"""


@dataclass(frozen=True)
class Part:
    """One graph inside a fused graph: prefix of its names, the model, and what each of its inputs is fed with.

    A feed is an input of the fused graph ("w") or an output of an earlier part ("style/s").
    """

    prefix: str
    model: onnx.ModelProto
    feeds: Mapping[str, str]


def glue(text: str) -> onnx.ModelProto:
    """A glue graph from its ONNX text."""
    return parser.parse_model(text)


def fuse(name: str, parts: Sequence[Part], inputs: Sequence[onnx.ValueInfoProto], output: str) -> onnx.ModelProto:
    """One model out of `parts`, in order; `inputs` are the graph's inputs, `output` ("tail/image_u8") its output."""
    nodes: list[onnx.NodeProto] = []
    initialisers: list[onnx.TensorProto] = []
    for part in parts:
        rename = Renamer(part)
        nodes += [rename.node(node) for node in part.model.graph.node]
        initialisers += [rename.initialiser(tensor) for tensor in part.model.graph.initializer]
    last = parts[-1]
    info = onnx.ValueInfoProto()
    info.CopyFrom(next(o for o in last.model.graph.output if f"{last.prefix}/{o.name}" == output))
    for node in nodes:
        node.output[:] = [info.name if value == output else value for value in node.output]
    graph = helper.make_graph(nodes, name, list(inputs), [info], initialisers)
    first = parts[0].model
    return helper.make_model(graph, opset_imports=list(first.opset_import), ir_version=first.ir_version)


class Renamer:
    """Copies nodes and initialisers of a part with its prefix before every name, and its inputs replaced by feeds."""

    def __init__(self, part: Part):
        self.prefix, self.feeds = part.prefix, part.feeds

    def value(self, name: str) -> str:
        """The name of a value in the fused graph; an empty name (an omitted input) stays empty."""
        return self.feeds.get(name, f"{self.prefix}/{name}") if name else ""

    def node(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with renamed values."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{self.prefix}/{node.name}" if node.name else ""
        copy.input[:] = [self.value(name) for name in node.input]
        copy.output[:] = [self.value(name) for name in node.output]
        return copy

    def initialiser(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The initialiser under its new name."""
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = self.value(tensor.name)
        return copy
