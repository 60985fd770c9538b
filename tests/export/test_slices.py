"""Cutting a graph at named values."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

import onnx  # noqa: E402
from onnx import numpy_helper, parser  # noqa: E402

from styleclip_rt.export.slices import extract  # noqa: E402

WHOLE = """<ir_version: 10, opset_import: ["" : 20]>
whole (float[N,4] s) => (float[N,4] image, float16[N,4] middle, float[N,4] side)
{
  half = Cast<to = 10>(s)
  middle = MatMul(half, w)
  side = Mul(s, two)
  above = MatMul(middle, w)
  wide = Cast<to = 1>(above)
  image = Add(wide, side)
}"""


@pytest.fixture
def whole():
    model = parser.parse_model(WHOLE)
    weight = (np.random.default_rng(0).standard_normal((4, 4)) / 2).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    return model


def run(model, **feeds):
    import onnxruntime

    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_a_head_and_a_tail_are_the_whole(whole):
    s = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    head = extract(whole, {"s": "s"}, {"x": "middle", "rgb": "side"})
    tail = extract(whole, {"x": "middle", "rgb": "side"}, {"image": "image"})
    state = run(head, s=s)
    assert {name: value.dtype.name for name, value in state.items()} == {"x": "float32", "rgb": "float32"}
    np.testing.assert_array_equal(run(tail, **state)["image"], run(whole, s=s)["image"])


def test_a_slice_holds_only_its_own_nodes_and_weights(whole):
    side = extract(whole, {"s": "s"}, {"rgb": "side"})
    assert [node.op_type for node in side.graph.node] == ["Mul"]
    assert [tensor.name for tensor in side.graph.initializer] == ["two"]
    tail = extract(whole, {"x": "middle", "rgb": "side"}, {"image": "image"})
    assert [tensor.name for tensor in tail.graph.initializer] == ["w"]


def test_a_value_that_nothing_leads_to_is_an_error(whole):
    with pytest.raises(KeyError):
        extract(whole, {"x": "middle"}, {"image": "image"})
