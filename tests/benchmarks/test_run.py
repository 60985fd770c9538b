"""A whole run on the shipped bundle: worker processes, turns, scenarios, rows; and subjects that misbehave."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from styleclip_rt.benchmarks import plan as plans
from styleclip_rt.benchmarks import remote, run, startup
from styleclip_rt.benchmarks.machine import environment, slug, stem
from styleclip_rt.benchmarks.network import NetworkSpec
from styleclip_rt.benchmarks.plan import ORIGINAL, Options, Plan, make_plan
from styleclip_rt.benchmarks.records import COLUMNS, Record, read_rows
from styleclip_rt.benchmarks.remote import Worker
from styleclip_rt.benchmarks.samples import Alternating
from styleclip_rt.benchmarks.subjects import SubjectSpec, make_subject
from styleclip_rt.benchmarks.workload import Workload, accuracy, read_workload
from styleclip_rt.engines.errors import BundleError, EngineError, InputError, MissingDependency
from styleclip_rt.engines.select import BackendStatus

ORT = SubjectSpec("ONNX Runtime", "engine", "edit", library="onnxruntime")
TOYFACES = NetworkSpec(pack="toyfaces")
OPTIONS = Options(engines=("onnxruntime",), tasks=("synthesize", "edit"), extras=(), batches=(1, 2), seconds=0.1,
                  rounds=2, scenario_seconds=0.2)  # fmt: skip


@pytest.fixture(scope="module")
def record(workload: Workload) -> Record:
    """One short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "prepared", lambda *given: contextlib.nullcontext(workload.path))
        saved: list[int] = []
        found = run.bench(NetworkSpec(pack="toyfaces"), OPTIONS, save=lambda record: saved.append(len(record.rows)))
        assert 0 < saved[0] < saved[1] == len(found.rows), "each task is saved when it is done"
        return found


def test_every_task_and_batch_has_its_row(record: Record) -> None:
    rows = {(r["task"], r["name"], r["batch"]) for r in record.rows if r["kind"] == "latency"}
    assert rows == {(task, "ONNX Runtime", batch) for task, batch in (("synthesize", 1), ("edit", 1), ("edit", 2))}
    ceilings = {r["name"] for r in record.rows if r["kind"] == "ceiling"}
    assert ceilings == {"matmul (numpy)", "copy (numpy)"}
    assert "not asked for" in record.left_out["PyTorch"]
    assert "no graph 'matmul'" in record.left_out["matmul (onnxruntime)"]


def test_a_row_holds_rates_that_follow_from_its_times(record: Record) -> None:
    row = next(r for r in record.rows if r["kind"] == "latency" and r["task"] == "edit" and r["batch"] == 2)
    assert row["gflop_s"] == pytest.approx(row["gflop"] / row["p50_ms"] * 1e3)
    assert row["images_per_s"] == pytest.approx(2e3 / row["p50_ms"])
    assert row["peak_rss_mib"] > 30
    assert row["start_s"] > row["load_s"] > 0
    assert row["of_matmul"] > 0
    assert row["p99_ms"] is None
    assert "p99 needs 662" in row["note"]


def test_shares_are_taken_within_a_round(workload: Workload) -> None:
    """The machine is twice as slow in the second round: the share of the ceiling is the same in both."""
    ceilings = [SubjectSpec(f"matmul ({name})", "matmul", "matmul", library=name, role="ceiling") for name in "ab"]
    plan = Plan({}, [*ceilings, SubjectSpec("copy", "copy", "copy", role="ceiling")])
    turns = Alternating((ORIGINAL, "ONNX Runtime", "matmul (a)", "matmul (b)", "copy"))
    for drift in (1.0, 2.0):
        for name, ms in ((ORIGINAL, 60.0), ("ONNX Runtime", 20.0), ("matmul (a)", 10.0), ("matmul (b)", 30.0)):
            turns.record(name, [ms * drift])
    state = run.Run(OPTIONS, Record({}, {}, {}), workload, plan, print)
    amount = 2.0 * 2048**3  # what the ceiling computes in 10 ms at its best
    shares = run.against(state, ORT, turns, amount, 1.0)
    assert shares["speedup"] == pytest.approx(3.0)
    assert shares["of_matmul"] == pytest.approx(0.5)
    assert "of_copy" not in shares, "a ceiling that was not timed gives no share"
    later = Alternating((ORIGINAL, "ONNX Runtime"))
    later.record("ONNX Runtime", [10.0])
    assert run.against(state, ORT, later, amount, 1.0)["of_matmul"] == pytest.approx(1.0)


def test_scenarios_have_rows(record: Record) -> None:
    rows = [r for r in record.rows if r["kind"] == "scenario"]
    assert [r["scenario"] for r in rows if r["scenario"] != "server"] == ["singlestream", "offline"]
    server = [r for r in rows if r["scenario"] == "server"]
    assert server
    assert server[0]["load"] == 0.3
    assert next(r for r in rows if r["scenario"] == "offline")["batch"] == 2


def test_files_are_named_by_machine_size_and_date(record: Record, tmp_path: Path) -> None:
    table, whole = record.write(tmp_path)
    assert table.name == f"{stem(record.environment, 64)}.csv"
    assert f"-{record.environment['cores']}c-64px-20" in table.name
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        assert len(list(reader)) == len(record.rows)
    content = json.loads(whole.read_text())
    assert content["environment"]["packages"]["numpy"] == np.__version__
    assert len(content["laps_ms"]["edit/ONNX Runtime"]) >= 2
    assert read_rows(table) == read_rows(whole)


def test_a_run_can_add_to_the_files_of_the_day(imaginary, tmp_path: Path) -> None:
    """Rows of the second run win; what it did not measure stays."""
    imaginary().write(tmp_path)
    second = imaginary(slower=2.0)
    second.rows = [row for row in second.rows if row["task"] == "edit" and row["name"] == "OpenVINO"]
    table, whole = second.write(tmp_path, append=True)
    rows = {(r["kind"], r["task"], r["name"], r["batch"]): r["p50_ms"] for r in read_rows(table)}
    assert rows["latency", "edit", "OpenVINO", "1"] == "1600"
    assert rows["latency", "synthesize", "OpenVINO", "1"] == "800"
    assert len(json.loads(whole.read_text())["rows"]) == len(imaginary().rows)


def test_an_unknown_column_is_refused(record: Record) -> None:
    with pytest.raises(InputError, match="unknown columns p999_ms"):
        Record(record.environment, record.workload, {}).add({"p999_ms": 1.0})


# Workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_measures_in_a_process_of_its_own(workload: Workload) -> None:
    with Worker(workload.path, ORT) as worker:
        first = worker.ask("feed", batch=3)
        laps = worker.ask("time", calls=4, settle=1)["ms"]
        facts = worker.ask("facts")
        with pytest.raises(EngineError, match="unknown request 'dance'"):
            worker.ask("dance")
        assert worker.ask("time", calls=1)["ms"], "an error is an answer: the worker goes on"
    assert len(laps) == 4
    assert min(laps) > 0
    assert first["first_ms"] > 0
    assert first["warm_ms"] > 0
    assert facts["flop"] == workload.count("edit", 3).flop
    assert "psnr_db" not in facts  # a bundle brings no pictures of PyTorch


def test_a_subject_that_cannot_load_says_why(workload: Workload) -> None:
    spec = SubjectSpec("nothing", "engine", "edit", library="onnxruntime", precision="fp16")
    with pytest.raises(EngineError, match="nothing: BundleError: the workload has no graph 'fp16:edit_global'"):
        Worker(workload.path, spec)


def test_a_subject_that_takes_too_long_is_stopped(workload: Workload) -> None:
    with Worker(workload.path, ORT) as worker:
        worker.ask("feed", batch=1)
        worker.patience_s = 0.2
        with pytest.raises(EngineError, match=r"stopped after 0.2 s"):
            worker.ask("time", calls=1_000_000)
        with pytest.raises(EngineError, match="its process has ended"):
            worker.ask("time", calls=1)


def test_the_parts_of_an_engine_s_run_are_medians(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_subject(ORT, workload)
    subject.feed(2)
    assert subject.split_ms(3) == {}, "on the CPU there is nothing to tell apart"
    laps = iter([{"h2d_ms": 1.0, "compute_ms": ms, "d2h_ms": 2.0} for ms in (30.0, 10.0, 20.0)])
    batches: list[int] = []
    monkeypatch.setattr(subject.engine, "split_ms", lambda feeds: (batches.append(len(feeds["w"])), next(laps))[1])
    assert subject.split_ms(3) == {"h2d_ms": 1.0, "compute_ms": 20.0, "d2h_ms": 2.0}
    assert batches == [2, 2, 2]


def test_threads_are_set_for_every_library() -> None:
    assert {remote.environment(3)[name] for name in ("OMP_NUM_THREADS", "STYLECLIP_RT_THREADS")} == {"3"}
    assert remote.environment(3)["PATH"] == os.environ["PATH"]


def test_prints_of_a_library_do_not_reach_the_answers(workload: Workload, capfd: pytest.CaptureFixture[str]) -> None:
    """Descriptor 1 of a worker leads to stderr: its private copy alone carries answers."""
    from styleclip_rt.benchmarks.worker import private_stdout

    saved = os.dup(1)
    try:
        answers = private_stdout()
        os.write(1, b"noise of a library\n")
        answers.write("answer\n")
        answers.close()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    out, err = capfd.readouterr()
    assert (out, "noise of a library" in err) == ("answer\n", True)


# The workload -----------------------------------------------------------------------------------------------------


def test_feeds_are_repeated_for_a_larger_batch(workload: Workload) -> None:
    small, large = workload.feeds("edit", 2), workload.feeds("edit", 6)
    assert large["w"].shape[0] == 6
    assert (large["w"][:2] == small["w"]).all()
    assert (large["w"][4:6] == small["w"]).all()


def test_the_bundle_s_sizes_are_its_network_s(workload: Workload) -> None:
    assert workload.channels == {4: 128, 8: 128, 16: 128, 32: 64, 64: 32}
    assert workload.expected("edit") is None
    assert "torch is not installed" in workload.notes[0]


def test_random_weights_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from styleclip_rt.benchmarks import prepare

    monkeypatch.setattr(prepare, "_has_torch", lambda: False)
    with pytest.raises(MissingDependency, match="bench --pack toyfaces"):
        prepare.prepare(tmp_path / "none", NetworkSpec(), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_workload_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no prepared workload"):
        read_workload(tmp_path)


def test_accuracy_sees_a_mixed_up_batch() -> None:
    rng = np.random.RandomState(0)
    pictures = rng.randint(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    assert accuracy(pictures, pictures) == {"psnr_db": 200.0, "max_level_error": 0.0}
    assert accuracy(pictures + np.uint8(1), pictures)["psnr_db"] == pytest.approx(48.13, abs=0.01)
    assert accuracy(pictures[::-1], pictures)["psnr_db"] < 12


# The machine and the plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c"), ("NVIDIA H200", "nvidia-h200"),
     ("AMD EPYC 9B14 96-Core Processor", "amd-epyc-9b14-96-core"), ("", "unknown")],
)  # fmt: skip
def test_machines_have_file_names(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_the_environment_names_what_matters() -> None:
    found = environment("cpu", 2)
    assert found["gpu"] == ""
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["memory_mib"] > 100


def test_the_waterfall_adds_one_technique_at_a_time() -> None:
    pytest.importorskip("torch", reason="without torch there is no waterfall")
    plan = make_plan(Options(tasks=("synthesize", "edit")))
    steps = [spec.technique for spec in plan.subjects["synthesize"] if spec.role == "technique"]
    assert [len(technique) for technique in steps] == [1, 2, 3, 4]
    assert all(a == b[: len(a)] for a, b in itertools.pairwise(steps))
    assert plan.subjects["synthesize"][0].technique == ()
    assert not any(spec.role == "technique" for spec in plan.subjects["edit"])


def test_a_gpu_has_the_original_in_both_precisions() -> None:
    pytest.importorskip("torch", reason="without torch there is no original")
    plan = make_plan(Options(device="cuda", tasks=("synthesize",)))
    first, second = plan.subjects["synthesize"][:2]
    assert (first.precision, second.precision) == ("fp32", "fp16")
    compiled = [spec for spec in plan.subjects["synthesize"] if spec.compiled]
    assert {spec.compiled for spec in compiled} == {"max-autotune"}
    assert {spec.device for spec in plan.subjects["synthesize"] + plan.ceilings} == {"cuda"}


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(InputError, match="unknown engine trt; the bench knows onnxruntime"):
        make_plan(Options(engines=("trt",)))


def rows_of_probe(**usable: bool):
    """What `probe` would say: every engine on its devices, each usable or not as named."""
    places = {"onnxruntime": ("cpu", "cuda"), "onnxruntime_kernels": ("cpu",), "onnxruntime_tensorrt": ("cuda",),
              "openvino": ("cpu",), "tensorrt": ("cuda",)}  # fmt: skip
    usable = {"onnxruntime_kernels": False, **usable}
    return lambda: [
        BackendStatus(name.replace("_", "-"), device, True, "1.0", usable[name], "" if usable[name] else f"no {name}")
        for name, devices in places.items()
        for device in devices
    ]


def test_tensorrt_is_measured_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {"onnxruntime": True, "onnxruntime_tensorrt": True, "openvino": True, "tensorrt": True}
    monkeypatch.setattr(plans, "probe", rows_of_probe(**usable))
    plan = make_plan(Options(device="cuda", engines=tuple(plans.ENGINE_NAMES), precisions=("fp32", "fp16")))
    for task in ("synthesize", "edit"):
        libraries = [(spec.library, spec.precision) for spec in plan.subjects[task] if spec.kind == "engine"]
        assert ("tensorrt", "fp32") in libraries
        assert ("onnxruntime-tensorrt", "fp16") in libraries
        assert len(libraries) == 6
        assert {spec.name for spec in plan.subjects[task]} >= {"TensorRT", "ONNX Runtime, TensorRT provider"}
    assert plan.engines == ("onnxruntime", "onnxruntime-tensorrt", "tensorrt")
    assert plan.left_out["OpenVINO"] == "runs on cpu only; this run is on cuda"


def test_an_engine_that_cannot_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {"onnxruntime": True, "onnxruntime_tensorrt": False, "openvino": False, "tensorrt": False}
    monkeypatch.setattr(plans, "probe", rows_of_probe(**usable))
    on_cuda = make_plan(Options(device="cuda", engines=tuple(plans.ENGINE_NAMES), tasks=("edit",)))
    assert [spec.library for spec in on_cuda.subjects["edit"] if spec.kind == "engine"] == ["onnxruntime"]
    assert on_cuda.left_out["TensorRT"] == "no tensorrt"
    on_cpu = make_plan(Options(engines=("onnxruntime", "openvino", "tensorrt"), tasks=("edit",)))
    assert [spec.library for spec in on_cpu.subjects["edit"] if spec.kind == "engine"] == ["onnxruntime"]
    assert on_cpu.left_out["TensorRT"] == "runs on cuda only; this run is on cpu"
    assert on_cpu.left_out["OpenVINO"] == "no openvino"
    assert "ONNX Runtime, TensorRT provider" not in on_cpu.left_out, "nobody asked for it"


def test_own_kernels_have_rows_beside_plain_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {"onnxruntime": True, "onnxruntime_kernels": True, "onnxruntime_tensorrt": False, "openvino": True,
              "tensorrt": False}  # fmt: skip
    monkeypatch.setattr(plans, "probe", rows_of_probe(**usable))
    names = ["ONNX Runtime", "ONNX Runtime with own kernels", "OpenVINO"]
    plan = make_plan(Options(engines=("onnxruntime", "onnxruntime-kernels", "openvino")))
    for task in plans.TASKS:
        assert [spec.name for spec in plan.subjects[task] if spec.kind == "engine"] == names
    assert plan.engines == ("onnxruntime", "onnxruntime-kernels", "openvino"), "the extras go by engine"
    products = [spec.library for spec in plan.ceilings if spec.kind == "matmul"]
    assert products == ["numpy" if "PyTorch" in plan.left_out else "torch", "onnxruntime", "openvino"]
    alone = make_plan(Options(engines=("onnxruntime-kernels",)))
    assert "matmul (onnxruntime)" in [spec.name for spec in alone.ceilings]
    left_out = make_plan(Options(device="cuda", engines=tuple(plans.ENGINE_NAMES))).left_out
    assert left_out["ONNX Runtime with own kernels"] == "runs on cpu only; this run is on cuda"


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that are not built yet; the list holds what asked to build them."""
    built: list[str] = []
    monkeypatch.setattr(plans.kernels, "fault", lambda: "" if built else plans.kernels.NOT_BUILT)
    monkeypatch.setattr(plans.ort_kernels, "build_kernels", lambda say: built.append("built"))
    return built


def test_kernels_are_built_first_where_they_are_asked_for(no_kernels: list[str]) -> None:
    say: Callable[[str], None] = lambda text: None  # noqa: E731
    for options in (Options(engines=("onnxruntime", "openvino")), Options(device="cuda")):
        assert plans.build_kernels(options, say) == {}
    assert no_kernels == []
    for _ in range(2):
        assert plans.build_kernels(Options(), say) == {}
    assert no_kernels == ["built"]


@pytest.mark.usefixtures("no_kernels")
def test_kernels_that_cannot_be_built_are_left_out_with_the_reason(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(say: object) -> None:
        raise MissingDependency("the kernels need a C++ compiler")

    monkeypatch.setattr(plans.ort_kernels, "build_kernels", fail)
    monkeypatch.setattr(run, "prepared", lambda *given: contextlib.nullcontext(workload.path))
    options = Options(engines=("onnxruntime-kernels",), tasks=("synthesize",), scenarios=(), extras=(), seconds=0.1,
                      rounds=1, batches=(1,))  # fmt: skip
    found = run.bench(NetworkSpec(pack="toyfaces"), options)
    assert found.left_out["ONNX Runtime with own kernels"] == "the kernels need a C++ compiler"
    assert not [row for row in found.rows if row["kind"] == "latency"]


def test_a_run_with_kernels(workload: Workload, with_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rows of ONNX Runtime, and every extra under its own name."""
    monkeypatch.setattr(run, "prepared", lambda *given: contextlib.nullcontext(workload.path))
    options = Options(engines=("onnxruntime", "onnxruntime-kernels"), tasks=("synthesize",), scenarios=(), seconds=0.1,
                      extras=("opening", "cold"), rounds=1, batches=(1,), cold_runs=1)  # fmt: skip
    found = run.bench(NetworkSpec(pack="toyfaces"), options)
    rows = {row["name"]: row for row in found.rows if row["kind"] == "latency"}
    assert list(rows) == ["ONNX Runtime", "ONNX Runtime with own kernels"]
    for kind in ("opening", "cold"):
        tasks = [row["task"] for row in found.rows if row["kind"] == kind]
        assert list(dict.fromkeys(tasks)) == list(rows)


# Start-up ---------------------------------------------------------------------------------------------------------


def test_cold_start_stages_and_sliders_have_rows() -> None:
    options = Options(engines=("onnxruntime",), tasks=(), cold_runs=2, editing_calls=1)
    found = run.bench(NetworkSpec(pack="toyfaces"), options)
    assert found.left_out == {"PyTorch": "not asked for"} or found.left_out == {}
    kinds = {row["kind"] for row in found.rows}
    assert kinds == {"stage", "slider", "cold", "opening"}
    stages = [row["name"] for row in found.rows if row["kind"] == "stage"]
    assert stages == ["decode", "invert", "text", "text (cached)", "direction", "synthesize", "encode"]
    cold = next(row for row in found.rows if row["kind"] == "cold")
    assert cold["peak_rss_mib"] > 40
    assert cold["p50_ms"] > 100
    opening = {row["name"]: row for row in found.rows if row["kind"] == "opening"}
    assert list(opening) == ["open", "open and load the edit", "open and load every graph"]
    assert all(row["samples"] == 2 and row["peak_rss_mib"] > 20 for row in opening.values())
    assert opening["open"]["p50_ms"] < opening["open and load every graph"]["p50_ms"]
    sliders = {row["name"]: row for row in found.rows if row["kind"] == "slider"}
    assert {name.split(",")[0] for name in sliders if name.endswith(", all layers")} >= set(plans.COLOUR_PROMPTS)
    grids = [row for name, row in sliders.items() if name.endswith(", grid of 8")]
    assert len(grids) == len([name for name in sliders if ", " not in name]) > 10
    assert all(row["samples"] == 1 for row in grids)
    own, every = (sliders[f"purple-hair{rest}"] for rest in ("", ", all layers"))
    assert min(row["gain"] for row in sliders.values()) > 0
    assert (every["start"], every["saved"], every["resolutions"]) == ("first layer", 0.0, None)
    assert (own["start"], own["saved"], own["resolutions"]) == ("b32.conv0", pytest.approx(0.35, abs=0.01), "32-")


def test_a_command_that_fails_is_left_out_with_its_last_line() -> None:
    record = Record({}, {}, {})
    options = Options(engines=("onnxruntime",), extras=("stages",), bundle="nowhere", editing_calls=1)
    startup.measure(TOYFACES, options, options.engines, record, lambda text: None)
    assert record.rows == []
    assert "no bundle 'nowhere'" in record.left_out["stages, ONNX Runtime"]


def fail_at(monkeypatch: pytest.MonkeyPatch, fails: Callable[[list[str]], bool]) -> None:
    """Processes of the extras are not started; those that `fails` picks by their command time out."""

    def stand_in(command: list[str], options: Options, text_of: str = "stderr") -> str:
        if fails(command):
            raise EngineError("stopped after 600 s")
        if text_of == "stdout":
            return json.dumps({"rows": [{"kind": "opening", "p50_ms": 5.0, "peak_rss_mib": 70}]})
        return "peak_rss_mib=80\n"

    monkeypatch.setattr(startup, "_run", stand_in)


def extras_record(**options: Any) -> Record:
    record = Record({}, {}, {})
    given = Options(engines=("onnxruntime",), cold_runs=3, **options)
    startup.measure(TOYFACES, given, given.engines, record, lambda text: None)
    return record


def test_an_opening_that_times_out_leaves_the_cold_row(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, lambda command: "every graph" in command[-1])
    record = extras_record(extras=("cold", "opening"))
    found = [(row["kind"], row["name"], row["samples"], row["peak_rss_mib"]) for row in record.rows]
    openings = [("opening", name, 3, 70) for name in ("open", "open and load the edit")]
    assert found == [("cold", "edit", 3, 80), *openings]
    reason = "run 1 of 3: stopped after 600 s"
    assert record.left_out == {"opening (open and load every graph), ONNX Runtime": reason}


def test_runs_that_were_done_before_one_timed_out_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    fail_at(monkeypatch, lambda command: next(calls) == 3)  # one for the memory, then the third of three
    record = extras_record(extras=("cold",))
    assert [(row["kind"], row["samples"]) for row in record.rows] == [("cold", 2)]
    assert record.left_out == {"cold, ONNX Runtime": "run 3 of 3: stopped after 600 s"}


def test_peak_memory_is_this_process_s_own() -> None:
    from styleclip_rt.benchmarks.memory import peak_rss_mib

    if peak_rss_mib() is None:
        pytest.skip("the system does not tell the peak of resident memory")
    # A process of its own: this one may have had its peak in an earlier test.
    code = (
        "import numpy as np; from styleclip_rt.benchmarks.memory import peak_rss_mib as peak; "
        "before = peak(); block = np.ones(64 << 20, np.uint8); print(peak() - before, block.sum() == 64 << 20)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, whole = ran.stdout.split()
    assert 30 <= int(grown) <= 200
    assert whole == "True"


def test_csv_cells_are_short() -> None:
    record = Record({}, {}, {})
    record.add({"kind": "latency", "p50_ms": 1.23456789, "p99_ms": None, "batch": 2, "valid": True})
    row = next(csv.DictReader(io.StringIO(record.as_csv())))
    assert (row["p50_ms"], row["p99_ms"], row["batch"], row["valid"]) == ("1.2346", "", "2", "True")
