"""Tables of `gradient_report` for docs/directions.md."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from .report_text import markdown

NAME, TIMES = "toyfaces-gradient.csv", "toyfaces-gradient-times.csv"
REPORT = "python -m styleclip_rt.benchmarks.gradient_report"
Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    """Rows of a CSV; none where it is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def agreement(results: Path) -> str:
    """Means over the prompts by estimate."""
    rows = rows_of(results / NAME)
    if not rows:
        return f"Not measured yet: `{REPORT}` writes the CSV.\n"
    keys = list(dict.fromkeys((row["estimate"], row["images"], row["passes"]) for row in rows))
    body = []
    for key in keys:
        part = [row for row in rows if (row["estimate"], row["images"], row["passes"]) == key]
        means = {
            name: sum(float(row[name]) for row in part) / len(part)
            for name in ("channels", "spearman", "overlap", "cosine", "success", "others_changed")
        }
        least = min(part, key=lambda row: float(row["success"]))
        worst = f"{100 * float(least['success']):.0f}% ({least['prompt']})"
        shares = [f"{100 * means['success']:.0f}%", worst, f"{100 * means['others_changed']:.1f}%"]
        figures = [f"{means['spearman']:.2f}", f"{100 * means['overlap']:.0f}%", f"{means['cosine']:.2f}"]
        body.append([*key, f"{means['channels']:.0f}", *figures, *shares])
    header = ("relevance by", "images", "passes", "channels", "rank correlation", "same channels",
              "cosine of delta_s", "target reached", "least prompt", "others changed")  # fmt: skip
    return markdown(header, body)


def times(results: Path) -> str:
    """One prompt beside the whole table: ratios taken in one run, and the seconds until the first picture."""
    rows = rows_of(results / TIMES)
    if not rows:
        return f"Not measured yet: `{REPORT} --times --threads 2` writes the CSV.\n"
    row = rows[0]
    ways = {
        "the original's loop": "original_ratio",
        "`--method finite --tolerance 0`": "finite_ratio",
        "`--method finite`, with its early stop": "stopped_ratio",
    }
    body = [[name, row["table_images"], f"{float(row[key]):,.0f}"] for name, key in ways.items()]
    note = f"{row['machine']}; torch {row['torch']}; {row['date']}; median over {row['rounds']} rounds in turns. "
    note += f"From the command to the first edited picture: {float(row['first_picture_s']):.1f} s"
    return f"{note}.\n\n{markdown(('table by', 'images', 'times one prompt by gradient'), body)}"


GRADIENT_TABLES: dict[str, Callable[[Path], str]] = {"gradient-agreement": agreement, "gradient-times": times}
