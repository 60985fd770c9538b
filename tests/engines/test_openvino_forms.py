"""OpenVINO's rewrites of a graph: each keeps the maths, is applied where it should be, and nowhere else."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the graphs are built with onnx")
openvino = pytest.importorskip("openvino", reason="extra 'openvino'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from styleclip_rt.engines import openvino as backend  # noqa: E402
from styleclip_rt.engines import openvino_forms as forms  # noqa: E402
from styleclip_rt.engines.openvino import OpenVinoEngine  # noqa: E402
from styleclip_rt.engines.ort import OrtEngine  # noqa: E402

RNG = np.random.default_rng(3)


def constant(name, array, dtype=np.float32):
    return numpy_helper.from_array(np.ascontiguousarray(array, dtype=dtype), name)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def graph(nodes, constants, inputs, outputs, kind=TensorProto.FLOAT):
    ins, outs = ([helper.make_tensor_value_info(n, kind, s) for n, s in table.items()] for table in (inputs, outputs))
    made = helper.make_graph(nodes, "test", ins, outs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def wide_convolution(side=64, inputs=128, outputs=144, stride=1, pads=(1, 1, 1, 1), dilation=1, dtype=np.float32):
    weight = normal(outputs, inputs, 3, 3) / np.sqrt(9 * inputs)
    about = {"strides": [stride] * 2, "pads": list(pads), "dilations": [dilation] * 2}
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    node = helper.make_node("Conv", ["x", "w"], ["y"], **about)
    return graph(
        [node], [constant("w", weight, dtype)], {"x": ["N", inputs, side, side]}, {"y": ["N", outputs, "a", "b"]}, kind
    )


def upsampling(side=8, stride=2, border=1, taps=3, readers=1, noise=True):
    """A transposed convolution, a depthwise filter, an offset of a noise map and a bias, times a gain, leaky ReLU."""
    inputs, outputs = 5, 6
    size = (side - 1) * stride + taps + 2 * border - 3
    constants = [
        constant("w", normal(inputs, outputs, taps, taps)), constant("f", normal(outputs, 1, 4, 4)),
        constant("n", normal(size, size) if noise else normal(outputs, size, size)),
        constant("b", normal(outputs, 1, 1)), constant("g", 1.5),
    ]  # fmt: skip
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["t"], strides=[stride] * 2),
        helper.make_node("Conv", ["t", "f"], ["u"], group=outputs, pads=[border] * 4),
        helper.make_node("Add", ["n", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "g"], ["offset"]),
        helper.make_node("Add", ["u", "offset"], ["v"]),
        helper.make_node("LeakyRelu", ["v"], ["y"], alpha=0.2),
    ]
    results = {"y": ["N", outputs, size, size]}
    if readers > 1:
        nodes.append(helper.make_node("Neg", ["t"], ["z"]))
        results["z"] = ["N", outputs, "a", "a"]
    return graph(nodes, constants, {"x": ["N", inputs, side, side]}, results)


def rewritten(model):
    """(the rewritten openvino.Model, how often each rewrite was applied)."""
    read = openvino.Core().read_model(model)
    library = backend.library()
    counts = [forms.split_offsets(read, library)]
    forms.fold_constants(read, library)
    counts += [forms.phase_convolutions(read, library), forms.winograd_convolutions(read, library)]
    return read, counts


def both(model, batch, channels, side, dtype=np.float32):
    """The outputs of ONNX Runtime, which reads the file as it is, and of OpenVINO."""
    x = RNG.standard_normal((batch, channels, side, side)).astype(dtype)
    return OrtEngine(model, threads=1).run({"x": x}), OpenVinoEngine(model, threads=2).run({"x": x})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 144), (160, 128)])
def test_a_wide_convolution_by_tiles_is_the_same_convolution(batch, inputs, outputs):
    model = wide_convolution(inputs=inputs, outputs=outputs)
    assert rewritten(model)[1] == [0, 0, 1]
    expected, found = both(model, batch, inputs, 64)
    assert np.abs(found["y"] - expected["y"]).max() < 2e-4  # the tile's sums cancel: 6e-5 was seen
    assert 0.5 < expected["y"].std() < 2


@pytest.mark.parametrize(
    "options",
    [
        {"side": 66}, {"side": 32}, {"inputs": 64}, {"outputs": 64}, {"stride": 2}, {"pads": (0, 0, 0, 0)},
        {"pads": (2, 2, 2, 2), "dilation": 2}, {"dtype": np.float16},
    ],
    ids=str,
)  # fmt: skip
def test_other_convolutions_stay_as_they_are(options):
    assert rewritten(wide_convolution(**options))[1] == [0, 0, 0]


def test_the_matrices_are_those_of_the_convolution():
    """y = A^T [(G g) * (B^T d)] against four sums of three products each."""
    d, g = RNG.standard_normal(6), RNG.standard_normal(3)
    m = list((forms.G @ g) * (forms.B_T @ d))
    plain = type("ops", (), {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "constant": float})
    expected = [d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2] for i in range(4)]
    assert np.allclose(forms.untransformed(m, plain), expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", [1, 4, 8])
def test_an_upsampling_layer_by_phases_is_the_same_layer(batch, side):
    model = upsampling(side)
    read, counts = rewritten(model)
    assert counts == [1, 1, 0]
    assert "ConvolutionBackpropData" not in Counter(node.get_type_name() for node in read.get_ops())
    expected, found = both(model, batch, 5, side)
    assert found["y"].shape == expected["y"].shape == (batch, 6, 2 * side, 2 * side)
    assert np.abs(found["y"] - expected["y"]).max() < 2e-5


@pytest.mark.parametrize("options", [{"stride": 1}, {"border": 0}, {"taps": 4}, {"readers": 2}], ids=str)
def test_other_transposed_convolutions_stay_as_they_are(options):
    model = upsampling(**options)
    assert rewritten(model)[1][1] == 0
    expected, found = both(model, 2, 5, 8)
    assert all(np.abs(found[name] - expected[name]).max() < 2e-5 for name in expected)


def test_the_offset_is_never_a_constant_of_a_whole_map():
    read, counts = rewritten(upsampling(8))
    assert counts[0] == 1
    sizes = {tuple(n.output(0).get_shape()) for n in read.get_ops() if n.get_type_name() == "Constant"}
    assert (1, 6, 1, 1) in sizes
    assert (1, 1, 16, 16) in sizes
    assert not any(np.prod(size) >= 6 * 16 * 16 for size in sizes)


def test_an_offset_that_is_no_sum_of_a_map_and_a_bias_stays():
    model = upsampling(8, noise=False)
    assert rewritten(model)[1][0] == 0
    expected, found = both(model, 1, 5, 8)
    assert np.abs(found["y"] - expected["y"]).max() < 2e-5


def test_every_batch_size_is_compiled_once_and_the_oldest_gives_way(monkeypatch):
    model, compiled = upsampling(4), []
    core = openvino.Core()

    class Counting:
        def read_model(self, *arguments):
            return core.read_model(*arguments)

        def compile_model(self, graph, *arguments):
            compiled.append(next(iter(graph.inputs[0].get_partial_shape())).get_length())
            return core.compile_model(graph, *arguments)

    monkeypatch.setattr(backend, "_core", Counting)
    monkeypatch.setattr(backend, "SHAPES", 2)
    engine, reference = OpenVinoEngine(model, threads=2), OrtEngine(model, threads=1)
    feeds = {n: {"x": normal(n, 5, 4, 4)} for n in (1, 2, 3)}
    expected = {n: reference.run(feed)["y"] for n, feed in feeds.items()}
    errors = []

    def work(n):
        errors.append(np.abs(engine.run(feeds[n])["y"] - expected[n]).max())

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 1, 2, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(compiled) == [1, 2]
    for n in (3, 1, 3, 1, 2):  # 3 drives out whichever of 1 and 2 was used first
        work(n)
    assert len(errors) == 11
    assert max(errors) < 2e-5
    assert compiled.count(3) == 1
    assert len(engine._compiled.compiled) == 2
