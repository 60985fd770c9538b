"""Tables of the documents and figures of a run: ratios on a CPU, times on a GPU with its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from styleclip_rt.benchmarks.plots import plot
from styleclip_rt.benchmarks.report import TABLES, fill
from styleclip_rt.benchmarks.tables import newest, plain, summary


def page(name: str) -> str:
    return f"before\n<!-- table: {name} -->\nold\n<!-- end table -->\nafter\n"


def test_without_a_measurement_a_table_says_which_command_makes_it(tmp_path: Path) -> None:
    text = fill(page("bench-gpu-edit"), tmp_path)
    assert "Not measured yet: `styleclip-rt bench --device cuda --size 1024 --width full`" in text


def test_a_cpu_table_shows_ratios_and_no_times(results: Path) -> None:
    text = fill(page("bench-cpu-synthesis"), results)
    assert "AMD EPYC 9B14, 2 threads; random weights, 1024 px, full width" in text
    assert "| + modulate activations | 2.00 | 2.00 | 30% | 80.0 | 900 |" in text
    assert "| OpenVINO | 6.25 |  | 94% | 80.0 | 900 |" in text
    assert not re.search(r"\bms\b|5000|800\.", text)
    assert fill(text, results) == text


def test_a_gpu_table_names_the_card_and_shows_times(results: Path) -> None:
    text = fill(page("bench-gpu-edit"), results)
    assert "NVIDIA H200; random weights" in text
    assert "| OpenVINO | 800.000 |" in text
    assert "| 700 |" in text


def test_batches_are_relative_to_batch_1(results: Path) -> None:
    assert "| OpenVINO | 1.00 | 0.75 |" in fill(page("bench-cpu-batches"), results)
    assert "| OpenVINO | 800.00 ms | 600.00 ms |" in fill(page("bench-gpu-batches"), results)


def test_stages_are_shares_and_sliders_gains(results: Path) -> None:
    stages = fill(page("bench-cpu-stages"), results)
    assert "| decode | 25.0% |" in stages
    assert "| invert | 75.0% |" in stages
    assert "| OpenVINO from b64.conv0 | 2.50 | 40% |" in fill(page("bench-cpu-slider-steps"), results)


def test_scenarios_are_one_row_for_each_engine(results: Path) -> None:
    assert "| OpenVINO | 1.20 |  | 50% | 1.60 |" in fill(page("bench-cpu-scenarios"), results)


def test_a_slider_shows_what_moves_where_it_starts_and_whether_its_bar_is_met(results: Path, imaginary) -> None:
    text = fill(page("bench-cpu-sliders"), results)
    assert "| prompt | resolutions | start | not repeated | OpenVINO, times faster |" in text
    assert "| purple-hair | 32- | b32.conv0 | 25% | 1.80 |" in text
    assert "| purple-hair | all | first layer | 0% | 1.20 |\n" in text
    assert "Single steps: met (1.80 to 1.80)." in text
    assert "Steps in all layers: not met (1.20 to 1.20)." in text
    mixed = imaginary("cpu")
    slider = next(row for row in mixed.rows if row["kind"] == "slider")
    mixed.add(slider | {"name": "lipstick", "gain": 1.59})
    mixed.add(slider | {"name": "glasses", "gain": 9.0})
    mixed.add(slider | {"name": "lipstick, grid of 8", "gain": 1.9})
    assert "Single steps: met by 1 of 2 rows (1.59 to 1.80)." in summary(mixed)
    assert "Steps in a grid of 8: met (1.90 to 1.90)." in summary(mixed)


def test_opening_is_in_seconds_with_a_verdict_on_the_bar(results: Path, imaginary) -> None:
    text = fill(page("bench-cpu-opening"), results)
    assert "| open and load the edit | 0.70 |" in text
    assert "The bar for a bundle that can edit is 3 s: OpenVINO meets it." in text
    assert "ratios" not in text
    slow = imaginary("cpu")
    for row in slow.rows:
        if row["kind"] == "opening":
            row["p50_ms"] = 3100.0
    slow.write(results)
    text = fill(page("bench-cpu-opening"), results)
    assert "| open and load the edit | 3.10 |" in text
    assert "OpenVINO does not meet it." in text


def test_the_edit_on_a_cpu_has_a_verdict_on_its_bars(results: Path, imaginary) -> None:
    run = imaginary("cpu")
    sought = ("latency", "edit", "engine", 1)
    (row,) = [r for r in run.rows if (r["kind"], r.get("task"), r.get("role"), r.get("batch")) == sought]
    run.rows.append({**row, "name": "OpenVINO"})
    row["name"], one, other = "ONNX Runtime", row, run.rows[-1]
    for gains, said in (
        (
            (3.7, 6.1),
            "6 times: OpenVINO meets it. The bar for ONNX Runtime is 3.8 times: ONNX Runtime does not meet it.",
        ),
        (
            (3.9, 5.9),
            "6 times: OpenVINO does not meet it. The bar for ONNX Runtime is 3.8 times: ONNX Runtime meets it.",
        ),
    ):
        one["speedup"], other["speedup"] = gains
        run.write(results)
        assert f"The bar for the best engine is {said}" in fill(page("bench-cpu-edit"), results)


def test_an_opening_that_was_not_measured_names_its_command(tmp_path: Path) -> None:
    text = fill(page("bench-cpu-opening"), tmp_path)
    assert "`styleclip-rt bench --device cpu --size 1024 --width full --task none --stage opening`" in text


def test_the_newest_run_of_a_kind_counts(results: Path, imaginary) -> None:
    later = imaginary("cpu")
    later.environment["date"] = "2026-12-01T00:00:00+00:00"
    later.write(results)
    small = imaginary("cpu")
    small.environment["date"], small.workload["size"] = "2027-01-01T00:00:00+00:00", 64
    small.write(results)
    (results / "broken-2c-1024px-2027-01-02.json").write_text("{")
    found, smaller = newest(results, "cpu", 1024), newest(results, "cpu", None, "stage")
    assert found is not None
    assert smaller is not None
    assert found.name == "amd-epyc-9b14-2c-1024px-2026-12-01.csv"
    assert smaller.name == "amd-epyc-9b14-2c-64px-2027-01-01.csv"
    assert newest(results, "cpu", None, "unheard-of") is None


def test_every_table_has_a_name_that_a_document_can_use(results: Path) -> None:
    names = [name for name in TABLES if name.startswith("bench-")]
    assert len(names) == 16
    for name in names:
        assert fill(page(name), results) != page(name)


def test_the_terminal_sees_aligned_columns(imaginary) -> None:
    text = summary(imaginary())
    assert "synthesize, batch 1" in text
    assert "+ modulate activations" in text
    assert "OpenVINO from b64.conv0" in text
    lines = plain("| a | b |\n|---|---:|\n| long name | 1 |\n").splitlines()
    assert lines == ["a          b", "long name  1"]


def test_figures_are_drawn_from_the_json(imaginary, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures come with the extra `bench`")
    for device in ("cpu", "cuda"):
        record = json.loads(json.dumps(imaginary(device).as_json()))
        written = plot(record, tmp_path / f"run-{device}")
        assert [path.name for path in written] == [
            f"run-{device}-{name}.png" for name in ("waterfall", "batches", "percentiles")
        ]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_a_run_without_rows_has_no_figures(imaginary, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures come with the extra `bench`")
    record = imaginary().as_json() | {"rows": [], "laps_ms": {}}
    assert plot(record, tmp_path / "empty") == []
