"""A workload made of the shipped bundle (no torch, nothing exported), and records of imaginary runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from styleclip_rt.benchmarks import prepare as preparing
from styleclip_rt.benchmarks.network import NetworkSpec
from styleclip_rt.benchmarks.records import Record
from styleclip_rt.benchmarks.workload import Workload

TOYFACES = NetworkSpec(pack="toyfaces", size=0)


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """What a base install prepares for the shipped bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_has_torch", lambda: False)
        return preparing.prepare(tmp_path_factory.mktemp("workloads") / "toyfaces", TOYFACES, 4)


def make_record(device: str = "cpu", slower: float = 1.0, psnr_db: float = 80.0) -> Record:
    """A record as a run would write it; the engine's times are multiplied by `slower`."""
    gpu = "NVIDIA H200" if device == "cuda" else ""
    environment = {"device": device, "gpu": gpu, "cpu": "AMD EPYC 9B14", "cores": 2, "threads": 2,
                   "date": "2026-11-20T10:00:00+00:00", "packages": {"onnxruntime": "1.31.1"}}  # fmt: skip
    workload = {"network": "random weights, 1024 px, full width", "size": 1024, "reference": "PyTorch FP32"}
    record = Record(environment, workload, {})
    common = {"kind": "latency", "device": device, "precision": "fp32", "psnr_db": psnr_db, "peak_rss_mib": 900,
              "peak_device_mib": 700 if gpu else None}  # fmt: skip
    for task in ("synthesize", "edit"):
        rows = [("original (eager)", "baseline", 5000.0, 1), ("+ modulate activations", "technique", 2500.0, 1),
                ("OpenVINO", "engine", 800.0 * slower, 1), ("OpenVINO", "engine", 1200.0 * slower, 2)]  # fmt: skip
        for name, role, ms, batch in rows:
            times = {"p50_ms": ms, "speedup": 5000.0 * batch / ms, "of_matmul": 750.0 * batch / ms}
            record.add(common | times | {"task": task, "name": name, "role": role, "batch": batch, "samples": 30})
            record.laps[f"{task}/{name}"] = [ms + i for i in range(30)]
    record.add({"kind": "stage", "task": "OpenVINO", "name": "decode", "device": device, "batch": 1, "p50_ms": 10.0})
    record.add({"kind": "stage", "task": "OpenVINO", "name": "invert", "device": device, "batch": 1, "p50_ms": 30.0})
    slider = {"kind": "slider", "task": "OpenVINO", "device": device, "batch": 1, "p50_ms": 4.0}
    record.add(slider | {"name": "purple-hair", "gain": 1.8, "start": "b32.conv0", "saved": 0.25, "resolutions": "32-"})
    record.add(slider | {"name": "purple-hair, all layers", "gain": 1.2, "start": "first layer", "saved": 0.0})
    record.add({"kind": "slider-step", "task": "slider", "name": "OpenVINO", "device": device, "batch": 1, "gain": 1.0,
                "gflop": 150.0})  # fmt: skip
    record.add({"kind": "slider-step", "task": "slider", "name": "OpenVINO from b64.conv0", "device": device,
                "batch": 1, "gain": 2.5, "gflop": 90.0})  # fmt: skip
    common = {"kind": "scenario", "task": "edit", "name": "OpenVINO", "device": device}
    record.add(common | {"scenario": "singlestream", "p50_ms": 800.0 * slower, "p90_ms": 960.0 * slower,
                         "images_per_s": 1.25})  # fmt: skip
    for load, valid in ((0.3, True), (0.5, True), (0.7, False)):
        record.add(common | {"scenario": "server", "load": load, "valid": valid, "p50_ms": 900.0 * slower})
    record.add(common | {"scenario": "offline", "images_per_s": 2.0, "batch": 8, "p50_ms": 4000.0 * slower})
    for kind, name, ms in (("cold", "edit", 900.0), ("opening", "open and load the edit", 700.0)):
        record.add({"kind": kind, "task": "OpenVINO", "name": name, "device": device, "batch": 1, "p50_ms": ms,
                    "peak_rss_mib": 300})  # fmt: skip
    return record


@pytest.fixture
def imaginary():
    """A function (device, slower, psnr_db) -> Record."""
    return make_record


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the files of one imaginary run on a CPU and one on a GPU."""
    make_record("cpu").write(tmp_path)
    make_record("cuda").write(tmp_path)
    return tmp_path
