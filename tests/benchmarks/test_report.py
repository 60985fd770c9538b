"""The tables of the README: made of CSV rows, put between their marks, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from styleclip_rt.benchmarks.report import fill
from styleclip_rt.engines.errors import InputError

CSV = """prompt,setting,alpha,beta,resolutions,channels,faces,success,others_changed,identity_cosine
glasses,recommended,2.5,0.2,16-,61,118,0.983,0.0412,0.91
glasses,published,3.0,0.12,,140,118,1.0,0.2,0.7
glasses,sweep,2.5,0.3,,20,118,0.5,0.01,0.95
"""
PAGE = "before\n<!-- table: toyfaces-directions -->\nold\n<!-- end table -->\nafter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "toyfaces-directions.csv").write_text(CSV)
    return tmp_path


def test_a_table_holds_the_recommended_rows_beside_the_published_setting(results: Path) -> None:
    text = fill(PAGE, results)
    assert text.startswith("before\n<!-- table: toyfaces-directions -->\n| prompt |")
    assert text.endswith("<!-- end table -->\nafter\n")
    assert "| glasses | 2.5 | 0.2 | 16- | 61 | 98% | 4% | 0.91 | 100% | 20% |" in text
    assert text.count("glasses") == 1
    everywhere = results / "toyfaces-directions.csv"
    everywhere.write_text(CSV.replace("16-", ""))
    assert "| glasses | 2.5 | 0.2 | all | 61 |" in fill(text, results)
    everywhere.write_text(CSV)
    assert fill(text, results) == text


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="demo evaluate"):
        fill(PAGE, tmp_path)


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table 'speed'"):
        fill("<!-- table: speed -->\n<!-- end table -->", tmp_path)
