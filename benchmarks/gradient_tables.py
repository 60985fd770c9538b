"""The table of `gradient_report` for docs/directions.md."""

from __future__ import annotations

import csv
from pathlib import Path

from .report_text import markdown

NAME = "toyfaces-gradient.csv"


def gradient_agreement(results: Path) -> str:
    """For docs/directions.md: means over the prompts by estimate."""
    path = results / NAME
    if not path.is_file():
        return "Not measured yet: `python -m styleclip_rt.benchmarks.gradient_report` writes the CSV.\n"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    keys = list(dict.fromkeys((row["estimate"], row["images"], row["passes"]) for row in rows))
    body = []
    for key in keys:
        part = [row for row in rows if (row["estimate"], row["images"], row["passes"]) == key]
        means = {
            name: sum(float(row[name]) for row in part) / len(part)
            for name in ("spearman", "overlap", "cosine", "success", "others_changed")
        }
        shares = [f"{100 * means['success']:.0f}%", f"{100 * means['others_changed']:.1f}%"]
        figures = [f"{means['spearman']:.2f}", f"{100 * means['overlap']:.0f}%", f"{means['cosine']:.2f}"]
        body.append([*key, *figures, *shares])
    header = ("relevance by", "images", "passes", "rank correlation", "same channels", "cosine of delta_s",
              "target reached", "others changed")  # fmt: skip
    return markdown(header, body)
