"""What happens between the trace and the file: epsilons survive, weights shrink without losing a bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.spec import TensorSpec  # noqa: E402
from styleclip_rt.export import onnx_writer  # noqa: E402
from styleclip_rt.export.graphs import Graph, normal, together  # noqa: E402
from styleclip_rt.export.onnx_writer import onnx_from_module  # noqa: E402
from styleclip_rt.export.weights import WeightFile, factor, known_gains  # noqa: E402


class Epsilon(torch.nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def test_the_epsilon_of_pixel_norm_survives_export():
    """onnxscript's own optimiser drops "+ 1e-8", which makes 0 / 0 of a dead vector."""
    import onnxruntime

    port = TensorSpec("x", "float32", ("N", 4))
    graph = Graph("g", Epsilon(), (port,), (TensorSpec("y", "float32", ("N", 4)),), together(normal(4)))
    model = onnx_from_module(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.zeros((2, 4), np.float32)})
    assert np.array_equal(y, np.zeros((2, 4)))


def test_the_table_of_operators_is_made_once_and_torch_is_left_as_it_was():
    maker = vars(onnx_writer.ONNXRegistry)["from_torchlib"]
    port = TensorSpec("x", "float32", ("N", 4))
    graph = Graph("g", Epsilon(), (port,), (TensorSpec("y", "float32", ("N", 4)),), together(normal(4)))
    first, before = onnx_from_module(graph), onnx_writer.registry_of.cache_info()
    assert onnx_from_module(graph) == first
    after = onnx_writer.registry_of.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
    assert vars(onnx_writer.ONNXRegistry)["from_torchlib"] is maker

    def fail():
        with onnx_writer.one_registry():
            assert vars(onnx_writer.ONNXRegistry)["from_torchlib"] is not maker
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert vars(onnx_writer.ONNXRegistry)["from_torchlib"] is maker


class Clash(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 3)

    def forward(self, tokens):
        return self.table(tokens).sum(dim=1)


def test_an_output_may_have_the_name_of_an_inner_value():
    feeds = lambda batch, rng: (torch.randint(0, 5, (batch, 4), generator=rng),)  # noqa: E731
    ports = (TensorSpec("tokens", "int64", ("N", 4)),), (TensorSpec("embedding", "float32", ("N", 3)),)
    model = onnx_from_module(Graph("g", Clash().eval(), *ports, feeds))
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.output] == ["embedding"]


def test_factor_is_exact_or_nothing():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 40)).astype(np.float16)
    gain, scales = np.float32(0.0123), rng.uniform(0.5, 2, 6).astype(np.float32)
    gains = [np.asarray(0.5, np.float32), np.asarray(gain), scales]
    cases = {
        "plain": half.astype(np.float32),
        "scalar": half.astype(np.float32) * gain,
        "rows": half.astype(np.float32) * scales[:, None],
    }
    for name, array in cases.items():
        found = factor(array, gains)
        assert found is not None, name
        h, g = found
        assert np.array_equal(h.astype(np.float32) * (1 if g is None else g), array), name
    assert factor(rng.normal(size=(6, 40)).astype(np.float32), gains) is None
    assert factor(np.full((6, 40), 1e30, np.float32), gains) is None


def test_known_gains_hold_layer_gains_and_batch_norm_scales():
    from styleclip_rt.runtime.training.networks.mapper import EqualLinear

    norm = torch.nn.BatchNorm2d(3).eval()
    norm.running_var.fill_(4.0)
    gains = known_gains(torch.nn.Sequential(EqualLinear(16, 4, lr_mul=0.01), norm))
    assert any(g.ndim == 0 and np.isclose(g, 0.0025) for g in gains)
    assert any(g.shape == (3,) and np.allclose(g, 0.5, atol=1e-4) for g in gains)


def matmul_model(*weights):
    """y = x @ w0 @ w1 ..."""
    nodes, name = [], "x"
    for i, _ in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"y{i}"]))
        name = f"y{i}"
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    size = weights[0].shape[0]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", size]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def moved(tmp_path, name, weights, model, gains=()):
    """The model with its weights in the file, saved beside it."""
    traced = ir.from_proto(model)
    weights.take(traced, gains)
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(ir.to_proto(traced).SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    return path


def test_fp16_storage_changes_no_result_and_keeps_other_weights(tmp_path):
    rng = np.random.default_rng(0)
    half = rng.normal(size=(20, 20)).astype(np.float16).astype(np.float32)
    rows = rng.uniform(0.5, 2, 20).astype(np.float32)
    other = rng.normal(size=(20, 20)).astype(np.float32)
    model = matmul_model(half * np.float32(0.3), half, half * rows[:, None], other)
    x = {"x": rng.normal(size=(2, 20)).astype(np.float32)}
    (before,) = onnx.reference.ReferenceEvaluator(model).run(None, x)
    weights = WeightFile(tmp_path / "weights.bin")
    path = moved(tmp_path, "m", weights, model, [np.asarray(0.3, np.float32), rows])
    weights.close()
    (after,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, x)
    assert np.array_equal(before, after)
    types = {t.name: t.data_type for t in onnx.load(path, load_external_data=False).graph.initializer}
    assert {types[f"w{i}.f16"] for i in range(3)} == {TensorProto.FLOAT16}
    assert types["w3"] == TensorProto.FLOAT
    assert "w1" not in types
    half_bytes = 64 * -(-800 // 64)  # w0, w1 and w2 are one and the same fp16 matrix
    assert (tmp_path / "weights.bin").stat().st_size == half_bytes + 1600


def test_equal_weights_are_written_once_and_large_ones_aligned(tmp_path):
    import onnxruntime

    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(n, n)).astype(np.float32) for n in (20, 200))
    weights = WeightFile(tmp_path / "weights.bin")
    for name, arrays in {"a": (small,), "b": (large, large), "c": (small, small)}.items():
        model = matmul_model(*arrays)
        x = rng.normal(size=(1, arrays[0].shape[0])).astype(np.float32)
        expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
        path = moved(tmp_path, name, weights, model)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
    weights.close()
    assert sorted(weights.offsets.values()) == [0, 4096]
    assert (tmp_path / "weights.bin").stat().st_size == 4096 + large.nbytes
