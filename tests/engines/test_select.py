from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from styleclip_rt.engines import distributions, driver, nvinfer, ort, select, trt
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.errors import BundleError, EngineError, EngineUnavailable, MissingDependency
from styleclip_rt.engines.spec import GraphSpec, TensorSpec
from styleclip_rt.engines.trial import TRIAL_GRAPH

NO_DRIVER = driver.Driver(0, "", "no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)")
ONE_DEVICE = driver.Driver(1, "13.0", "")


@pytest.fixture(autouse=True)
def fresh_caches(monkeypatch):
    caches = (
        select._cuda_trial,
        select._tensorrt_trial,
        select._ort_tensorrt_trial,
        select._said,
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
def with_driver(monkeypatch):
    """Pretend that the driver answers as given."""

    def pretend(answer):
        monkeypatch.setattr(ort, "cuda_driver", lambda: answer)
        monkeypatch.setattr(select, "cuda_driver", lambda: answer)

    return pretend


@pytest.fixture
def with_distributions(monkeypatch):
    def pretend(**versions):
        table = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(distributions, "distribution_version", lambda name: table.get(name, ""))

    return pretend


def library(**attributes):
    """A stand-in for the module onnxruntime."""
    return SimpleNamespace(
        **{
            "__version__": "1.31.1",
            "__file__": "/nowhere/onnxruntime/__init__.py",
            "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            **attributes,
        }
    )


def test_probe_has_a_row_per_engine_and_device():
    rows = {(row.name, row.device): row for row in select.probe()}
    assert list(rows) == [
        ("onnxruntime", "cpu"),
        ("onnxruntime", "cuda"),
        ("onnxruntime-tensorrt", "cuda"),
        ("openvino", "cpu"),
        ("tensorrt", "cuda"),
    ]
    cpu = rows["onnxruntime", "cpu"]
    assert cpu.installed
    assert cpu.usable
    assert cpu.version
    assert "not installed" in rows["tensorrt", "cuda"].reason
    assert rows["tensorrt", "cuda"].mend == "python -m pip install 'styleclip-rt[tensorrt]'"
    assert rows["tensorrt", "cuda"].note == "built and parsed in tests, not yet run on hardware"
    for row in rows.values():
        assert row.usable or row.reason


def test_auto_without_a_driver_is_the_cpu_and_says_why(with_driver):
    with_driver(NO_DRIVER)
    choice = select.choose()
    assert (choice.engine, choice.device) == ("onnxruntime", "cpu")
    assert choice.reason == f"CUDA is not used: {NO_DRIVER.reason}"


def test_cuda_without_a_driver_is_refused_with_the_way_out(with_driver):
    with_driver(NO_DRIVER)
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver .*use device='cpu'"):
        select.choose("cuda")
    with pytest.raises(EngineUnavailable, match="ONNX Runtime cannot run on 'cuda': no NVIDIA driver"):
        ort.OrtEngine(b"", device="cuda")


def test_a_driver_without_cuda_libraries_names_the_first_missing_one(with_driver, monkeypatch, capfd):
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(ort, "_library", lambda: library(preload_dlls=lambda: print("noise")))
    choice = select.choose()
    assert choice.device == "cpu"
    assert choice.reason.startswith("CUDA is not used: the CUDA libraries are missing (")
    assert choice.reason.endswith("; run: python -m pip install 'styleclip-rt[gpu]'")
    assert capfd.readouterr().out == ""


def test_a_build_without_cuda_says_so(with_driver, monkeypatch):
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: ["CPUExecutionProvider"]))
    with pytest.raises(
        EngineUnavailable, match=r"onnxruntime 1\.31\.1 has no CUDAExecutionProvider; run: python -m pip"
    ):
        select.choose("cuda")


def test_a_session_that_falls_back_silently_is_refused(with_driver, monkeypatch):
    with_driver(ONE_DEVICE)
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    options = SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake = library(
        InferenceSession=lambda *a, **k: session,
        SessionOptions=lambda: options,
        ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0),
    )
    monkeypatch.setattr(ort, "_library", lambda: fake)
    monkeypatch.setattr(ort, "unusable_reason", lambda device: "")
    with pytest.raises(
        EngineUnavailable, match="asked for CUDAExecutionProvider and fell back to CPUExecutionProvider"
    ):
        ort.OrtEngine(b"", device="cuda")


def test_two_distributions_behind_one_name_are_found_with_the_mend(with_distributions):
    with_distributions(onnxruntime="1.30.0", onnxruntime_gpu="1.31.1")
    row = select.probe()[0]
    assert row.usable
    assert row.reason == "onnxruntime-gpu and onnxruntime are both installed and overwrite each other's files"
    assert row.mend == (
        "python -m pip uninstall -y onnxruntime && "
        "python -m pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1"
    )


def test_with_a_clash_cuda_is_mended_by_keeping_one(with_distributions, with_driver, monkeypatch):
    with_distributions(onnxruntime="1.30.0", onnxruntime_gpu="1.31.1")
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: ["CPUExecutionProvider"]))
    row = select._status("onnxruntime", "cuda")
    assert not row.usable
    assert "has no CUDAExecutionProvider; onnxruntime-gpu and onnxruntime are both installed" in row.reason
    assert row.mend.startswith("python -m pip uninstall -y onnxruntime && ")
    assert row.mend.endswith(" && python -m pip install 'styleclip-rt[gpu]'")


@pytest.mark.parametrize(
    ("versions", "repair"),
    [
        ({}, "python -m pip install onnxruntime"),
        ({"onnxruntime": "1.2"}, "python -m pip install --force-reinstall --no-deps onnxruntime==1.2"),
    ],
)
def test_repair_of_none_or_one_distribution(with_distributions, versions, repair):
    with_distributions(**versions)
    assert distributions.ort_repair() == repair
    assert distributions.ort_clash() == ""


@pytest.mark.parametrize(
    ("module", "versions", "found"),
    [
        ("tensorrt", {"tensorrt_cu13": "11.4.0.25"}, "11.4.0.25"),
        ("tensorrt_rtx_bindings", {"tensorrt_rtx_cu13_bindings": "1.7.1.116"}, "1.7.1.116"),
        ("tensorrt_rtx_bindings", {"tensorrt": "11.4"}, ""),
        ("", {"tensorrt": "11.4"}, ""),
    ],
)
def test_the_version_of_tensorrt_is_told_without_importing_it(with_distributions, module, versions, found):
    with_distributions(**versions)
    assert distributions.tensorrt_version(module) == found


def test_openvino_by_name_and_its_limits(monkeypatch):
    monkeypatch.setattr(select, "_installed", lambda module: True)
    assert select.choose(engine="openvino").engine == "openvino"
    with pytest.raises(EngineUnavailable, match="OpenVINO runs on the CPU here"):
        select.choose("cuda", "openvino")
    with pytest.raises(EngineUnavailable, match="TensorRT runs on CUDA here; use device='cuda'"):
        select.choose("cpu", "tensorrt")
    with pytest.raises(EngineUnavailable, match=r"provider runs on CUDA here; .* or engine='onnxruntime' for the CPU"):
        select.choose("cpu", "onnxruntime-tensorrt")


def test_openvino_steps_in_where_onnxruntime_is_missing(monkeypatch):
    monkeypatch.setattr(select, "_installed", lambda module: module == "openvino")
    assert select.choose() == select.Choice("openvino", "cpu", "OpenVINO runs on the CPU")


@pytest.mark.parametrize(
    ("engine", "mend"),
    [(None, "onnxruntime"), ("onnxruntime", "onnxruntime"), ("openvino", "'styleclip-rt[openvino]'")],
)
def test_an_engine_that_is_not_installed_is_refused_at_once(monkeypatch, with_distributions, engine, mend):
    with_distributions()
    monkeypatch.setattr(select, "_installed", lambda module: False)
    with pytest.raises(MissingDependency, match=rf"is not installed; run: python -m pip install {re.escape(mend)}$"):
        select.choose(engine=engine)


@pytest.fixture
def with_tensorrt(monkeypatch, with_driver, setup):
    """Pretend that TensorRT and a card are there; both are stand-ins that really compute."""
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(trt, "cuda_driver", lambda: ONE_DEVICE)
    monkeypatch.setattr(nvinfer, "installed", lambda: "tensorrt")
    monkeypatch.setattr(nvinfer, "library", lambda: setup.trt)
    monkeypatch.setattr(trt, "default_setup", lambda: setup)
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
    trt.default_setup.cache_clear()
    row = select._status("tensorrt", "cuda")
    assert (row.usable, row.reason, row.mend) == (False, NO_DRIVER.reason, "")
    assert select.choose().device == "cpu"
    with pytest.raises(EngineUnavailable, match=r"device 'cuda' cannot be used: no NVIDIA driver"):
        select.choose(engine="tensorrt")
    with pytest.raises(EngineUnavailable, match="TensorRT cannot run: no NVIDIA driver"):
        trt.TensorRtEngine(TRIAL_GRAPH)


def test_tensorrt_that_cannot_load_gives_way_and_says_why(with_tensorrt, monkeypatch):
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


def test_a_damaged_bundle_is_no_reason_to_fall_back(with_tensorrt, bundle_dir):
    make = select.engine_class("tensorrt", fallback=True)
    wrong = GraphSpec("project", (TensorSpec("s", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", 4)),))
    with pytest.raises(BundleError, match="is not what bundle"):
        make(bundle_dir / "graphs/project.onnx", wrong)


def test_the_tensorrt_provider_is_had_by_name_and_checked(with_driver, monkeypatch):
    with_driver(ONE_DEVICE)
    with pytest.raises(EngineUnavailable, match="the engine 'onnxruntime-tensorrt' runs on cuda, not 'cpu'"):
        select.engine_class("onnxruntime-tensorrt")(TRIAL_GRAPH, device="cpu")
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: providers))
    row = select._status("onnxruntime-tensorrt", "cuda")
    assert row.reason.startswith("the TensorRT 10 libraries are missing (")
    assert row.mend == "python -m pip install 'tensorrt>=10.13,<11'"
    asked = []

    def session(source, options, providers):
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: providers[1:])

    options = SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake = library(
        InferenceSession=session, SessionOptions=lambda: options, ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0)
    )
    monkeypatch.setattr(ort, "_library", lambda: fake)
    monkeypatch.setattr(ort, "unusable_reason", lambda device: "")
    with pytest.raises(EngineUnavailable, match="asked for TensorrtExecutionProvider and fell back to CUDAExecution"):
        ort.OrtTensorRtEngine(TRIAL_GRAPH, device="cuda")
    assert asked == [providers]


def test_a_library_that_is_no_driver_is_reported():
    assert driver.ask_driver("libdoesnotexist.so.9").devices == 0
    assert driver.ask_driver("libm.so.6").reason.startswith("no NVIDIA driver")


@pytest.mark.gpu
def test_cuda_really_runs_where_its_libraries_are():
    if select._cuda_mend(ort.unusable_reason("cuda")):
        pytest.skip(ort.unusable_reason("cuda"))
    assert select.choose("cuda").device == "cuda"


def run_python(code: str, tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )


def test_importing_the_engines_loads_no_backend(tmp_path):
    code = """
        import sys
        import styleclip_rt.engines.bundle, styleclip_rt.engines.ort, styleclip_rt.engines.openvino
        loaded = {"onnxruntime", "openvino", "tensorrt", "torch", "onnx"} & {name.split(".")[0] for name in sys.modules}
        assert not loaded, loaded
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_noise_at_import_never_reaches_stdout(tmp_path):
    """A stand-in for the GPU build, which prints from native code while it is imported."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os; os.write(1, b'native noise'); print('python noise')\n"
        "__version__ = '9.9'; InferenceSession = None\n"
        "def set_default_logger_severity(n): pass\n"
    )
    code = """
        import sys; sys.path.insert(0, ".")
        from styleclip_rt.engines import ort
        print("before"); print(ort.version())
    """
    done = run_python(code, tmp_path)
    assert done.stdout.split() == ["before", "9.9"], (done.stdout, done.stderr)
    assert "native noise" in done.stderr


def test_leftovers_of_a_removed_distribution_are_named(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("")
    code = """
        import sys; sys.path.insert(0, ".")
        from styleclip_rt.engines import errors, ort
        try:
            ort.version()
        except errors.EngineUnavailable as error:
            print(error)
    """
    done = run_python(code, tmp_path)
    assert done.stdout.startswith("the files of onnxruntime are damaged"), done.stderr
    assert "run: python -m pip" in done.stdout


def test_a_missing_library_names_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ort._library.cache_clear()
    try:
        with pytest.raises(MissingDependency, match=r"ONNX Runtime cannot be imported .*run: python -m pip install"):
            ort.version()
    finally:
        monkeypatch.undo()
        ort._library.cache_clear()


def test_stdout_survives_the_redirection(capfd):
    with ort.stdout_to_stderr():
        os.write(1, b"hidden")
    os.write(1, b"shown")
    out, err = capfd.readouterr()
    assert (out, err) == ("shown", "hidden")
