"""The record of a run: rows with fixed columns, as CSV and JSON under a name that says where they come from."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.errors import InputError
from .machine import stem

COLUMNS = (
    "kind", "task", "name", "role", "device", "precision", "batch", "samples", "p50_ms", "p90_ms", "p95_ms", "p99_ms",
    "min_ms", "mean_ms", "images_per_s", "speedup", "of_matmul", "of_copy", "gflop", "gbyte", "gflop_s", "gb_s",
    "psnr_db", "max_level_error", "start_s", "load_s", "first_ms", "h2d_ms", "compute_ms", "d2h_ms", "peak_rss_mib",
    "peak_device_mib", "scenario", "load", "rate_per_s", "bound_ms", "valid", "judged_by", "gain", "start", "saved",
    "resolutions", "note",
)  # fmt: skip
KEY = ("kind", "task", "name", "device", "precision", "batch", "scenario", "load")
"""What makes a row the same row in another run."""
ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


@dataclass
class Record:
    """Everything of one run. laps: latencies in ms by subject, for the percentile curves."""

    environment: dict[str, Any]
    workload: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    laps: dict[str, list[float]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The name of the files, without extension."""
        return stem(self.environment, int(self.workload["size"]))

    def add(self, row: Row) -> Row:
        """Append a row; InputError for a column that the format does not have."""
        unknown = sorted(row.keys() - set(COLUMNS))
        if unknown:
            raise InputError(f"a row has unknown columns {', '.join(unknown)}; add them to records.COLUMNS")
        self.rows.append(row)
        return row

    def as_csv(self) -> str:
        """The rows; figures with five digits, absent ones empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in self.rows)
        return text.getvalue()

    def as_json(self) -> dict[str, Any]:
        """All of it, ready for `json.dumps`."""
        rows = [{k: v for k, v in row.items() if v is not None and v != ""} for row in self.rows]
        short = {name: [round(ms, 4) for ms in laps] for name, laps in self.laps.items()}
        return {
            "format": "styleclip-rt/bench",
            "version": 1,
            "environment": self.environment,
            "workload": self.workload,
            "options": self.options,
            "left_out": self.left_out,
            "rows": rows,
            "laps_ms": short,
        }

    def write(self, folder: Path, append: bool = False) -> tuple[Path, Path]:
        """(CSV, JSON) in `folder`, in place of those of the same day, machine and size.

        With `append` the rows are added to those; a row that both have is the new one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        table, whole = folder / f"{self.stem}.csv", folder / f"{self.stem}.json"
        if append and whole.is_file():
            self._take_over(json.loads(whole.read_text(encoding="utf-8")))
        table.write_text(self.as_csv(), encoding="utf-8")
        whole.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        return table, whole

    def _take_over(self, before: dict[str, Any]) -> None:
        """Rows, latencies and reasons of an earlier run that this one does not have."""
        known = {key_of(row) for row in self.rows}
        self.rows = [row for row in before["rows"] if key_of(row) not in known] + self.rows
        self.workload = before["workload"] | self.workload
        self.laps = before["laps_ms"] | self.laps
        self.left_out = before["left_out"] | self.left_out


def cell(value: Any) -> str:
    """A CSV cell: floats with five significant digits, None empty."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def default_folder() -> Path:
    """`benchmarks/results` of a checkout, else the current folder."""
    return ROOT / "benchmarks" / "results" if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a bench CSV (a path to its JSON is taken too); InputError if it is none."""
    path = path.with_suffix(".csv") if path.suffix == ".json" else path
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a CSV of `styleclip-rt bench`") from None
    if not rows or "p50_ms" not in rows[0] or "kind" not in rows[0]:
        raise InputError(f"{path} is no CSV of `styleclip-rt bench`: it has no rows with kind and p50_ms")
    return rows


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What identifies a row across runs."""
    return tuple(cell(row.get(column)) for column in KEY)
