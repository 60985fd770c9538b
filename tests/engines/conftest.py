"""A tiny bundle, built with onnx: two graphs over one shared `weights.bin`, and one with two inputs that share N."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the engine tests build their graphs with onnx")

from onnx import TensorProto, helper  # noqa: E402

from styleclip_rt.engines import driver, fallback, nvinfer, ort, select  # noqa: E402
from styleclip_rt.engines.device_arrays import DeviceArray  # noqa: E402
from styleclip_rt.engines.device_memory import Cuda, host_view  # noqa: E402
from styleclip_rt.engines.plan_cache import PlanCache  # noqa: E402
from styleclip_rt.engines.trt import Setup, TensorRtEngine  # noqa: E402

WEIGHT = (np.arange(16, dtype=np.float16).reshape(4, 4) - 8) / 4
FEATURES = ["N", 4]


def stored_outside(name: str, array: np.ndarray, offset: int, location: str = "weights.bin") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(nodes: list[Any], inputs: dict[str, list], outputs: dict[str, list], constants: tuple = ()) -> bytes:
    ins, outs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in table.items()]
        for table in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "test", ins, outs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def projection(transposed: bool, location: str = "weights.bin") -> bytes:
    """y = x @ W, or x @ W.T; W is float16 in `location` at byte 64, cast to float32 in the graph."""
    cast = helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT)
    turn = helper.make_node("Transpose", ["w32"], ["wt"], perm=[1, 0])
    multiply = helper.make_node("MatMul", ["x", "wt" if transposed else "w32"], ["y"])
    nodes = [cast, turn, multiply] if transposed else [cast, multiply]
    return model_of(nodes, {"x": FEATURES}, {"y": FEATURES}, (stored_outside("w", WEIGHT, 64, location),))


def blend() -> bytes:
    """y = a + t * b with t [N]."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Unsqueeze", ["t", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "b"], ["scaled"]),
        helper.make_node("Add", ["a", "scaled"], ["y"]),
    ]
    return model_of(nodes, {"a": FEATURES, "b": FEATURES, "t": ["N"]}, {"y": FEATURES}, (axes,))


def rows(**shapes: list) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]


def write_bundle(root: Path) -> Path:
    files = {
        "graphs/weights.bin": bytes(64) + WEIGHT.tobytes(),
        "graphs/project.onnx": projection(False),
        "graphs/back.onnx": projection(True),
        "graphs/blend.onnx": blend(),
        "tokenizer.json": b"{}",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    graphs = {
        "project": {"file": "graphs/project.onnx", "inputs": rows(x=FEATURES), "outputs": rows(y=FEATURES)},
        "mapper/back": {"file": "graphs/back.onnx", "inputs": rows(x=FEATURES), "outputs": rows(y=FEATURES)},
        "blend": {
            "file": "graphs/blend.onnx",
            "inputs": rows(a=FEATURES, b=FEATURES, t=["N"]),
            "outputs": rows(y=FEATURES),
        },
    }
    hashes = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest = {"format": "styleclip-rt/bundle", "version": 1, "name": "tiny", "files": hashes, "graphs": graphs}
    (root / "bundle.json").write_text(json.dumps(manifest))
    return root


def _beside(name: str) -> Any:
    """A module of this folder; tests run in pytest's mode `importlib`, where it is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_cuda, fake_trt, graphs_of_layers = _beside("fake_cuda"), _beside("fake_trt"), _beside("styled_graphs")
CPU_DEVICE = 1  # what DLPack calls host memory, in which the stand-in keeps its device


@pytest.fixture
def make_setup(tmp_path: Path) -> Callable[..., Setup]:
    """A `Setup` on stand-ins for the driver and for TensorRT, found in it as `setup.cuda.driver` and `setup.trt`."""

    def make(version: str = "11.4.0.25", name: str = "tensorrt", driver: Any = None, **changes: Any) -> Setup:
        driver = driver or fake_cuda.FakeDriver()
        cuda = Cuda(driver, dlpack_type=CPU_DEVICE)
        return Setup(fake_trt.make(driver, version, name), cuda, PlanCache(tmp_path / "plans"), **changes)

    return make


@pytest.fixture
def setup(make_setup: Callable[..., Setup]) -> Setup:
    """TensorRT 11 on one card, both stand-ins."""
    return make_setup()


@pytest.fixture
def on_device(setup: Setup) -> Callable[..., DeviceArray]:
    """A function of an array that gives a `DeviceArray` with its content."""

    def put(array: np.ndarray, stream: int = 0) -> DeviceArray:
        with setup.cuda.current():
            made = DeviceArray(setup.cuda, array.dtype.name, array.shape, stream)
        host_view(made.address, array.shape, array.dtype.name)[...] = array
        return made

    return put


@pytest.fixture
def stand_in() -> Any:
    """The module of the stand-in for the driver."""
    return fake_cuda


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    """A fresh bundle directory, free to be damaged."""
    return write_bundle(tmp_path / "tiny")


@pytest.fixture
def tamper(bundle_dir: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Change the manifest of `bundle_dir` in place by a function of the parsed JSON."""

    def apply(change: Callable[[dict[str, Any]], Any]) -> Path:
        path = bundle_dir / "bundle.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        return bundle_dir

    return apply


@pytest.fixture
def relist(bundle_dir: Path) -> Callable[[str, bytes], None]:
    """Put other bytes into a file of `bundle_dir` and its true hash and size into the manifest."""

    def apply(name: str, data: bytes) -> None:
        (bundle_dir / name).write_bytes(data)
        manifest = json.loads((bundle_dir / "bundle.json").read_text())
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (bundle_dir / "bundle.json").write_text(json.dumps(manifest))

    return apply


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The builders above and the weight, for tests that make graphs of their own."""
    return SimpleNamespace(weight=WEIGHT.astype(np.float32), model_of=model_of, projection=projection, blend=blend)


@pytest.fixture(scope="session")
def styled_graphs() -> Any:
    """The module that builds graphs of styled layers."""
    return graphs_of_layers


@pytest.fixture
def fresh_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is remembered of what was asked before, and no TensorRT is installed."""
    caches = (
        select._cuda_trial,
        select._tensorrt_trial,
        select._ort_tensorrt_trial,
        fallback._said,
        ort._libraries_missing,
        driver.cuda_driver,
    )
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(nvinfer, "installed", lambda: "")  # the tests below say when it is there
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> Callable[[driver.Driver], None]:
    """Pretend that the driver answers as given."""

    def pretend(answer: driver.Driver) -> None:
        monkeypatch.setattr(ort, "cuda_driver", lambda: answer)
        monkeypatch.setattr(select, "cuda_driver", lambda: answer)

    return pretend


@pytest.fixture
def library() -> Callable[..., SimpleNamespace]:
    """A stand-in for the module onnxruntime, with attributes as given."""

    def make(**attributes: Any) -> SimpleNamespace:
        return SimpleNamespace(
            **{
                "__version__": "1.31.1",
                "__file__": "/nowhere/onnxruntime/__init__.py",
                "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
                **attributes,
            }
        )

    return make


@pytest.fixture
def engine(bundle_dir: Path, setup: Setup) -> Iterator[TensorRtEngine]:
    """The graph `project` on the stand-ins for TensorRT, its making forgotten."""
    with TensorRtEngine(bundle_dir / "graphs/project.onnx", setup=setup) as opened:
        setup.trt.log.clear()
        setup.cuda.driver.counts.clear()
        yield opened


@pytest.fixture(name="driver")
def fake_driver(setup: Setup) -> Any:
    """The stand-in for the driver, with its counts of calls."""
    return setup.cuda.driver
