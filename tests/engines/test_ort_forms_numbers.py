"""The operators of ONNX Runtime's kernels, compiled here, against the layers that they take the place of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from styleclip_rt.engines import ort_kernels, ort_plain
from styleclip_rt.engines.ort_forms import styled

GRAPHS = "runtime/data/toyfaces-bundle/graphs"
FOLDER = "session.model_external_initializers_file_folder_path"
SLICES = [f"synthesize_tail.b{side}.conv{i}" for side in (16, 32, 64) for i in (0, 1)]


@pytest.fixture
def operators(with_kernels):
    """The path of the library of the operators, compiled here."""
    return ort_kernels.kept_operators()


@pytest.fixture
def runs(operators):
    """A function of a graph, its file or its bytes, and of its feeds: the outputs of the plain and the styled graph."""
    import onnxruntime

    def run(model, feeds, threads=2):
        results = []
        for data in (model if isinstance(model, bytes) else model.read_bytes(), styled(model)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.register_custom_ops_library(operators)
            if isinstance(model, Path):
                options.add_session_config_entry(FOLDER, str(model.parent))
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            results.append(session.run(None, feeds(session.get_inputs())))
        return results

    return run


def random_feeds(batch):
    """Normal values for every input; styles and demodulations around 1."""

    def feeds(inputs):
        rng = np.random.default_rng(5)
        shapes = {i.name: [size if isinstance(size, int) else batch for size in i.shape] for i in inputs}
        normal = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        near_one = {name for name in shapes if name.rpartition(".")[2] in ("s", "d")}
        return {name: (x * 0.3 + 1 if name in near_one else x).astype(np.float32) for name, x in normal.items()}

    return feeds


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("stored", "offset", "swap"), [("gain", "parts", True), ("float32", "folded", False), ("float16", "scaled", False)]
)
@pytest.mark.parametrize("up", [False, True])
def test_the_node_computes_what_the_layer_does(styled_graphs, runs, up, stored, offset, swap, batch):
    model = styled_graphs.one_layer(up=up, stored=stored, offset=offset, swap=swap, size=(40, 128), channels=(12, 20))
    (expected,), (found,) = runs(model.SerializeToString(), random_feeds(batch))
    assert found.shape == expected.shape == (batch, 20, 40, 128)
    assert np.abs(found - expected).max() < 1e-4
    assert 0.5 < expected.std() < 5


@pytest.mark.parametrize("batch", [1, 3])
def test_the_branches_to_colours_compute_what_they_did(styled_graphs, runs, batch):
    (expected,), (found,) = runs(styled_graphs.two_colours().SerializeToString(), random_feeds(batch))
    assert found.shape == expected.shape == (batch, 3, 64, 64)
    assert np.abs(found - expected).max() < 1e-4
    assert expected.std() > 0.5


@pytest.mark.parametrize("graph", ["synthesize", "synthesize_head.b64.conv1"])
def test_a_shipped_graph_computes_what_it_did(runs, root, graph):
    before, after = runs(root / f"{GRAPHS}/{graph}.onnx", random_feeds(2))
    for expected, found in zip(before, after, strict=True):
        assert np.abs(found - expected).max() < 1e-4
        assert expected.std() > 0.1


@pytest.mark.parametrize("graph", ["synthesize_u8", *SLICES])
def test_a_shipped_picture_is_the_same_but_for_rounding(runs, root, graph):
    (expected,), (found,) = runs(root / f"{GRAPHS}/{graph}.onnx", random_feeds(2))
    assert found.dtype == expected.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 1e-3
    assert expected.std() > 10


ODD = [(1, 3, 1, 4), (2, 3, 5, 8), (7, 9, 12, 4), (13, 11, 3, 20), (33, 40, 20, 36), (61, 130, 6, 12), (16, 16, 40, 8)]
"""Height and width of a map, channels in and out: partly empty tiles and vectors, one block and many."""


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("after", ["PRelu", "LeakyRelu", "Relu", ""])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", ODD)
def test_a_plain_convolution_computes_what_it_did(styled_graphs, runs, monkeypatch, size, stride, after, batch):
    monkeypatch.setattr(ort_plain, "pays", lambda *about: True)
    *sides, inputs, outputs = size
    model = styled_graphs.one_plain(size=sides, stride=stride, after=after, channels=(inputs, outputs))
    (expected,), (found,) = runs(model.SerializeToString(), random_feeds(batch))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())
    assert expected.std() > 0.1


@pytest.mark.parametrize("stored", ["float32", "float16", "gain"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_weight_of_a_plain_convolution_is_read(styled_graphs, runs, stride, bias, stored):
    """Of sizes that are taken as they come."""
    options = {"stride": stride, "stored": stored, "bias": bias, "channels": (128, 132)}
    model = styled_graphs.one_plain(size=(61, 63), **options)
    (expected,), (found,) = runs(model.SerializeToString(), random_feeds(1))
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert 0.5 < expected.std() < 5


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("size", [(20, 20), (100, 100)])
def test_the_number_of_threads_does_not_change_a_plain_convolution(styled_graphs, runs, size, threads):
    model = styled_graphs.one_plain(size=size, channels=(40, 72)).SerializeToString()
    (_, (expected,)), (_, (found,)) = runs(model, random_feeds(2)), runs(model, random_feeds(2), threads)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("graph", ["invert", "identify"])
def test_a_shipped_network_that_reads_images_computes_what_it_did(runs, root, graph):
    (expected,), (found,) = runs(root / f"{GRAPHS}/{graph}.onnx", random_feeds(2))
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert expected.std() > 1e-2
