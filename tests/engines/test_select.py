from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from styleclip_rt.engines import distributions, driver, ort, select
from styleclip_rt.engines.errors import EngineUnavailable, MissingDependency
from styleclip_rt.engines.trial import TRIAL_GRAPH

pytestmark = pytest.mark.usefixtures("fresh_caches")
NO_DRIVER = driver.Driver(0, "", "no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded)")
ONE_DEVICE = driver.Driver(1, "13.0", "")


@pytest.fixture
def with_distributions(monkeypatch):
    def pretend(**versions):
        table = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(distributions, "distribution_version", lambda name: table.get(name, ""))

    return pretend


def test_probe_has_a_row_per_engine_and_device():
    rows = {(row.name, row.device): row for row in select.probe()}
    assert list(rows) == [
        ("onnxruntime", "cpu"),
        ("onnxruntime", "cuda"),
        ("onnxruntime-kernels", "cpu"),
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
    assert rows["tensorrt", "cuda"].note == "built and parsed in CI, not yet run on hardware"
    for row in rows.values():
        assert row.usable or row.reason


def test_auto_without_a_driver_is_the_cpu_and_says_why(with_driver):
    with_driver(NO_DRIVER)
    choice = select.choose()
    assert (choice.engine, choice.device) == ("onnxruntime", "cpu")
    assert choice.reason.split("; `styleclip-rt kernels`")[0] == f"CUDA is not used: {NO_DRIVER.reason}"


def test_cuda_without_a_driver_is_refused_with_the_way_out(with_driver):
    with_driver(NO_DRIVER)
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver .*use device='cpu'"):
        select.choose("cuda")
    with pytest.raises(EngineUnavailable, match="ONNX Runtime cannot run on 'cuda': no NVIDIA driver"):
        ort.OrtEngine(b"", device="cuda")


def test_a_driver_without_cuda_libraries_names_the_first_missing_one(with_driver, monkeypatch, capfd, library):
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(ort, "_library", lambda: library(preload_dlls=lambda: print("noise")))
    choice = select.choose()
    assert choice.device == "cpu"
    assert choice.reason.startswith("CUDA is not used: the CUDA libraries are missing (")
    assert "; run: python -m pip install 'styleclip-rt[gpu]'" in choice.reason
    assert capfd.readouterr().out == ""


def test_a_build_without_cuda_says_so(with_driver, monkeypatch, library):
    with_driver(ONE_DEVICE)
    monkeypatch.setattr(ort, "_library", lambda: library(get_available_providers=lambda: ["CPUExecutionProvider"]))
    with pytest.raises(
        EngineUnavailable, match=r"onnxruntime 1\.31\.1 has no CUDAExecutionProvider; run: python -m pip"
    ):
        select.choose("cuda")


def test_a_session_that_falls_back_silently_is_refused(with_driver, monkeypatch, library):
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


def test_a_cuda_session_computes_float32_in_float32_and_times_its_convolutions(with_driver, monkeypatch, library):
    with_driver(ONE_DEVICE)
    asked = []

    def session(source, options, providers):
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"], get_inputs=list, get_outputs=list)

    options = SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake = library(
        InferenceSession=session, SessionOptions=lambda: options, ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0)
    )
    monkeypatch.setattr(ort, "_library", lambda: fake)
    monkeypatch.setattr(ort, "unusable_reason", lambda device: "")
    with ort.OrtEngine(b"", device="cuda"):
        (name, given), rest = asked[0], asked[1:]
    assert (name, rest) == ("CUDAExecutionProvider", ["CPUExecutionProvider"])
    assert given == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
    }


def test_an_output_is_a_view_of_the_library_s_own_memory():
    """Why there is no I/O binding: it would spare no copy."""
    with ort.OrtEngine(TRIAL_GRAPH, device="cpu") as engine:
        doubled = engine.run({"x": np.array([21.0], np.float32)})["y"]
    assert not doubled.flags.owndata
    assert doubled[0] == 42.0, "it outlives the session"


def test_two_distributions_behind_one_name_are_found_with_the_mend(with_distributions):
    with_distributions(onnxruntime="1.30.0", onnxruntime_gpu="1.31.1")
    row = select.probe()[0]
    assert row.usable
    assert row.reason == "onnxruntime-gpu and onnxruntime are both installed and overwrite each other's files"
    assert row.mend == (
        "python -m pip uninstall -y onnxruntime && "
        "python -m pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1"
    )


def test_with_a_clash_cuda_is_mended_by_keeping_one(with_distributions, with_driver, monkeypatch, library):
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
