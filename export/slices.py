"""Cuts a traced graph at named values: what is below a cut is computed once, the rest for every step of a slider.

One trace of the synthesis names, beside the image, the features `x.<layer>` that enter a layer and the RGB skip
`rgb.<r>` after a block. A head is the part from s to the values at a cut, a tail the part from there to the image; both
consist of nodes of the whole graph, so they compute the same numbers and share its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper


def extract(model: onnx.ModelProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> onnx.ModelProto:
    """The nodes that lead from `inputs` to `outputs`, both {port of the result: value of `model`}.

    Every value must be an input or output of `model`. Ports are float32: a float16 value is cast where it crosses one,
    which loses nothing. A value that `outputs` needs and `inputs` do not lead to is an error of the caller (KeyError).
    """
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.input, *model.graph.output)}
    producers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    given = {value: port for port, value in inputs.items()}
    needed = reachable(outputs.values(), producers, set(constants) | set(given))
    kept = [node for node in model.graph.node if set(node.output) & needed]
    used = {name for node in kept for name in node.input}
    before = [border(port, value, TensorProto.FLOAT16) for value, port in given.items() if kinds[value] == HALF]
    after = [border(value, port, TensorProto.FLOAT) for port, value in outputs.items() if kinds[value] == HALF]
    names = {value: port for value, port in given.items() if kinds[value] != HALF}
    names |= {value: port for port, value in outputs.items() if kinds[value] != HALF}
    nodes = [*before, *(renamed(node, names) for node in kept), *after]
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [port_info(model, value, port) for port, value in inputs.items()],
        [port_info(model, value, port) for port, value in outputs.items()],
        [tensor for name, tensor in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


HALF = TensorProto.FLOAT16


def port_info(model: onnx.ModelProto, value: str, port: str) -> onnx.ValueInfoProto:
    """The port for a value of the model: its shape, float32 in place of float16."""
    info = onnx.ValueInfoProto()
    info.CopyFrom(next(info for info in (*model.graph.input, *model.graph.output) if info.name == value))
    info.name = port
    if info.type.tensor_type.elem_type == HALF:
        info.type.tensor_type.elem_type = TensorProto.FLOAT
    return info


def reachable(targets: Iterable[str], producers: Mapping[str, onnx.NodeProto], given: set[str]) -> set[str]:
    """All values that must be computed for `targets`, starting from `given`."""
    needed: set[str] = set()
    queue = [name for name in targets if name not in given]
    while queue:
        name = queue.pop()
        if name in needed:
            continue
        needed.add(name)
        queue += [value for value in producers[name].input if value and value not in given]
    return needed


def border(source: str, target: str, kind: int) -> onnx.NodeProto:
    """A Cast at a port."""
    return helper.make_node("Cast", [source], [target], name=f"border/{target}", to=kind)


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of the node with some of its values renamed."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy
