"""The same contract for every backend that is installed here; a backend that is not is skipped, and says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from styleclip_rt.engines import ort
from styleclip_rt.engines.errors import BundleError, EngineError, EngineUnavailable, InputError
from styleclip_rt.engines.ort import OrtEngine
from styleclip_rt.engines.select import engine_class
from styleclip_rt.engines.spec import GraphSpec, TensorSpec
from styleclip_rt.engines.trial import TRIAL_GRAPH, trial
from styleclip_rt.engines.trt import TensorRtEngine

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(params=["onnxruntime", "onnxruntime-kernels", "openvino", "tensorrt"])
def backend(request):
    library = request.param.partition("-")[0]
    if library != "tensorrt":  # its library is stood in for: it cannot run without a driver
        pytest.importorskip(library, reason=f"the backend {request.param} is not installed")
    if request.param == "onnxruntime-kernels":
        request.getfixturevalue("with_kernels")
    return request.param


@pytest.fixture
def device(backend):
    return "cuda" if backend == "tensorrt" else "cpu"


@pytest.fixture
def make(backend, request):
    if backend == "tensorrt":
        return partial(TensorRtEngine, setup=request.getfixturevalue("setup"))
    return engine_class(backend)


@pytest.fixture
def engine(make, bundle_dir):
    with make(bundle_dir / "graphs/project.onnx", threads=1) as opened:
        yield opened


def test_it_says_what_it_is(engine, backend, device):
    assert (engine.backend, engine.device) == (backend, device)
    (x,) = engine.spec.inputs
    assert (x.name, x.dtype, x.shape[1]) == ("x", "float32", 4)
    assert isinstance(x.shape[0], str)


@pytest.mark.parametrize("n", [1, 3, 5, 8, 17, 40])
def test_it_computes_with_any_batch(engine, tiny, n):
    x = np.resize(X, (n, 4))
    np.testing.assert_allclose(engine.run({"x": x})["y"], x @ tiny.weight, rtol=1e-5, atol=1e-6)


def test_it_checks_feeds(engine):
    with pytest.raises(InputError, match="missing x"):
        engine.run({})


def test_the_parts_of_a_run_are_told_apart_on_a_device_alone(engine, device):
    parts = engine.split_ms({"x": X})
    assert list(parts) == ([] if device == "cpu" else ["h2d_ms", "compute_ms", "d2h_ms"])
    with pytest.raises(InputError, match="missing x"):
        engine.split_ms({})
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.split_ms({"x": X})


def test_onnxruntime_times_a_run_over_bound_memory(bundle_dir, monkeypatch):
    """As on a card, but bound to the memory of the host."""
    pytest.importorskip("onnxruntime", reason="the backend onnxruntime is not installed")
    real, devices = ort._parts_of_run, []

    def on_host(session, feeds, outputs, device):
        devices.append(device)
        return real(session, feeds, outputs, "cpu" if len(devices) == 1 else "no such device")

    monkeypatch.setattr(ort, "_parts_of_run", on_host)
    with OrtEngine(bundle_dir / "graphs/blend.onnx", threads=1) as engine:
        engine.device = "cuda"
        feeds = {"a": X, "b": X, "t": X[:, 0].copy()}
        parts = engine.split_ms(feeds)
        assert list(parts) == ["h2d_ms", "compute_ms", "d2h_ms"]
        assert all(ms > 0 for ms in parts.values())
        assert devices == ["cuda"]
        with pytest.raises(EngineError, match="failed in ONNX Runtime"):
            engine.split_ms(feeds)


def test_outputs_stay_and_inputs_are_left_alone(engine):
    x = X.copy()
    first = engine.run({"x": x})["y"]
    kept = first.copy()
    engine.run({"x": x * 7})
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, X)


def test_read_only_feeds_are_fine(engine, tiny):
    x = X.copy()
    x.flags.writeable = False
    np.testing.assert_allclose(engine.run({"x": x})["y"], X @ tiny.weight, rtol=1e-5, atol=1e-6)


def test_threads_do_not_mix_their_results(engine, tiny):
    together = threading.Barrier(8)

    def work(i):
        together.wait()
        return [(i, engine.run({"x": X + i})["y"]) for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for i, y in results:
                np.testing.assert_allclose(y, (X + i) @ tiny.weight, rtol=1e-5, atol=1e-5)


def test_a_closed_engine_says_so(make, bundle_dir):
    engine = make(bundle_dir / "graphs/blend.onnx")
    engine.close()
    engine.close()
    feeds = {"a": X, "b": X, "t": np.ones(3, np.float32)}
    with pytest.raises(EngineError, match="the engine is closed; open the bundle again"):
        engine.run(feeds)


def test_the_free_dimension_takes_its_name_from_the_promised_spec(make, bundle_dir):
    tensor = lambda name: TensorSpec(name, "float32", ("N", 4))  # noqa: E731
    spec = GraphSpec("project", (tensor("x"),), (tensor("y"),))
    assert make(bundle_dir / "graphs/project.onnx", spec).spec is spec
    wrong = GraphSpec("project", (tensor("s"),), (tensor("y"),))
    with pytest.raises(BundleError, match=r"input s float32 \[N, 4\] is missing; input x .* is extra"):
        make(bundle_dir / "graphs/project.onnx", wrong)


def test_it_takes_a_graph_in_memory(make, device):
    with make(TRIAL_GRAPH, threads=1) as engine:
        assert engine.run({"x": np.array([4], np.float32)})["y"] == 8
    assert trial(make, device) == ""


@pytest.mark.parametrize("data", [b"", b"not a graph", TRIAL_GRAPH[:20]])
def test_a_damaged_file_is_refused_in_one_line(make, tmp_path, data):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx: .+") as caught:
        make(path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_refused(make, bundle_dir):
    (bundle_dir / "graphs/weights.bin").unlink()
    with pytest.raises(EngineError, match=r"cannot load .*project\.onnx: .*weights\.bin"):
        make(bundle_dir / "graphs/project.onnx")


def test_weights_cut_short_are_refused(make, bundle_dir):
    path = bundle_dir / "graphs/weights.bin"
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(EngineError, match=r"cannot load .*project\.onnx"):
        make(bundle_dir / "graphs/project.onnx")


def test_a_failure_inside_a_run_is_an_engine_error(make, tiny, tmp_path):
    """A reshape that no batch but 2 survives: the feeds are right, the graph is not.

    At one thread OpenVINO (2026.4) loses the error and answers with two rows, whatever came.
    """
    helper = pytest.importorskip("onnx").helper
    shape = helper.make_tensor("shape", 7, [2], [2, 4])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    (tmp_path / "g.onnx").write_bytes(tiny.model_of([node], {"x": ["N", 4]}, {"y": [2, 4]}, (shape,)))
    with pytest.raises(EngineError, match=r"failed in .+"):
        make(tmp_path / "g.onnx", threads=2).run({"x": X})


def test_openvino_has_no_cuda(bundle_dir):
    pytest.importorskip("openvino")
    with pytest.raises(EngineUnavailable, match="OpenVINO runs on the CPU here, not on 'cuda'"):
        engine_class("openvino")(bundle_dir / "graphs/project.onnx", device="cuda")


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-kernels"])
def test_onnxruntime_is_told_its_threads(bundle_dir, name, request):
    if name != "onnxruntime":
        request.getfixturevalue("with_kernels")
    options = engine_class(name)(bundle_dir / "graphs/project.onnx", threads=3)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
