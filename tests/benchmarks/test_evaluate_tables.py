"""The tables of docs/evaluate.md, made from rows that were written down. No torch."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from styleclip_rt.benchmarks.evaluate_tables import COMMAND, EVALUATE_TABLES
from styleclip_rt.benchmarks.report import TABLES

KEYS = ("prompt", "method", "faces", "success", "others_changed", "worst_other", "worst_share", "identity_cosine",
        "clip_success", "clip_others", "clip_gain", "clip_direction", "delta_w", "delta_s")  # fmt: skip


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    with (folder / f"evaluate-toyfaces{kind}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def row(prompt: str, method: str, success: float, others: float, identity: float = 0.9) -> dict[str, Any]:
    values = (prompt, method, 30, success, others, "skin", 0.1, identity, 0.8, 0.1, 0.4, 0.7, "", 12.0)
    return dict(zip(KEYS, values, strict=True))


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_table_is_registered_and_names_the_command_until_it_is_measured(tmp_path: Path) -> None:
    assert EVALUATE_TABLES.keys() <= TABLES.keys()
    for make in EVALUATE_TABLES.values():
        assert make(tmp_path) == f"Not measured yet: `{COMMAND}` writes the CSV.\n"


def test_the_command_can_be_parsed(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the command needs the extra `torch`")
    from click.testing import CliRunner

    from styleclip_rt.runtime.cli import cli

    result = CliRunner().invoke(cli, [*COMMAND.split()[1:], "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "purple-hair, bob-cut, glasses, surprised" in result.output


def test_means_are_over_the_prompts_that_every_method_follows(tmp_path: Path) -> None:
    rows = [row("a", "global", 0.8, 0.04), row("b", "global", 1.0, 0.02), row("c", "global", 0.0, 0.9),
            row("a", "mapper", 0.9, 0.01), row("b", "mapper", 0.95, 0.03)]  # fmt: skip
    found = cells(TABLES["evaluate-means"](write(tmp_path, "", rows)))
    assert found == [
        ["global", "2", "90%", "80%", "3.0%", "0.90", "0.40"],
        ["mapper", "2", "92%", "90%", "2.0%", "0.90", "0.40"],
    ]
    assert len(cells(TABLES["evaluate-methods"](tmp_path))) == 5


def test_rows_say_on_how_many_of_how_many_faces_they_rest(tmp_path: Path) -> None:
    rows = [{**row("a", "global", 0.8, 0.04), "of": 200}, {**row("a", "optimize", 0.7, 0.04), "of": 40}]
    found = cells(TABLES["evaluate-methods"](write(tmp_path, "", rows)))
    assert [(line[1], line[2]) for line in found] == [("global", "30 of 200"), ("optimize", "30 of 40")]


def test_the_best_within_a_budget_of_change(tmp_path: Path) -> None:
    keys = ("prompt", "method", "alpha", "beta", "success", "others_changed", "identity_cosine")
    points = [(1.0, 0.5, 0.01, 0.9), (2.0, 0.8, 0.04, 0.9), (3.0, 0.8, 0.05, 0.95), (4.0, 1.0, 0.3, 0.5)]
    rows = [dict(zip(keys, ("a", "global", alpha, 0.12, s, o, i), strict=True)) for alpha, s, o, i in points]
    found = cells(TABLES["evaluate-tradeoff"](write(tmp_path, "-tradeoff", rows)))
    best = "80% (alpha 3, beta 0.12)"
    assert found == [["a", "global", "50% (alpha 1, beta 0.12)", best, best]]


def test_times_stand_beside_the_paper_s(tmp_path: Path) -> None:
    common = {"median_ms": 3, "rounds": 5, "machine": "a machine", "torch": "2.9", "date": "2026-01-01"}
    measured = [("picture", "global", 1.0, ""), ("picture", "optimize", 412.3, ""),
                ("picture", "optimize (published)", 900.0, ""),
                ("training for a text", "mapper", 123456.0, "6 of 300 steps")]  # fmt: skip
    rows = [{**dict(zip(("what", "method", "ratio", "slice"), part, strict=True)), **common} for part in measured]
    table = TABLES["evaluate-times"](write(tmp_path, "-times", rows))
    assert table.startswith(
        "a machine; torch 2.9; 2026-01-01; median over 5 rounds in turns; preparations from 6 of 300"
    )
    found = {line[0]: line[1:] for line in cells(table)}
    assert found["optimize"] == ["", "", "412", "", "", "98 s", "1,360"]
    assert found["optimize (published)"] == ["", "", "900", "", "", "", ""]
    assert found["mapper"][:3] == ["", "123,000", ""]
    assert found["global"] == ["", "", "1", "4 h", "", "72 ms", "1"]
    assert "3 ms" not in table  # a CPU's milliseconds are no figure for a document


def test_agreement_joins_our_mappers_and_the_paper_s(tmp_path: Path) -> None:
    rows = [{"prompt": "bob-cut", "space": "w+", "faces": 40, "mean_cosine": 0.914, "p10_cosine": 0.79}]
    found = {line[0]: line[1:] for line in cells(TABLES["evaluate-mappers"](write(tmp_path, "-mappers", rows)))}
    assert found["bob-cut"] == ["0.91", "0.79", "40", "0.82"]
    assert found["afro"] == ["", "", "", "0.84"]
