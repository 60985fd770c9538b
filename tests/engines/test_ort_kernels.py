"""ONNX Runtime with our own kernels, built here: its numbers beside plain ONNX Runtime, when it is chosen, what it
does where the library is missing or wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from styleclip_rt.engines import fallback, gate, kernels, kernels_trial, ort_forms, ort_kernels, select
from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.driver import Driver
from styleclip_rt.engines.errors import BundleError, EngineError, EngineUnavailable
from styleclip_rt.engines.fallback import kernels_or_onnxruntime
from styleclip_rt.engines.ort import OrtEngine
from styleclip_rt.engines.ort_kernels import OrtKernelsEngine
from styleclip_rt.engines.plan_cache import PlanCache, Refused
from styleclip_rt.engines.spec import GraphSpec, TensorSpec

pytestmark = pytest.mark.usefixtures("with_kernels")
NO_CARD = Driver(0, "", "no card")


@pytest.fixture
def toyfaces(root):
    return root / "runtime/data/toyfaces-bundle"


@pytest.fixture
def synthesis(toyfaces):
    return toyfaces / "graphs/synthesize.onnx"


@pytest.fixture
def own_home(with_kernels, tmp_path, monkeypatch):
    """A copy of the home with kernels, free to be damaged."""
    shutil.copytree(with_kernels, tmp_path / "own")
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def damaged(own_home):
    """Its library has a flipped byte."""
    path = kernels.built().path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["synthesize", "synthesize_u8", "edit_global", "synthesize_tail/b32.conv1", "invert"])
def test_the_graphs_of_a_bundle_are_those_of_plain_onnx_runtime(toyfaces, graph):
    """Of the graphs that it rewrites, with weights in a file beside them, at each strength that a plan is held to."""
    with (
        open_bundle(toyfaces, engine="onnxruntime", threads=2) as plain,
        open_bundle(toyfaces, engine="onnxruntime-kernels", threads=2) as own,
    ):
        assert ort_forms.styled(own._checked.graph_files[graph]) is not None
        assert (own.backend, own.engine(graph).backend) == ("onnxruntime-kernels", "onnxruntime-kernels")
        spec = plain.spec(graph)
        for batch, case in ((1, gate.CASES[0]), (3, gate.CASES[1]), (2, gate.CASES[2])):
            feeds = gate.feeds(spec, batch, case.alpha)
            wanted = plain.engine(graph).run(feeds)
            for name, found in own.engine(graph).run(feeds).items():
                assert found.dtype == wanted[name].dtype
                if found.dtype == np.uint8:
                    assert np.abs(found.astype(int) - wanted[name]).max() <= 1
                else:
                    assert np.abs(found - wanted[name]).max() <= 1e-4 * max(1.0, np.abs(wanted[name]).max())


def test_its_sessions_hold_the_operators(synthesis):
    """A session that was opened without the library cannot be, so it must be in use."""
    graph = ort_forms.styled(synthesis)
    with pytest.raises(EngineError, match=r"cannot load .*synthesize\.onnx: .*styleclip_rt"):
        ort_kernels.open_session(synthesis, "cpu", 1, graph)
    session = ort_kernels.open_session(synthesis, "cpu", 1, graph, ort_kernels.kept_operators())
    assert [port.name for port in session.get_inputs()] == ["s"]


def test_threads_do_not_mix_their_results(synthesis):
    with OrtKernelsEngine(synthesis, threads=2) as engine:
        feeds = [gate.feeds(engine.spec, 1 + i % 2, float(i)) for i in range(6)]
        wanted = [engine.run(fed)["image"] for fed in feeds]
        together = threading.Barrier(6)

        def work(i):
            together.wait()
            return [engine.run(feeds[i])["image"] for _ in range(5)]

        with ThreadPoolExecutor(6) as pool:
            for expected, results in zip(wanted, pool.map(work, range(6)), strict=True):
                for found in results:
                    np.testing.assert_array_equal(found, expected)


def test_the_number_of_threads_does_not_change_a_picture(synthesis):
    pictures = []
    for threads in (1, 2, 5):
        with OrtKernelsEngine(synthesis, threads=threads) as engine:
            pictures.append(engine.run(gate.feeds(engine.spec, 2))["image"])
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_a_closed_engine_says_so(synthesis):
    engine = OrtKernelsEngine(synthesis, threads=1)
    feeds = gate.feeds(engine.spec, 1)
    engine.run(feeds)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; open the bundle again"):
        engine.run(feeds)


def test_outputs_belong_to_the_caller(synthesis):
    with OrtKernelsEngine(synthesis, threads=1) as engine:
        first = engine.run(gate.feeds(engine.spec, 1))["image"]
        kept = first.copy()
        engine.run(gate.feeds(engine.spec, 1, 5.0))
        np.testing.assert_array_equal(first, kept)


def test_a_styled_graph_that_is_not_what_was_promised_is_refused(synthesis):
    spec = GraphSpec("synthesize", (TensorSpec("w", "float32", ("N", 4)),), ())
    with pytest.raises(BundleError, match="input w float32"):
        OrtKernelsEngine(synthesis, spec)


def test_missing_weights_are_one_line(synthesis, tmp_path):
    shutil.copy(synthesis, tmp_path)
    with pytest.raises(EngineError, match=r"cannot load .*synthesize\.onnx: .+") as caught:
        OrtKernelsEngine(tmp_path / "synthesize.onnx")
    assert "\n" not in str(caught.value)


def test_it_has_no_cuda(synthesis):
    with pytest.raises(EngineUnavailable, match="runs on cpu, not 'cuda'"):
        OrtKernelsEngine(synthesis, device="cuda")


# Trials -----------------------------------------------------------------------------------------------------------


def test_the_trial_graph_is_what_it_says():
    onnx = pytest.importorskip("onnx", reason="the checker is of the extra 'torch'")
    model = onnx.load_from_string(kernels_trial.graph())
    onnx.checker.check_model(model, full_check=True)
    assert {port.name for port in model.graph.input} == set(kernels_trial.feeds(1))
    styled = onnx.load_from_string(ort_forms.styled(kernels_trial.graph()))
    kinds = [node.op_type for node in styled.graph.node if node.domain == "styleclip_rt"]
    assert sorted(kinds) == ["PlainConv", "PlainConv", "StyledConv", "StyledConv", "StyledRgb", "StyledRgb"]


def test_a_library_that_computes_wrongly_is_found(monkeypatch):
    operators, right = ort_kernels.kept_operators(), OrtKernelsEngine._run
    assert ort_kernels.library_fault(operators) == ""
    for wrong in (lambda array: array + 0.01 * (len(array) == 3), lambda array: array * np.nan):
        monkeypatch.setattr(
            OrtKernelsEngine, "_run", lambda self, fed, w=wrong: {n: w(y) for n, y in right(self, fed).items()}
        )
        assert ort_kernels.library_fault(operators).startswith("it computes wrongly: the trial graph is off by ")


def test_bytes_that_are_no_library_are_found_and_may_end_the_process_that_tries_them():
    assert ort_kernels.fault_apart(b"no library").startswith("ONNX Runtime cannot load a graph in memory: ")
    content = kernels.built().content
    assert ort_kernels.fault_apart(content) == ""
    cut = ort_kernels.fault_apart(content[: len(content) // 8])
    assert cut.startswith(("the trial graph ended the process by SIG", "ONNX Runtime cannot load"))


def test_a_trial_that_hangs_or_fails_is_a_fault(monkeypatch, tmp_path):
    program = tmp_path / "python"
    monkeypatch.setattr(ort_kernels.sys, "executable", str(program))
    monkeypatch.setattr(ort_kernels, "TRIAL_S", 0.5)
    for commands, fault in (
        ("exec sleep 60", "the trial graph did not end within 0.5 s"),
        ("echo one >&2; echo two >&2; exit 3", "the trial graph ended with code 3: two"),
        ("exit 0", "the trial graph ended with code 0: it says nothing"),
        ("kill -ILL $$", "the trial graph ended the process by SIGILL"),
    ):
        program.write_text(f"#!/bin/sh\n{commands}\n")
        program.chmod(0o755)
        assert ort_kernels.fault_apart(b"") == fault


def test_a_trial_graph_that_does_not_use_the_library_proves_nothing(monkeypatch):
    operators = ort_kernels.kept_operators()
    monkeypatch.setattr(ort_forms, "styled", lambda model: None)
    assert ort_kernels.library_fault(operators) == "the trial graph does not use it"


def test_another_version_of_onnx_runtime_tries_the_library_once(monkeypatch, own_home, synthesis):
    before, tried = kernels.built(), []
    monkeypatch.setattr(ort_kernels, "version", lambda: "9.9")
    monkeypatch.setattr(ort_kernels, "fault_apart", lambda content: tried.append(content) or "")
    for _ in range(2):
        OrtKernelsEngine(synthesis).close()
    assert tried == [before.content]
    assert kernels.built().made == replace(before.made, onnxruntime="9.9")
    assert kernels.built().content == before.content


def test_another_version_of_onnx_runtime_may_refuse_it(monkeypatch, own_home, synthesis):
    monkeypatch.setattr(ort_kernels, "version", lambda: "9.9")
    monkeypatch.setattr(ort_kernels, "fault_apart", lambda content: "it computes wrongly")
    said = r"not used with ONNX Runtime 9\.9: it computes wrongly; run: styleclip-rt kernels --rebuild"
    with pytest.raises(Refused, match=said):
        OrtKernelsEngine(synthesis)
    assert "the kernels are not used: it computes wrongly (as found before" in kernels.fault()
    assert select.choose("cpu").engine == "onnxruntime"


# The choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(select, "cuda_driver", lambda: NO_CARD)


def test_they_are_taken_where_they_were_built_and_the_reason_says_so(no_card, toyfaces):
    choice = select.choose()
    assert (choice.engine, choice.device, choice.fallback) == ("onnxruntime-kernels", "cpu", True)
    assert choice.reason == "CUDA is not used: no card; our own kernels are built here"
    assert select.choose("cpu").reason == "the CPU was asked for; our own kernels are built here"
    assert select.choose("cpu", "onnxruntime").engine == "onnxruntime"
    assert select.choose("auto", "onnxruntime").engine == "onnxruntime"
    with open_bundle(toyfaces, device="cpu") as bundle:
        assert bundle.backend == "onnxruntime-kernels"
        assert bundle.engine("synthesize").backend == "onnxruntime-kernels"
        assert bundle.engine("identify").backend == "onnxruntime-kernels", "a graph without a styled layer runs too"


def test_by_name(no_card):
    assert select.choose(engine="onnxruntime-kernels") == select.Choice(
        "onnxruntime-kernels", "cpu", "ONNX Runtime with own kernels runs on the CPU"
    )
    with pytest.raises(EngineUnavailable, match=r"own kernels runs on the CPU here; use device='cpu', or engine="):
        select.choose("cuda", "onnxruntime-kernels")


def test_the_row_of_info(monkeypatch):
    row = next(row for row in select.probe() if row.name == "onnxruntime-kernels")
    assert (row.device, row.installed, row.usable, row.reason, row.mend) == ("cpu", True, True, "", "")
    monkeypatch.setattr(ort_kernels, "library_fault", lambda operators: "it computes wrongly")
    row = select._status("onnxruntime-kernels", "cpu")
    assert (row.usable, row.reason, row.mend) == (False, "it computes wrongly", "styleclip-rt kernels --rebuild")


def test_where_they_were_not_built_onnx_runtime_runs_and_the_reason_names_the_command(
    no_card, monkeypatch, tmp_path, synthesis
):
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(kernels, "compiler", lambda: ["c++"])
    advice = "; `styleclip-rt kernels` would build faster kernels for this CPU"
    assert select.choose() == select.Choice("onnxruntime", "cpu", f"CUDA is not used: no card{advice}")
    assert select.choose("cpu").reason == f"the CPU was asked for{advice}"
    assert select.choose("cpu", "onnxruntime").reason == "the CPU was asked for", "it was asked for by name"
    why = "its library is not built yet; run: styleclip-rt kernels"
    with pytest.raises(EngineUnavailable, match=f"ONNX Runtime with own kernels cannot be used: {why}$"):
        select.choose(engine="onnxruntime-kernels")
    with pytest.raises(EngineUnavailable, match=f"ONNX Runtime cannot run with own kernels: {why}$"):
        OrtKernelsEngine(synthesis)
    row = select._status("onnxruntime-kernels", "cpu")
    assert (row.usable, row.reason, row.mend) == (False, kernels.NOT_BUILT, "styleclip-rt kernels")
    assert not (tmp_path / "empty").exists()
    monkeypatch.setattr(kernels, "compiler", list)
    assert select.choose("cpu").reason == "the CPU was asked for", "nothing could build them"


def test_without_onnx_runtime_its_row_names_it(monkeypatch):
    monkeypatch.setattr(select, "_installed", lambda engine: False)
    row = select._status("onnxruntime-kernels", "cpu")
    assert (row.installed, row.reason) == (False, "not installed")
    assert "pip install" in row.mend


@pytest.mark.usefixtures("damaged")
def test_a_flipped_byte_is_never_loaded(synthesis, monkeypatch):
    assert select.choose("cpu").engine == "onnxruntime"
    monkeypatch.setattr(kernels, "path_in_memory", lambda content: pytest.fail("it was loaded"))
    with pytest.raises(EngineUnavailable, match="not built yet"):
        OrtKernelsEngine(synthesis)


@pytest.mark.usefixtures("fresh_caches", "damaged")
def test_chosen_by_itself_it_gives_way_to_plain_onnx_runtime_and_says_so_once(synthesis):
    with pytest.warns(UserWarning, match=r"ONNX Runtime runs without own kernels: .*its library is not built yet"):
        engine = kernels_or_onnxruntime(synthesis, threads=1)
    assert engine.backend == "onnxruntime"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels_or_onnxruntime(synthesis).backend == "onnxruntime"
    assert len(fallback._said()) == 2
    assert select.engine_class("onnxruntime-kernels", fallback=True) is kernels_or_onnxruntime


def test_a_file_that_is_wrong_is_not_blamed_on_the_kernels(synthesis, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx"):
            kernels_or_onnxruntime(tmp_path / "bad.onnx")
        spec = GraphSpec("synthesize", (TensorSpec("w", "float32", ("N", 4)),), ())
        with pytest.raises(BundleError):
            kernels_or_onnxruntime(synthesis, spec)


def test_the_kept_library_is_the_one_that_is_loaded(kernels_home):
    library = kernels.built()
    assert PlanCache(kernels_home / "plans").path(kernels.key()) == library.path
    path = ort_kernels.kept_operators()
    with open(path, "rb") as file:
        assert file.read() == library.content
    assert ort_kernels.kept_operators() == path


def test_a_machine_without_kernels_imports_nothing_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path))
    code = (
        "import shlex, shutil, sys; from styleclip_rt.engines import select; before = set(sys.modules); "
        "assert select.choose('cpu').engine == 'onnxruntime'; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"styleclip_rt.engines.plan_cache", "hmac"}
    assert list(tmp_path.iterdir()) == []


def test_plain_and_own_run_beside_each_other(synthesis):
    with OrtEngine(synthesis, threads=1) as plain, OrtKernelsEngine(synthesis, threads=1) as own:
        feeds = gate.feeds(plain.spec, 1)
        first = plain.run(feeds)["image"]
        own.run(feeds)
        np.testing.assert_array_equal(plain.run(feeds)["image"], first)
