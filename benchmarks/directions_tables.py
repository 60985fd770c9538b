"""Tables of docs/directions.md, from the CSV files of `directions_bench`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from .report_text import markdown

Row = dict[str, str]
BENCH = "python -m styleclip_rt.benchmarks.directions_bench"
SUBJECTS = {"toyfaces": "", "1024px-full": " --size 1024"}


def rows_of(path: Path) -> list[Row]:
    """Rows of a CSV; none where it is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def error(results: Path) -> str:
    """Early stop on toyfaces, by tolerance, over the whole table."""
    rows = [row for row in rows_of(results / "directions-error-toyfaces.csv") if row["layer"] == "table"]
    if not rows:
        return f"Not measured yet: `{BENCH} error` writes the CSV.\n"
    header = ("tolerance", "rows measured", "images a row", "mean cosine", "5th percentile", "smallest",
              "rows at 0.99 and above")  # fmt: skip
    body = []
    for row in rows:
        cosines = [f"{float(row[key]):.4f}" for key in ("cosine_mean", "cosine_p05", "cosine_min")]
        share = f"{100 * float(row['share_099']):.0f}%"
        body.append([row["tolerance"], row["measured"], f"{float(row['mean_images']):.1f}", *cosines, share])
    return markdown(header, body)


def speed(results: Path) -> str:
    """Times faster, by network and layer: ratios alone, as times on shared machines say little."""
    header = ("", "channels", "a sample, times faster", "with the early stop", "`--render-at clip`",
              "that with the early stop", "its cosine")  # fmt: skip
    body, missing = [], []
    for name, option in SUBJECTS.items():
        rows = rows_of(results / f"directions-speed-{name}.csv")
        if not rows:
            missing.append(f"Not measured yet: `{BENCH} speed{option}` writes the CSV.\n")
        for row in rows:
            keys = ("times_faster", "times_cheaper", "near_times_faster", "near_times_cheaper")
            ratios = [f"{float(row[key]):.1f}" if row.get(key) else "" for key in keys]
            cosine = f"{float(row['near_cosine']):.4f}" if row.get("near_cosine") else ""
            body.append([f"{name}, {row['layer']}", row["channels"], *ratios, cosine])
    return (markdown(header, body) if body else "") + ("\n" if body and missing else "") + "\n".join(missing)


DIRECTIONS_TABLES: dict[str, Callable[[Path], str]] = {"directions-error": error, "directions-speed": speed}
