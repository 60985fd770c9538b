"""The measurement of one's own weights: its files import, its steps run in order, its table follows the CSV."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.benchmarks import bring_your_own as own
from styleclip_rt.engines.errors import EngineError, InputError
from styleclip_rt.runtime.cli import cli


def test_the_files_are_what_the_import_takes(tmp_path):
    files = own.write_checkpoints(tmp_path, 16, trial=True)
    files[files.index(f"compute:{own.SAMPLES}")] = "compute:8"
    command = own.steps(tmp_path, files)["pack import"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "pack" / "pack.json").read_text())
    formats = {name: entry["origin"]["format"] for name, entry in record["components"].items() if "origin" in entry}
    assert formats["generator"].startswith("rosinality")
    assert {"clip", "inverter", "identity", "directions"} <= set(formats)
    assert record["components"]["inverter"]["config"]["num_ws"] == 6
    assert record["alignment"]["kind"] == "ffhq"


def test_the_steps_parse_and_follow_each_other(tmp_path):
    table = own.steps(tmp_path, [])
    assert list(table) == ["pack import", "export", "edit", "edit, again"]
    assert table["pack import"][-1] == table["export"][table["export"].index("--pack") + 1]
    assert table["edit"][table["edit"].index("--bundle") + 1] == table["export"][-1]
    for arguments in (table["export"], table["edit"]):
        command = cli.get_command(None, arguments[0])
        command.make_parser(pytest.importorskip("click").Context(command)).parse_args(arguments[1:])


def test_a_step_is_timed_with_its_peak_and_a_failure_is_told():
    seconds, peak = own.measured(["pack", "info", "toyfaces"], 1)
    assert seconds > 0
    assert 50 < peak < 4000
    with pytest.raises(EngineError, match=r"pack info failed: .*no pack at 'nowhere'"):
        own.measured(["pack", "info", "nowhere"], 1)


def test_the_command_writes_a_row_a_step_and_the_table_shows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "write_checkpoints", lambda folder, size, trial: [])
    monkeypatch.setattr(own, "measured", lambda arguments, threads: (12.34, 2048 if arguments[0] == "edit" else 512))
    assert own.table(tmp_path) == f"Not measured yet: `{own.COMMAND}`.\n"
    result = CliRunner().invoke(own.main, ["--size", "64", "--threads", "2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / own.RESULT).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["pack import", "export", "edit", "edit, again"]
    assert {(row["size"], row["threads"]) for row in rows} == {("64", "2")}
    assert all(row["cpu"] and int(row["cores"]) >= 1 for row in rows)
    table = own.table(tmp_path)
    assert rows[0]["cpu"] in table
    assert "| `pack import` | 12 | 0.5 |" in table
    assert "| `edit` | 12 | 2.0 |" in table


def test_outside_of_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "WRITERS", tmp_path)
    with pytest.raises(InputError, match="runs in a checkout"):
        own.writers("writers")
