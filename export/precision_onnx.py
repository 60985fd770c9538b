"""Types a float32 graph as float16 where that is safe: matrix products and what lies between them.

For networks whose maths needs no rewriting (inverter, identity, CLIP). Layer norms, softmax, means and lengths stay
float32, and so does every node that touches a value outside float16's range on measured inputs. Casts stand where the
type changes, and nowhere is a type left to the reader of the graph: TensorRT 11 takes it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from .precision import HALF_MAX, HEADROOM
from .verify import Array

MATRIX_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
EXACT_OPS = frozenset(
    {"BatchNormalization", "Cast", "CumSum", "Exp", "GlobalAveragePool", "InstanceNormalization", "LayerNormalization"}
    | {"Log", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax"}
    | {"Sqrt"}
)
"""Always float32. What is in neither set follows its inputs: float16 if all that are computed are float16."""
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def half_model(model: onnx.ModelProto, islands: Collection[str] = ()) -> onnx.ModelProto:
    """`model` (float32, weights inside) with its safe nodes in float16; `islands` are names of first outputs.

    Ports keep their types. Only nodes of the standard operators; the graph must have no sub-graphs.
    """
    floats = float_values(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in floats}
    half = half_values(model, floats, set(weights), set(islands))
    return Rewriter(model, floats, weights, half).model()


def float_values(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 values, initialisers included."""
    graph = shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    names = {info.name for info in infos if info.type.tensor_type.elem_type == FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}


def half_values(model: onnx.ModelProto, floats: set[str], weights: set[str], islands: set[str]) -> set[str]:
    """Names of the values that are computed in float16."""
    half: set[str] = set()
    for node in model.graph.node:
        if node.op_type in EXACT_OPS or node.output[0] not in floats or node.output[0] in islands:
            continue
        computed = [name for name in node.input if name in floats and name not in weights]
        if node.op_type in MATRIX_OPS or (computed and all(name in half for name in computed)):
            half.update(node.output)
    return half


class Rewriter:
    """Builds the typed graph: float16 copies of weights, and one Cast per value and type that is asked for."""

    def __init__(
        self, model: onnx.ModelProto, floats: set[str], weights: Mapping[str, onnx.TensorProto], half: set[str]
    ) -> None:
        self.source, self.floats, self.weights, self.half = model, floats, weights, half
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}
        self.halves: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """The typed model."""
        outputs = {info.name for info in self.source.graph.output}
        for node in self.source.graph.node:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            wanted = HALF if node.output[0] in self.half else FLOAT
            copy.input[:] = [self.typed(node, i, name, wanted) for i, name in enumerate(node.input)]
            inner = [name for name in node.output if name in self.half & outputs]
            copy.output[:] = [f"{name}.half" if name in inner else name for name in node.output]
            self.nodes.append(copy)
            self.nodes += [cast(f"{name}.half", name, FLOAT) for name in inner]
            self.half -= set(inner)  # from here on the port's float32 value is meant
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.source.graph.initializer if tensor.name in used]
        graph = self.source.graph
        typed = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, [*kept, *self.halves])
        opset = list(self.source.opset_import)
        return helper.make_model(typed, opset_imports=opset, ir_version=self.source.ir_version)

    def typed(self, node: onnx.NodeProto, index: int, name: str, wanted: int) -> str:
        """The value `name` in the type that input `index` of the node needs."""
        if name not in self.floats or (node.op_type == "Resize" and index > 0):  # its scales are always float32
            return name
        have = HALF if name in self.half else FLOAT
        if have == wanted or node.op_type == "Cast":
            return name
        target = f"{name}.f{16 if wanted == HALF else 32}"
        if target not in self.made:
            self.made[target] = target
            if name in self.weights:
                array = numpy_helper.to_array(self.weights[name]).astype(np.float16)
                self.halves.append(numpy_helper.from_array(array, target))
            else:
                self.nodes.append(cast(name, target, wanted))
        return target


def cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    """A Cast node."""
    return helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=kind)


def measured_ranges(model: onnx.ModelProto, feeds: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """max |x| of every computed float32 value over the feeds, in float32 on the CPU."""
    import onnxruntime

    floats = float_values(model) - {tensor.name for tensor in model.graph.initializer}
    names = [name for node in model.graph.node for name in node.output if name in floats]
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(open_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    peaks = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, array in zip(names, session.run(names, dict(feed)), strict=True):
            peaks[name] = max(peaks[name], peak_of(array))
    return peaks


def islands_of(model: onnx.ModelProto, peaks: Mapping[str, float], limit: float = HALF_MAX / HEADROOM) -> list[str]:
    """First outputs of the nodes that read or give a value beyond `limit`, in order; weights count as well."""
    weights = {
        tensor.name: peak_of(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == FLOAT
    }
    known = {**weights, **peaks}
    islands = []
    for node in model.graph.node:
        values = [known[name] for name in (*node.input, *node.output) if name in known]
        if node.output[0] in peaks and not all(value <= limit for value in values):
            islands.append(node.output[0])
    return islands


def peak_of(array: Array) -> float:
    """max |x| of the finite values of an array (masks are -inf, in float16 too), 0 for none; inf where it holds NaN."""
    if np.isnan(array).any():
        return math.inf
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0
