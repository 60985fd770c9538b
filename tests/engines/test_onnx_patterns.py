"""Sides of maps, beside what onnx infers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip_rt.engines.onnx_graph import Graph
from styleclip_rt.engines.onnx_patterns import sides

onnx = pytest.importorskip("onnx", reason="the graphs are built with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def model_of(nodes, size, **constants):
    """x [N, 3, *size] through nodes to y."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, *size]), ("y", None))]
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "test", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def found(model):
    """The sides of y, None where they are unknown."""
    return sides(Graph(memoryview(model.graph.SerializeToString()))).get("y")


def inferred(model):
    made = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in made[2:])


@given(st.data())
def test_windows(data):
    def pair(low, high):
        return [data.draw(st.integers(low, high)) for _ in range(2)]

    op, size = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"])), pair(1, 20)
    about = {"kernel_shape": pair(1, 4), "strides": pair(1, 3), "dilations": pair(1, 2)}
    about["pads"] = [data.draw(st.integers(0, k - 1)) for k in about["kernel_shape"] * 2]
    for name in data.draw(st.sets(st.sampled_from(["strides", "dilations", "pads"]))):
        del about[name]
    pads, dilations = about.get("pads", [0] * 4), about.get("dilations", [1, 1])
    spans = [1 + d * (k - 1) for d, k in zip(dilations, about["kernel_shape"], strict=True)]
    weights = {"w": np.zeros((8, 3, *about["kernel_shape"]))} if op == "Conv" else {}
    model = model_of([helper.make_node(op, ["x", *weights], ["y"], **about)], size, **weights)
    if any(
        side + before + after < span for side, before, after, span in zip(size, pads, pads[2:], spans, strict=False)
    ):
        assert 0 in (found(model) or (0, 0)), "the window is larger than the map"
    else:
        assert found(model) == inferred(model)


KEPT = {
    "an activation": [("Relu", ["x"], {})],
    "a norm": [("BatchNormalization", ["x", "one", "one", "one", "one"], {})],
    "a slope for each channel": [("PRelu", ["x", "slope"], {})],
    "a gate of one pixel": [("ReduceMean", ["x"], {"keepdims": 1}), ("Mul", ["last", "x"], {})],
    "the kernel's size from its weight": [("Conv", ["x", "kernel"], {"pads": [1] * 4})],
    "matrices on both sides": [("MatMul", ["rows", "x"], {}), ("MatMul", ["last", "columns"], {})],
    "a cut": [("Slice", ["x", "from", "to"], {})],
    "a border of its own": [("Conv", ["x", "kernel"], {"auto_pad": "SAME_UPPER"})],
    "rounded up": [("MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1})],
    "a kernel that is computed": [("Relu", ["kernel"], {}), ("Conv", ["x", "last"], {})],
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_follows_and_what_does_not(case):
    nodes = []
    for place, (op, inputs, about) in enumerate(KEPT[case]):
        last = place == len(KEPT[case]) - 1
        names = [f"v{place - 1}" if name == "last" else name for name in inputs]
        nodes.append(helper.make_node(op, names, ["y" if last else f"v{place}"], **about))
    constants = {"one": np.ones(3), "slope": np.ones((3, 1, 1)), "kernel": np.ones((8, 3, 3, 3))}
    constants |= {"rows": np.ones((5, 12)), "columns": np.ones((18, 7))}
    known = list(KEPT).index(case) < 6
    expected = {"matrices on both sides": (5, 7)}.get(case, (12, 18)) if known else None
    assert found(model_of(nodes, (12, 18), **constants)) == expected


@pytest.mark.parametrize(("size", "expected"), [(("H", 18), (0, 18)), (("H", "W"), None), ((12,), None)])
def test_a_free_side_stays_unknown(size, expected):
    assert found(model_of([helper.make_node("Relu", ["x"], ["y"])], size)) == expected


def test_a_side_of_one_pixel_may_grow():
    """What a map of one pixel is added to may be larger."""
    model = model_of([helper.make_node("Add", ["x", "larger"], ["y"])], (1, 18), larger=np.ones((3, 12, 18)))
    assert inferred(model) == (12, 18)
    assert found(model) == (0, 18)
