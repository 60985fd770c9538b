"""The command `bench`: options, the plan that it shows, and files where it was told to put them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from styleclip_rt.benchmarks import command, run
from styleclip_rt.benchmarks.plan import Options
from styleclip_rt.runtime.cli import cli


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["bench", *arguments])


def test_a_dry_run_shows_the_plan_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "bench", lambda *given: pytest.fail("it measured"))
    result = invoke("--dry-run", "--json", "--device", "cpu", "--size", "1024", "--batch", "4,1", "--threads", "1")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.output)
    assert plan["network"] == "random weights, 1024 px, full width"
    assert plan["options"]["batches"] == [1, 4]
    assert "ONNX Runtime" in plan["subjects"]["edit"]
    assert "ceilings" in invoke("--dry-run", "--device", "cpu").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0,2"), "expected whole numbers from 1 to 64"),
        (("--engines", "onnxruntime,trt"), "'trt'; expected some of onnxruntime, onnxruntime-kernels, onnxruntime-ten"),
        (("--scenario", "multistream"), "expected some of singlestream, server, offline, or none"),
        (("--size", "1000"), "1000"),
    ],
)
def test_wrong_options_are_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments, "--dry-run")
    assert result.exit_code == 2
    assert message in result.output


def test_quick_gives_way_to_what_was_typed() -> None:
    result = invoke("--quick", "--seconds", "7", "--task", "none", "--dry-run", "--json", "--device", "cpu")
    options = json.loads(result.output)["options"]
    assert (options["seconds"], options["rounds"], options["compiled"]) == (7.0, 2, False)
    assert options["tasks"] == []


def test_the_files_go_where_they_were_told(imaginary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []

    def measure(network: object, options: Options, save: object):
        seen.append(options)
        return imaginary()

    monkeypatch.setattr(command, "run_with_progress", measure)
    result = invoke("--device", "cpu", "--no-plot", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"amd-epyc-9b14-2c-1024px-2026-11-20.{kind}" for kind in ("csv", "json")]
    assert "synthesize, batch 1" in result.output
    assert seen[0].device == "cpu"
    as_json = invoke("--device", "cpu", "--no-plot", "--out", str(tmp_path / "out"), "--json")
    assert json.loads(as_json.output)["format"] == "styleclip-rt/bench"


def test_a_quick_run_leaves_the_committed_results_alone(
    imaginary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_with_progress", lambda *given: imaginary())
    assert invoke("--quick", "--device", "cpu", "--no-plot").exit_code == 0
    assert len(list(tmp_path.glob("*.csv"))) == 1
