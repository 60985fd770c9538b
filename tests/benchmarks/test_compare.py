"""Two runs side by side: what counts as a regression, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from styleclip_rt.benchmarks.compare import compare
from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.cli import cli


@pytest.fixture
def old(tmp_path: Path, imaginary) -> Path:
    return imaginary().write(tmp_path / "old")[0]


@pytest.fixture
def new(tmp_path: Path, imaginary):
    """A function (changes) -> CSV of a second run."""
    return lambda **changes: imaginary(**changes).write(tmp_path / "new")[0]


def test_the_same_run_has_no_regression(old: Path, new) -> None:
    result = compare(old, new(), 0.1)
    assert result.regressions == []
    assert {row.ratio for row in result.rows} == {1.0}


def test_a_slower_engine_is_found_by_its_speedup(old: Path, new) -> None:
    result = compare(old, new(slower=1.25), 0.1)
    assert {row.name.split(" / ")[2] for row in result.regressions} == {"OpenVINO"}
    assert all(row.ratio == pytest.approx(1.25, rel=1e-3) for row in result.regressions)
    assert compare(old, new(slower=1.25), 0.3).regressions == []
    assert compare(old, new(slower=0.5), 0.1).regressions == []


def test_worse_pictures_are_a_regression_even_when_fast(old: Path, new) -> None:
    assert compare(old, new(psnr_db=70.0), 0.1).regressions == []  # still rounding
    assert compare(old, new(psnr_db=40.0), 0.1).regressions


def test_times_are_compared_only_on_request(old: Path, new) -> None:
    result = compare(old, new(slower=1.25), 0.1, absolute=True)
    assert result.measure == "median ms"
    assert any(row.old == 800.0 and row.new == 1000.0 for row in result.rows)


def test_rows_of_one_run_alone_are_listed(old: Path, new) -> None:
    other = new()
    other.write_text(other.read_text().replace("OpenVINO", "TensorRT"))
    result = compare(old, other, 0.1)
    assert any("OpenVINO" in name for name in result.only_old)
    assert any("TensorRT" in name for name in result.only_new)


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
