"""When TensorRT is taken, why not, and what runs instead; the library and the driver are stand-ins that compute."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from styleclip_rt.engines import driver, nvinfer, ort, select, trt
from styleclip_rt.engines.build import FINISHED, VARIABLES, BuildOptions, options_from
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.errors import BundleError, EngineError, EngineUnavailable, InputError
from styleclip_rt.engines.spec import GraphSpec, TensorSpec
from styleclip_rt.engines.trial import TRIAL_GRAPH

pytestmark = pytest.mark.usefixtures("fresh_caches")
NO_DRIVER = driver.Driver(0, "", "no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)")
ONE_DEVICE = driver.Driver(1, "13.0", "")


@pytest.fixture
def with_tensorrt(monkeypatch, with_driver, setup):
    """Pretend that TensorRT and a card are there; both are stand-ins that really compute."""
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(trt, "cuda_driver", lambda: ONE_DEVICE)
    monkeypatch.setattr(nvinfer, "installed", lambda: "tensorrt")
    monkeypatch.setattr(nvinfer, "library", lambda: setup.trt)
    monkeypatch.setattr(trt, "_machine", lambda: setup)
    monkeypatch.setattr(select, "_has", lambda module: module != "openvino")
    return setup


def test_auto_takes_tensorrt_where_it_really_runs(with_tensorrt, bundle_dir):
    choice = select.choose()
    assert choice == select.Choice("tensorrt", "cuda", "TensorRT runs on CUDA here", fallback=True)
    assert with_tensorrt.trt.log.count("build") == 1  # the trial graph was built, proven and run
    with open_bundle(bundle_dir) as bundle:
        x = np.ones((2, 4), np.float32)
        assert bundle.engine("project").backend == "tensorrt"
        assert bundle.run("project", x=x)["y"].shape == (2, 4)
    row = select._status("tensorrt", "cuda")
    assert (row.usable, row.reason, row.mend) == (True, "", "")


def test_without_a_driver_nothing_of_tensorrt_is_ever_touched(monkeypatch, with_driver):
    with_driver(NO_DRIVER)
    monkeypatch.setattr(trt, "cuda_driver", lambda: NO_DRIVER)
    monkeypatch.setattr(nvinfer, "installed", lambda: "tensorrt")
    monkeypatch.setattr(nvinfer, "library", lambda: pytest.fail("the library was loaded"))
    trt._machine.cache_clear()
    row = select._status("tensorrt", "cuda")
    assert (row.usable, row.reason, row.mend) == (False, NO_DRIVER.reason, "")
    assert select.choose().device == "cpu"
    with pytest.raises(EngineUnavailable, match=r"device 'cuda' cannot be used: no NVIDIA driver"):
        select.choose(engine="tensorrt")
    with pytest.raises(EngineUnavailable, match="TensorRT cannot run: no NVIDIA driver"):
        trt.TensorRtEngine(TRIAL_GRAPH)


def test_tensorrt_that_cannot_load_gives_way_and_says_why(with_tensorrt, monkeypatch, library):
    with_tensorrt.trt.refuse["deserialize"] = "unsupported SM 9.0"
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: ["CPUExecutionProvider"]))
    choice = select.choose()
    assert (choice.engine, choice.device, choice.fallback) == ("onnxruntime", "cpu", False)
    assert choice.reason.startswith(
        "CUDA is not used: TensorRT is not used: TensorRT 11.4.0.25 cannot load its plan of"
    )
    assert "unsupported SM 9.0" in choice.reason
    with pytest.raises(EngineUnavailable, match=r"unsupported SM 9\.0\. Or use engine='onnxruntime'"):
        select.choose(engine="tensorrt")
    row = select._status("tensorrt", "cuda")
    assert (row.usable, row.mend) == (False, "")


def test_a_version_that_nobody_has_tried_is_a_reason_not_a_crash(with_tensorrt, monkeypatch):
    monkeypatch.setattr(with_tensorrt.trt, "Builder", lambda logger: (_ for _ in ()).throw(TypeError("new signature")))
    assert select._tensorrt_trial() == "the trial graph ended in TypeError: new signature"


def test_missing_bindings_are_mended_by_their_own_line(with_tensorrt, monkeypatch):
    monkeypatch.setattr(select, "_has", lambda module: module == "onnxruntime")
    row = select._status("tensorrt", "cuda")
    assert (row.reason, row.mend) == (
        "cuda-bindings is not installed",
        "python -m pip install 'cuda-bindings>=12.6'",
    )


@pytest.mark.parametrize(
    ("refuse", "noise", "message"),
    [
        ({"build": "no tactic"}, 0.0, r"cannot build the graph .*: no tactic"),
        ({"parse": "unsupported Conv"}, 0.0, r"cannot parse the graph: node 'conv_1' \(Conv\): unsupported Conv"),
        ({}, 0.5, r"fails its accuracy gate: output 'y' at batch 1: relative error .*, at most 1e-02 is allowed"),
    ],
)
def test_a_graph_that_tensorrt_cannot_serve_runs_in_onnxruntime_and_says_so_once(
    with_tensorrt, bundle_dir, refuse, noise, message
):
    x = np.ones((2, 4), np.float32)
    with open_bundle(bundle_dir) as bundle:
        with_tensorrt.trt.refuse.update(refuse)
        with_tensorrt.trt.noise = noise
        with pytest.warns(UserWarning, match=message) as caught:
            outputs = [bundle.run(name, x=x)["y"] for name in ("project", "mapper/back")]
        assert len(caught) == 1
        assert "ONNX Runtime runs the graph, on 'cpu'" in str(caught[0].message)
        assert {bundle.engine(name).backend for name in ("project", "mapper/back")} == {"onnxruntime"}
    assert all(np.isfinite(y).all() for y in outputs)
    with open_bundle(bundle_dir, engine="tensorrt") as bundle, pytest.raises(EngineError, match=message):
        bundle.run("project", x=x)


def test_options_reach_the_plan_from_the_caller_else_from_the_environment(with_tensorrt, bundle_dir, monkeypatch):
    def built(**given):
        with open_bundle(bundle_dir, **given) as bundle:
            ranges = bundle.engine("project")._pool.plan.ranges
        config = with_tensorrt.trt.configs[-1]
        return ranges, config.pools["WORKSPACE"] >> 20, len(with_tensorrt.trt.configs)

    ranges, workspace, count = built(tensorrt=BuildOptions((1, 3), max_batch=5, workspace_mib=256))
    assert (ranges, workspace) == ([(1, 1), (3, 3), (1, 5)], 256)
    values = {"batches": "2, 4", "max_batch": "0", "workspace_mib": "96"}
    for field, value in values.items():
        monkeypatch.setenv(VARIABLES[field], value)
    assert built() == ([(2, 2), (4, 4)], 96, count + 1)
    assert built()[2] == count + 1, "the same options find the plan that is kept"
    assert built(tensorrt=BuildOptions()) == ([(1, 1), (2, 2), (4, 4), (8, 8), (1, 16)], 4096, count + 2)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BATCHES", "1,x", "STYLECLIP_RT_TENSORRT_BATCHES is '1,x', expected whole numbers such as 1,2,4"),
        ("BATCHES", "1,1", r"batches \(1, 1\) with max_batch 16: give distinct sizes"),
        ("MAX_BATCH", "-1", "STYLECLIP_RT_TENSORRT_MAX_BATCH is '-1', expected a whole number"),
        ("WORKSPACE_MIB", "1e3", "STYLECLIP_RT_TENSORRT_WORKSPACE_MIB is '1e3', expected a whole number"),
        ("WORKSPACE_MIB", "0", "workspace_mib is 0, expected 1 or more"),
        ("WORKSPACE_MIB", "9" * 40, "of at most 9 digits"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variable, value, message):
    assert options_from({f"STYLECLIP_RT_TENSORRT_{variable}": " "}) == BuildOptions()
    with pytest.raises(InputError, match=message):
        options_from({f"STYLECLIP_RT_TENSORRT_{variable}": value})


def test_a_caller_hears_of_builds_and_may_end_them(with_tensorrt, bundle_dir):
    heard = []
    with open_bundle(bundle_dir, progress=lambda *step: heard.append(step) or True) as bundle:
        bundle.engine("project")
        steps = [("project", "tactics", done, 3) for done in (0, 1, 2, 3, 3)]
        assert heard == [*steps, ("project", "accuracy gate", 0, 1), ("project", FINISHED, 1, 1)]
    with open_bundle(bundle_dir, progress=lambda *step: heard.append(step) or True) as bundle:
        bundle.engine("project")
        assert len(heard) == 7, "a plan that is kept is not built"
        with_tensorrt.trt.refuse["build"] = "no tactic"
        with pytest.warns(UserWarning, match="no tactic"):
            assert bundle.engine("mapper/back").backend == "onnxruntime"
        assert heard[-1] == ("mapper/back", FINISHED, 1, 1)
    with_tensorrt.trt.refuse.clear()
    with (
        open_bundle(bundle_dir, engine="tensorrt", progress=lambda *step: False) as bundle,
        pytest.raises(EngineError, match="was ended by its caller"),
    ):
        bundle.engine("mapper/back")


def test_a_damaged_bundle_is_no_reason_to_fall_back(with_tensorrt, bundle_dir):
    make = select.engine_class("tensorrt", fallback=True)
    wrong = GraphSpec("project", (TensorSpec("s", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", 4)),))
    with pytest.raises(BundleError, match="is not what bundle"):
        make(bundle_dir / "graphs/project.onnx", wrong)


def test_the_tensorrt_provider_is_had_by_name_and_checked(with_driver, monkeypatch, library):
    with_driver(ONE_DEVICE)
    with pytest.raises(EngineUnavailable, match="the engine 'onnxruntime-tensorrt' runs on cuda, not 'cpu'"):
        select.engine_class("onnxruntime-tensorrt")(TRIAL_GRAPH, device="cpu")
    cuda = ("CUDAExecutionProvider", ort.CUDA_OPTIONS)
    providers = ["TensorrtExecutionProvider", cuda, "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: list(ort.PROVIDERS.values())))
    row = select._status("onnxruntime-tensorrt", "cuda")
    assert row.reason.startswith("the TensorRT 10 libraries are missing (")
    assert row.mend == "python -m pip install 'tensorrt>=10.13,<11'"
    asked = []

    def session(source, options, providers):
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    options = SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake = library(
        InferenceSession=session, SessionOptions=lambda: options, ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0)
    )
    monkeypatch.setattr(ort, "_library", lambda: fake)
    monkeypatch.setattr(ort, "unusable_reason", lambda device: "")
    with pytest.raises(EngineUnavailable, match="asked for TensorrtExecutionProvider and fell back to CUDAExecution"):
        ort.OrtTensorRtEngine(TRIAL_GRAPH, device="cuda")
    assert asked == [providers]
