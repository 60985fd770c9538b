"""Files of an evaluation: CSV tables, one JSON, the contact sheet, and the trade-off curves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime import images
from ..runtime.sheets import MAX_CELLS
from ..runtime.training import contact
from .evaluate import Report
from .plots import pyplot

Row = dict[str, Any]
COLOURS = ("#3d5a80", "#ee6c4d", "#2a9d8f", "#8d99ae", "#9b5de5", "#bc6c25")


def stem(pack: str) -> str:
    """The beginning of every file's name."""
    return f"evaluate-{pack}"


def write_report(report: Report, about: Mapping[str, Any], pack: str, out: Path, figures: Path) -> dict[str, Path]:
    """Writes what the report holds; returns {kind: file}. Tables and JSON into `out`, pictures into `figures`."""
    out.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    parts = {"": report.rows, "-tradeoff": report.curves, "-mappers": report.mappers, "-times": report.times}
    written = {"csv" + kind: write_csv(out / f"{stem(pack)}{kind}.csv", rows) for kind, rows in parts.items() if rows}
    written["json"] = _write_text(out / f"{stem(pack)}.json", json.dumps(record(report, about), indent=1) + "\n")
    if report.sheet:
        written["sheet"] = write_sheet(figures / f"{stem(pack)}.jpg", report.sheet)
    if report.curves:
        written["plot"] = plot(report, figures / f"{stem(pack)}-tradeoff.png")
    return written


def record(report: Report, about: Mapping[str, Any]) -> Row:
    """Everything but the pictures, for JSON."""
    return {
        **about,
        "rows": report.rows,
        "tradeoff": report.curves,
        "mappers": report.mappers,
        "times": report.times,
        "recommended": report.recommended,
        "left_out": report.left_out,
    }


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Rows as CSV, absent figures empty; appears whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> Path:
    return images.write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_sheet(path: Path, rows: Mapping[str, Tensor]) -> Path:
    """The contact sheet; fewer faces where it would have too many cells."""
    columns = max(1, MAX_CELLS // len(rows))
    shown = {name: pictures[:columns] for name, pictures in list(rows.items())[:MAX_CELLS]}
    return contact.save(path, shown, "before, and after each method, on faces that lacked the target")


def plot(report: Report, path: Path) -> Path:
    """Success against collateral change, a panel for each prompt.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    plt = pyplot()
    prompts = list(dict.fromkeys(row["prompt"] for row in report.curves))
    columns = min(2, len(prompts))
    lines = -(-len(prompts) // columns)
    size = (5.6 * columns, 4.2 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, constrained_layout=True)
    for i, axes in enumerate(panels.flat):
        if i < len(prompts):
            _panel(axes, report, prompts[i])
        else:
            axes.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _panel(axes: Any, report: Report, prompt: str) -> None:
    """One prompt: a curve over alpha for each beta, one over the mapper's strength, points at the settings in use."""
    lines: dict[tuple[str, Any], list[Row]] = {}
    for row in report.curves:
        if row["prompt"] == prompt:
            lines.setdefault((row["method"], row["beta"]), []).append(row)
    for colour, ((method, beta), rows) in zip(COLOURS, lines.items(), strict=False):
        label = method if beta is None else f"{method}, beta {beta:g} ({rows[0]['channels']} channels)"
        xs, ys = ([100 * row[key] for row in rows] for key in ("others_changed", "success"))
        axes.plot(xs, ys, marker=".", color=colour, label=label)
        ends = (rows[0], rows[-1])
        for row, x, y in zip(ends, (xs[0], xs[-1]), (ys[0], ys[-1]), strict=True):
            axes.annotate(
                f"{row['alpha']:g}", (x, y), fontsize=7, color=colour, xytext=(3, 3), textcoords="offset points"
            )
    for marker, row in zip("*sDP", (row for row in report.rows if row["prompt"] == prompt), strict=False):
        place = (100 * row["others_changed"], 100 * row["success"])
        axes.plot(*place, marker, color="black", markersize=8, label=f"{row['method']}, as recommended")
    axes.set_xlim(left=-0.3, right=max(axes.get_xlim()[1], 5))
    axes.set_ylim(-4, 104)
    axes.set_title(prompt, fontsize=11)
    axes.set_xlabel("other attributes changed (%)")
    axes.set_ylabel("target reached (%)")
    axes.legend(fontsize=7)
