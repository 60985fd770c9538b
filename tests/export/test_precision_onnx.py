"""Typing of a finished graph, and the evaluation that really rounds."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

import onnx  # noqa: E402
from onnx import numpy_helper, parser  # noqa: E402

from styleclip_rt.export.precision_gate import RoundingRunner, rounding  # noqa: E402
from styleclip_rt.export.precision_onnx import half_model, islands_of, measured_ranges  # noqa: E402

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
NETWORK = f"""{HEADER}
network (float[N,4,6,6] image) => (float[N,8] out)
{{
  x = Conv<pads = [1, 1, 1, 1]>(image, w0, b0)
  r = Relu(x)
  y = Conv<pads = [1, 1, 1, 1]>(r, w1)
  z = Add(r, y)
  m = ReduceMean<keepdims = 0>(z, axes)
  n = LayerNormalization(m, gamma)
  h = MatMul(n, wide)
  p = Softmax(h)
  out = MatMul(p, back)
}}"""


def network(scale=1.0):
    rng = np.random.default_rng(0)
    model = parser.parse_model(NETWORK)
    tensors = {
        "w0": rng.standard_normal((4, 4, 3, 3)) / 6,
        "b0": rng.standard_normal(4),
        "w1": rng.standard_normal((4, 4, 3, 3)) / 6 * scale,
        "gamma": np.ones(4),
        "wide": rng.standard_normal((4, 16)),
        "back": rng.standard_normal((16, 8)),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in tensors.items())
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    return model


def kinds_of(model):
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model, **feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def saved(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


IMAGE = np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)


def test_products_become_float16_and_means_norms_and_softmax_do_not():
    typed = half_model(network())
    onnx.checker.check_model(typed, full_check=True)
    kinds = kinds_of(typed)
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert [kinds[name] for name in ("x", "r", "y", "z", "h")] == [half] * 5
    assert [kinds[name] for name in ("m", "n", "p")] == [full] * 3
    assert (kinds["image"], kinds["out"]) == (full, full)
    assert kinds["w0.f16"] == kinds["b0.f16"] == half
    names = {tensor.name for tensor in typed.graph.initializer}
    assert "w0" not in names
    assert "gamma" in names


def test_every_node_reads_one_floating_type():
    """What TensorRT's strongly typed networks ask for."""
    typed = half_model(network(), islands=["y"])
    kinds, floats = kinds_of(typed), (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    for node in typed.graph.node:
        types = {kinds[name] for name in node.input if kinds.get(name) in floats}
        assert len(types) == 1, node.op_type
        if node.op_type != "Cast":
            assert types == {kinds[node.output[0]]}, node.op_type
    assert kinds["y"] == onnx.TensorProto.FLOAT
    targets = [node.output[0] for node in typed.graph.node if node.op_type == "Cast"]
    assert len(targets) == len(set(targets))


def test_the_typed_network_is_near_the_exact_one(tmp_path):
    model = network()
    exact, got = run(model, image=IMAGE), RoundingRunner(saved(half_model(model), tmp_path))({"image": IMAGE})[0]
    error = np.abs(got - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 5e-3
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_values_out_of_range_make_islands(tmp_path):
    """The second convolution gives values that float16 cannot hold, though everything around it is harmless."""
    model = network(scale=1e5)
    peaks = measured_ranges(model, [{"image": IMAGE}])
    assert peaks["y"] > 65504
    islands = islands_of(model, peaks)
    assert islands == ["y", "z", "m", "n"]  # what gives such a value, and what reads one
    exact = run(model, image=IMAGE)
    assert not np.isfinite(RoundingRunner(saved(half_model(model), tmp_path))({"image": IMAGE})[0]).all()
    got = RoundingRunner(saved(half_model(model, islands), tmp_path))({"image": IMAGE})[0]
    np.testing.assert_allclose(got, exact, atol=5e-3 * np.abs(exact).max())


def test_masks_are_no_reason_for_an_island_but_nan_is():
    text = f"{HEADER} g (float[N,4] x) => (float[N,4] y) {{ a = Add(x, mask) \n y = Mul(a, two) }}"
    for value, expected in ((-np.inf, []), (np.nan, ["a", "y"])):
        model = parser.parse_model(text)
        mask = np.array([0, 0, 0, value], np.float32)
        arrays = {"mask": mask, "two": np.array(2, np.float32)}
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
        peaks = measured_ranges(model, [{"x": np.ones((1, 4), np.float32)}])
        assert islands_of(model, peaks) == expected


CHAIN = f"""{HEADER}
chain (float[N,8] x) => (float[N,8] y)
{{
  h = Cast<to = 10>(x)
  a = MatMul(h, w)
  b = MatMul(a, w)
  y = Cast<to = 1>(b)
}}"""


def chain():
    model = parser.parse_model(CHAIN)
    weight = (np.random.default_rng(2).standard_normal((8, 8)) / 2).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model, weight.astype(np.float32)


def test_the_rounding_runner_rounds_every_float16_value(tmp_path):
    model, weight = chain()
    x = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)

    def to_half(a):
        return a.astype(np.float16).astype(np.float32)

    expected = to_half(to_half(to_half(x) @ weight) @ weight)
    np.testing.assert_array_equal(RoundingRunner(saved(model, tmp_path))({"x": x})[0], expected)
    inserted = [node for node in rounding(model).graph.node if node.op_type == "Identity"]
    assert len(inserted) == 2 * 3


def test_the_rounding_runner_sees_an_overflow(tmp_path):
    """The plain session does not: it never stores float16."""
    model, weight = chain()
    x = np.full((1, 8), 6e4, np.float32) * np.sign(weight[:, :1].T + 1e-9)
    assert np.abs(x @ weight).max() > 65504
    assert np.isfinite(run(model, x=x)).all()
    assert not np.isfinite(RoundingRunner(saved(model, tmp_path))({"x": x})[0]).all()
