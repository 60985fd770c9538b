"""Two runs side by side: what counts as a regression, and the exit code."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from styleclip_rt.benchmarks.compare import Comparison, compare
from styleclip_rt.benchmarks.records import COLUMNS, read_rows
from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.cli import cli


@pytest.fixture
def old(tmp_path: Path, imaginary) -> Path:
    return imaginary().write(tmp_path / "old")[0]


@pytest.fixture
def new(tmp_path: Path, imaginary):
    """A function (changes) -> CSV of a second run."""
    return lambda **changes: imaginary(**changes).write(tmp_path / "new")[0]


@pytest.fixture
def changed(new):
    """A function (kind, changes) -> CSV of a second run in which the cells of every row of a kind are others."""

    def make(kind: str, **changes: str) -> Path:
        path = new()
        rows = [row | changes if row["kind"] == kind else row for row in read_rows(path)]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return path

    return make


def faults(result: Comparison) -> dict[str, list[str]]:
    """{row: what is worse} of the regressions."""
    return {row.name: row.faults(result.threshold) for row in result.regressions}


def test_the_same_run_has_no_regression(old: Path, new) -> None:
    result = compare(old, new(), 0.1)
    assert result.worse == 0
    assert {row.ratio for row in result.rows} == {1.0}
    assert len(result.rows) == len(read_rows(old)), "every row is compared"


def test_a_slower_engine_is_found_by_its_speedup(old: Path, new) -> None:
    result = compare(old, new(slower=1.25), 0.1)
    slow = [row for row in result.regressions if row.name.startswith("latency")]
    assert {row.name.split(" / ")[2] for row in slow} == {"OpenVINO"}
    assert all(row.ratio == pytest.approx(1.25, rel=1e-3) for row in result.regressions)
    assert compare(old, new(slower=1.25), 0.3).worse == 0
    assert compare(old, new(slower=0.5), 0.1).worse == 0


def test_a_faster_engine_makes_nothing_else_a_regression(old: Path, new) -> None:
    """Decoding takes a larger share of a faster edit, and is as fast as before."""
    by_name = {row.name: row for row in compare(old, new(slower=0.5), 0.1).rows}
    decode = by_name["stage / OpenVINO / decode / cpu / 1"]
    assert (decode.measure, decode.ratio) == ("original's median over this", 1.0)
    step = by_name["slider-step / slider / OpenVINO from b64.conv0 / cpu / 1"]
    assert (step.measure, step.ratio) == ("speed-up over the original", 0.5)  # as the whole edit over which it gains


@pytest.mark.parametrize(
    ("kind", "changes", "rows"),
    [
        ("stage", {"p50_ms": "40"}, ["decode", "invert"]),
        ("slider", {"gain": "0.9"}, ["purple-hair", "purple-hair, all layers"]),
        ("slider-step", {"gain": "0.9"}, ["OpenVINO from b64.conv0"]),
        ("cold", {"p50_ms": "1200"}, ["edit"]),
        ("opening", {"p50_ms": "900"}, ["open and load the edit"]),
        ("scenario", {"p50_ms": "5000"}, ["OpenVINO"] * 5),
    ],
)
def test_rows_of_every_kind_are_compared(old: Path, changed, kind: str, changes: dict, rows: list[str]) -> None:
    found = faults(compare(old, changed(kind, **changes), 0.15))
    assert [name.split(" / ")[2] for name in found] == rows
    assert all(name.startswith(f"{kind} / ") and fault == ["slower"] for name, fault in found.items())


def test_without_an_original_a_row_is_compared_with_the_synthesis_of_its_engine(old: Path, changed) -> None:
    """As a run of the extras alone; another machine is twice as fast at everything."""
    extras = [row for row in read_rows(old) if row["kind"] in ("stage", "cold", "slider")]
    extras += [row | {"name": "synthesize", "p50_ms": "20"} for row in extras if row["name"] == "decode"]
    halves = [row | {"p50_ms": str(float(row["p50_ms"]) / 2)} for row in extras]
    slow_inversion = [row | {"p50_ms": "80"} if row["name"] == "invert" else row for row in halves]
    paths = []
    for number, rows in enumerate((extras, halves, slow_inversion)):
        paths.append(old.with_name(f"extras-{number}.csv"))
        with paths[-1].open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    same = compare(paths[0], paths[1], 0.1)
    assert {row.ratio for row in same.rows} == {1.0}
    assert {row.measure for row in same.rows} == {"engine's synthesis over this", "gain over the whole edit"}
    assert list(faults(compare(paths[0], paths[2], 0.1))) == ["stage / OpenVINO / invert / cpu / 1"]


def test_a_server_over_its_bound_is_a_regression(old: Path, changed) -> None:
    found = faults(compare(old, changed("scenario", valid="False"), 0.1))
    assert list(found.values()) == [["over its bound"]] * 2  # at 30 and 50%; at 70% it was over it before


def test_more_memory_is_a_regression(old: Path, changed) -> None:
    found = faults(compare(old, changed("cold", peak_rss_mib="400"), 0.1))
    assert found == {"cold / OpenVINO / edit / cpu / 1": ["more memory"]}
    assert compare(old, changed("cold", peak_rss_mib="320"), 0.1).worse == 0
    assert compare(old, changed("cold", peak_rss_mib="100"), 0.1).worse == 0


def test_memory_of_a_card_counts_beside_that_of_the_host(imaginary, tmp_path: Path) -> None:
    before, after = imaginary("cuda"), imaginary("cuda")
    for row in after.rows:
        if row["kind"] == "latency" and row["role"] == "engine":
            row["peak_device_mib"] = 1400
    found = faults(compare(before.write(tmp_path / "a")[0], after.write(tmp_path / "b")[0], 0.1))
    assert len(found) == 4
    assert set(map(tuple, found.values())) == {("more memory",)}


def test_worse_pictures_are_a_regression_even_when_fast(old: Path, new) -> None:
    assert not any(name.startswith("latency") for name in faults(compare(old, new(psnr_db=70.0), 0.1)))  # rounding
    found = faults(compare(old, new(psnr_db=40.0), 0.1))
    assert set(map(tuple, found.values())) == {("less accurate",)}
    assert all(name.startswith("latency / ") for name in found)


def test_times_are_compared_only_on_request(old: Path, new) -> None:
    result = compare(old, new(slower=1.25), 0.1, absolute=True)
    assert {row.measure for row in result.rows} == {"median ms", ""}
    assert any((row.old, row.new, row.ratio) == (800.0, 1000.0, 1.25) for row in result.rows)


def test_a_row_that_is_gone_is_a_regression_with_its_reason(old: Path, imaginary, tmp_path: Path) -> None:
    after = imaginary()
    after.rows = [row for row in after.rows if row["kind"] != "cold"]
    after.left_out = {"cold, OpenVINO": "stopped after 600 s"}
    path = after.write(tmp_path / "new")[0]
    result = compare(old, path, 0.1)
    assert result.only_old == ("cold / OpenVINO / edit / cpu / 1",)
    assert (result.regressions, result.worse) == ([], 1)
    text = CliRunner().invoke(cli, ["bench", "compare", str(old), str(path)])
    assert text.exit_code == 1
    assert "GONE, only in old: cold / OpenVINO / edit / cpu / 1" in text.output
    assert "left out of new: cold, OpenVINO: stopped after 600 s" in text.output
    assert "1 regression beyond 10%" in text.output


def test_rows_of_one_run_alone_are_listed(old: Path, new) -> None:
    other = new()
    other.write_text(other.read_text().replace("OpenVINO", "TensorRT"))
    result = compare(old, other, 0.1)
    assert any("OpenVINO" in name for name in result.only_old)
    assert any("TensorRT" in name for name in result.only_new)
    assert compare(other, other, 0.1).worse == 0


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.25, 1)])
def test_the_command_ends_with_the_verdict(old: Path, new, slower: float, code: int) -> None:
    arguments = ["bench", "compare", str(old), str(new(slower=slower))]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    assert "beyond 10%" in result.output
    as_json = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert bool(as_json["regressions"]) == bool(code)


def test_another_csv_is_refused(old: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "other.csv"
    stranger.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"no CSV of `styleclip-rt bench`"):
        compare(old, stranger, 0.1)
