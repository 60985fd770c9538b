"""Tables of `styleclip-rt evaluate` on the pack that ships, for docs/evaluate.md, beside the figures of the paper."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from .report_text import markdown

Row = dict[str, str]
COMMAND = (
    "styleclip-rt evaluate --prompt purple-hair --prompt bob-cut --prompt glasses --prompt surprised --faces 80 "
    "--optimize-faces 40 --times all --threads 2 --out benchmarks/results --figures docs/images"
)
BUDGETS = (0.02, 0.05, 0.1)

# Patashnik et al. 2021, from memory: the text of the paper was not at hand (docs/evaluate.md says so).
PAPER_TIMES: dict[str, tuple[str, str, str, float | None]] = {
    "optimize": ("", "", "98 s", 98 / 0.072),
    "mapper": ("", "10 - 12 h", "75 ms", 75 / 72),
    "global": ("4 h", "", "72 ms", 1.0),
}
"""Table 1, on a GTX 1080 Ti: preparation of a model, training for a text, one picture, and that over a global edit."""
PAPER_COSINES = {
    "mohawk": 0.82, "afro": 0.84, "bob-cut": 0.82, "curly": 0.84, "beyonce": 0.83, "taylor-swift": 0.77,
    "surprised": 0.79, "purple-hair": 0.73,
}  # fmt: skip
"""Table 2: mean cosine between the mapper's steps for different images."""


def rows_of(results: Path, kind: str = "") -> list[Row]:
    """Rows of `evaluate-toyfaces<kind>.csv`; none where it is missing."""
    path = results / f"evaluate-toyfaces{kind}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def or_not_yet(kind: str, make: Callable[[Sequence[Row]], str]) -> Callable[[Path], str]:
    """A table of `report.TABLES`: made of the CSV, or a line that names the command."""

    def table(results: Path) -> str:
        rows = rows_of(results, kind)
        return make(rows) if rows else f"Not measured yet: `{COMMAND}` writes the CSV.\n"

    return table


def methods(rows: Sequence[Row]) -> str:
    """Every method and prompt."""
    header = ("prompt", "method", "faces", "target reached", "others changed", "most of all", "identity",
              "CLIP: reached", "CLIP: others", "CLIP gain", "CLIP direction", "delta_w", "delta_s")  # fmt: skip
    body = []
    for row in rows:
        worst = f"{row['worst_other']} {_percent(row['worst_share'])}" if float(row["worst_share"]) else ""
        measured = [_faces(row), _percent(row["success"]), f"{100 * float(row['others_changed']):.1f}%", worst]
        opinion = [_number(row["identity_cosine"], 2), *(_percent(row[key]) for key in ("clip_success", "clip_others"))]
        figures = [*opinion, *(_number(row[key], 2) for key in ("clip_gain", "clip_direction"))]
        lengths = [_number(row[key], 1) for key in ("delta_w", "delta_s")]
        body.append([row["prompt"], row["method"], *measured, *figures, *lengths])
    return markdown(header, body)


def means(rows: Sequence[Row]) -> str:
    """Means over the prompts that every method follows, and the least prompt's success."""
    found = list(dict.fromkeys(row["method"] for row in rows))
    by = {name: {row["prompt"]: row for row in rows if row["method"] == name} for name in found}
    shared = set.intersection(*(set(prompts) for prompts in by.values()))
    body = []
    for name in found:
        part = [row for prompt, row in by[name].items() if prompt in shared]
        mean = {key: sum(float(row[key] or "nan") for row in part) / len(part) for key in
                ("success", "others_changed", "identity_cosine", "clip_gain")} if part else {}  # fmt: skip
        if not mean:
            continue
        least = min(float(row["success"]) for row in part)
        body.append([name, str(len(part)), f"{mean['success']:.0%}", f"{least:.0%}", f"{mean['others_changed']:.1%}",
                     f"{mean['identity_cosine']:.2f}", f"{mean['clip_gain']:.2f}"])  # fmt: skip
    header = ("method", "prompts", "target reached", "least prompt", "others changed", "identity", "CLIP gain")
    return markdown(header, body) if body else "No prompt is followed by every method.\n"


def tradeoff(rows: Sequence[Row]) -> str:
    """The best success within a budget of collateral change, over all alpha and beta that were tried."""
    body = []
    for prompt, method in dict.fromkeys((row["prompt"], row["method"]) for row in rows):
        part = [row for row in rows if (row["prompt"], row["method"]) == (prompt, method)]
        body.append([prompt, method, *(_within(part, budget) for budget in BUDGETS)])
    return markdown(("prompt", "method", *(f"others changed <= {budget:.0%}" for budget in BUDGETS)), body)


def _within(rows: Sequence[Row], budget: float) -> str:
    kept = [row for row in rows if float(row["others_changed"]) <= budget]
    if not kept:
        return ""
    best = max(kept, key=lambda row: (float(row["success"]), float(row["identity_cosine"] or 0)))
    place = f"alpha {float(best['alpha']):.3g}" + (f", beta {float(best['beta']):.3g}" if best["beta"] else "")
    return f"{_percent(best['success'])} ({place})"


def times(rows: Sequence[Row]) -> str:
    """Table 1 of the paper: in units of one global edit, side by side in one run."""
    stages = ("preparation of a model", "training for a text", "picture")
    found = {(row["method"], row["what"]): row for row in rows}
    body = []
    for method in dict.fromkeys([*PAPER_TIMES, *(row["method"] for row in rows)]):
        prepare, train, picture, unit = PAPER_TIMES.get(method, ("", "", "", None))
        ours = [_ratio(found[method, stage]["ratio"]) if (method, stage) in found else "" for stage in stages]
        body.append([method, *ours, prepare, train, picture, "" if unit is None else _ratio(unit)])
    header = ("method", *(f"{stage}, toyfaces" for stage in stages), "paper: preparation", "paper: training",
              "paper: picture", "paper: picture, ratio")  # fmt: skip
    first, parts = rows[0], dict.fromkeys(row["slice"] for row in rows if row["slice"])
    note = f"{first['machine']}; torch {first['torch']}; {first['date']}; median over {first['rounds']} rounds in turns"
    note += f"; preparations from {' and '.join(parts)}" if parts else ""
    return f"{note}.\n\n{markdown(header, body)}"


def agreement(rows: Sequence[Row]) -> str:
    """Table 2 of the paper: mean cosine between a mapper's steps for different images."""
    ours = {row["prompt"]: row for row in rows}
    body = []
    for name in dict.fromkeys([*ours, *PAPER_COSINES]):
        row, paper = ours.get(name), PAPER_COSINES.get(name)
        cells = [_number(row["mean_cosine"], 2), _number(row["p10_cosine"], 2), row["faces"]] if row else [""] * 3
        body.append([name, *cells, "" if paper is None else f"{paper:.2f}"])
    return markdown(("prompt", "toyfaces: mean cosine", "10th percentile", "faces", "paper: mean cosine"), body)


def _faces(row: Row) -> str:
    """How many faces lacked the target, of how many that were looked at (rows of older runs do not say)."""
    return f"{row['faces']} of {row['of']}" if row.get("of") else row["faces"]


def _percent(share: str) -> str:
    return f"{100 * float(share):.0f}%"


def _ratio(value: str | float) -> str:
    """A ratio to three digits."""
    rounded = float(f"{float(value):.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _number(value: str, places: int) -> str:
    return f"{float(value):.{places}f}" if value else ""


EVALUATE_TABLES: dict[str, Callable[[Path], str]] = {
    "evaluate-methods": or_not_yet("", methods),
    "evaluate-means": or_not_yet("", means),
    "evaluate-tradeoff": or_not_yet("-tradeoff", tradeoff),
    "evaluate-times": or_not_yet("-times", times),
    "evaluate-mappers": or_not_yet("-mappers", agreement),
}
