"""A bundle of random weights: written by the exporter's own writer, opened and run like any other, and measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="a bundle of random weights is written with torch")
pytest.importorskip("onnx", reason="a bundle of random weights is written with onnx")

from styleclip_rt.benchmarks import run, startup
from styleclip_rt.benchmarks.network import NetworkSpec
from styleclip_rt.benchmarks.plan import OPENING_STEPS, Options
from styleclip_rt.benchmarks.random_bundle import GRAPHS, write_random_bundle
from styleclip_rt.benchmarks.records import Record
from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.editor import Editor

SMALL = NetworkSpec(size=32, width="sixteenth")
OPTIONS = Options(engines=("onnxruntime",), tasks=(), extras=("opening",), cold_runs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one."""
    path = tmp_path_factory.mktemp("random") / "bundle"
    write_random_bundle(path, SMALL)
    return path


def test_it_edits_latents(folder: Path) -> None:
    with Editor.open(folder, device="cpu", engine="onnxruntime") as editor:
        assert editor.model.resolution == 32
        assert set(editor.bundle.graphs) == set(GRAPHS)
        editor.bundle.verify()
        w = editor.bundle.run("mapping", z=np.ones((1, 32), np.float32), psi=np.ones(1, np.float32))["w"]
        text = np.zeros((1, 512), np.float32)
        text[0, 0] = 1
        pictures = [
            editor.bundle.run("edit_global", w=w, delta_t=text, alpha=np.array([a], np.float32), beta=np.zeros(1, "f4"))
            for a in (0, 9)
        ]
        plain = editor.synthesize(editor.styles(w))
    assert np.abs(pictures[0]["image_u8"].astype(int) - plain).max() <= 1
    assert (pictures[0]["image_u8"] != pictures[1]["image_u8"]).any(), "the direction moves the picture"


def test_a_size_that_is_not_offered_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a size of 32"):
        write_random_bundle(tmp_path / "bundle", NetworkSpec(size=1000))
    assert list(tmp_path.iterdir()) == []


def test_a_large_network_has_its_opening_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is written in a process of its own, opened by fresh ones, and gone afterwards."""
    commands: list[list[str]] = []
    start = subprocess.run

    def watched(command: list[str], **given: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return start(command, **given)

    monkeypatch.setattr(startup.subprocess, "run", watched)
    record = run.bench(SMALL, OPTIONS)
    assert record.workload == {"network": "random weights, 32 px, sixteenth width", "size": 32}
    assert [(row["kind"], row["name"]) for row in record.rows] == [("opening", step) for step in OPENING_STEPS]
    assert all(row["p50_ms"] > 0 and row["task"] == "ONNX Runtime" for row in record.rows)
    requests = [json.loads(command[-1]) for command in commands]
    assert requests[0]["network"]["size"] == 32
    opened = {request["bundle"] for request in requests[1:]}
    assert opened == {requests[0]["folder"]}
    assert not Path(opened.pop()).exists()


def test_a_bundle_that_cannot_be_written_is_a_reason() -> None:
    record = Record({}, {}, {})
    startup.measure(NetworkSpec(size=1000), OPTIONS, ("onnxruntime",), record, lambda text: None)
    assert record.rows == []
    assert "got size 1000" in record.left_out["opening"]
