"""Tables from CSV files, and the committed documents against the committed figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from styleclip_rt.benchmarks import report
from styleclip_rt.engines.errors import InputError

DIRECTIONS = """\
prompt,setting,target,neutral,alpha,beta,channels,faces,success,others_changed,worst_other,worst_share,identity_cosine
glasses,recommended,a,b,2.0,0.2,30,200,0.965,0.034,age,0.1,0.912
glasses,published,a,b,3.0,0.12,90,200,1.0,0.104,age,0.2,0.8
glasses,sweep,a,b,2.0,0.08,120,200,1.0,0.2,age,0.1,0.9
hat,sweep,a,b,2.0,0.08,80,200,0.5,0.1,age,0.1,0.9
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "toyfaces-directions.csv").write_text(DIRECTIONS)
    return tmp_path


def test_the_directions_table_puts_both_settings_side_by_side(results: Path) -> None:
    table = report.directions(results)
    assert "| glasses | 2 | 0.2 | 30 | 96% | 3% | 0.91 | 100% | 10% |" in table
    assert len(table.splitlines()) == 3


def test_the_sweep_is_a_mean_over_prompts(results: Path) -> None:
    assert report.sweep(results).splitlines()[-1] == "| 0.08 | 100 | 75% | 15.0% |"


def test_fill_replaces_old_tables_and_leaves_the_rest(results: Path) -> None:
    text = "before\n<!-- table: toyfaces-beta -->\nold figures\n<!-- end table -->\nafter\n"
    filled = report.fill(text, results)
    assert "old figures" not in filled
    assert filled.startswith("before\n<!-- table: toyfaces-beta -->\n| beta |")
    assert filled.endswith("<!-- end table -->\nafter\n")
    assert report.fill(filled, results) == filled


def test_an_unknown_table_and_a_missing_file_are_named(results: Path) -> None:
    with pytest.raises(InputError, match=r"no table 'speed'; expected one of: toyfaces-directions"):
        report.fill("<!-- table: speed -->\n<!-- end table -->", results)
    with pytest.raises(InputError, match=r"toyfaces-mapper\.csv does not exist"):
        report.fill("<!-- table: toyfaces-mapper -->\n<!-- end table -->", results)


def test_check_reports_and_writing_mends(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "fill", lambda text: text.replace("old", "new"))
    document = results / "page.md"
    document.write_text("old\n")
    stale = CliRunner().invoke(report.main, ["--check", str(document)])
    assert (stale.exit_code, document.read_text()) == (1, "old\n")
    assert CliRunner().invoke(report.main, [str(document)]).exit_code == 0
    assert document.read_text() == "new\n"
    assert CliRunner().invoke(report.main, ["--check", str(document)]).exit_code == 0


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_the_committed_documents_agree_with_the_committed_figures(name: str) -> None:
    document = report.ROOT / name
    if not document.exists():
        pytest.skip(f"{name} is not part of this checkout")
    text = document.read_text(encoding="utf-8")
    assert report.fill(text) == text, "run python -m styleclip_rt.benchmarks.report"
