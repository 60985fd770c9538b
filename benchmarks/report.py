"""The tables of the documentation, made from the committed `benchmarks/results/*.csv`.

A document marks the place; `python -m styleclip_rt.benchmarks.report` fills it, `--check` only compares:

    <!-- table: toyfaces-directions -->
    <!-- end table -->
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ..engines.errors import InputError, StyleclipError
from . import bring_your_own
from .directions_tables import DIRECTIONS_TABLES
from .evaluate_tables import EVALUATE_TABLES
from .gradient_tables import GRADIENT_TABLES
from .report_text import markdown
from .tables import BENCH_TABLES

Row = dict[str, str]
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "docs/toyfaces.md", "docs/benchmarks.md", "docs/evaluate.md", "docs/directions.md",
    "docs/import.md",
)  # fmt: skip
MARK = re.compile(r"(<!-- table: (?P<name>[a-z0-9-]+) -->\n)(?P<body>.*?)(<!-- end table -->)", re.DOTALL)


def read_csv(path: Path) -> list[Row]:
    """Rows of a CSV file; InputError where it is missing or empty."""
    if not path.exists():
        raise InputError(f"{path} does not exist; make it with `styleclip-rt demo evaluate`")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(f"{path} has no rows; make it again with `styleclip-rt demo evaluate`")
    return rows


def percent(value: str) -> str:
    """A share as a percentage without decimals, as the sample of a few hundred faces allows."""
    return f"{100 * float(value):.0f}%"


def decimals(value: str, places: int = 2) -> str:
    """A number with a fixed count of decimals."""
    return f"{float(value):.{places}f}"


def directions(results: Path) -> str:
    """Global directions: recommended settings beside alpha 3, beta 0.12."""
    rows = read_csv(results / "toyfaces-directions.csv")
    published = {row["prompt"]: row for row in rows if row["setting"] == "published"}
    header = ("prompt", "alpha", "beta", "resolutions", "channels", "target reached", "others changed",
              "identity cosine", "at alpha 3, beta 0.12", "others changed")  # fmt: skip
    body = []
    for row in (row for row in rows if row["setting"] == "recommended"):
        other = published[row["prompt"]]
        shares = [percent(row["success"]), percent(row["others_changed"]), decimals(row["identity_cosine"])]
        usual = [percent(other["success"]), percent(other["others_changed"])]
        settings = [f"{float(row['alpha']):g}", f"{float(row['beta']):g}", row["resolutions"] or "all", row["channels"]]
        body.append([row["prompt"], *settings, *shares, *usual])
    return markdown(header, body)


def sweep(results: Path) -> str:
    """What beta does: means over the prompts at the recommended alpha."""
    rows = [row for row in read_csv(results / "toyfaces-directions.csv") if row["setting"] == "sweep"]
    body = []
    for beta in sorted({float(row["beta"]) for row in rows}):
        part = [row for row in rows if float(row["beta"]) == beta]
        means = [sum(float(row[key]) for row in part) / len(part) for key in ("channels", "success", "others_changed")]
        body.append([f"{beta:g}", f"{means[0]:.0f}", f"{100 * means[1]:.0f}%", f"{100 * means[2]:.1f}%"])
    return markdown(("beta", "channels", "target reached", "others changed"), body)


def mapper(results: Path) -> str:
    """Trained mappers at their recommended strengths."""
    keys = ("success", "others_changed")
    rows = read_csv(results / "toyfaces-mapper.csv")
    body = [
        [
            row["prompt"],
            row["strength"],
            row["faces"],
            *(percent(row[key]) for key in keys),
            decimals(row["identity_cosine"]),
        ]
        for row in rows
    ]
    return markdown(("prompt", "strength", "faces", "target reached", "others changed", "identity cosine"), body)


def inversion(results: Path) -> str:
    """The inverter alone on unseen renders."""
    row = read_csv(results / "toyfaces-inversion.csv")[0]
    cells = [
        row["renders"],
        decimals(row["psnr_db"], 1),
        decimals(row["psnr_db_p10"], 1),
        percent(row["attributes_kept"]),
    ]
    return markdown(("unseen renders", "PSNR (dB)", "PSNR, 10th percentile", "attributes kept"), [cells])


def samples(results: Path) -> str:
    """Frechet distances of samples from renders, beside the floor."""
    rows = read_csv(results / "toyfaces-samples.csv")
    keys = ("samples_to_renders", "renders_to_renders")
    body = [[row["features"], row["images"], *(decimals(row[key], 4) for key in keys)] for row in rows]
    return markdown(("features", "images", "samples to renders", "renders to other renders"), body)


TABLES: dict[str, Callable[[Path], str]] = {
    "toyfaces-directions": directions,
    "toyfaces-beta": sweep,
    "toyfaces-mapper": mapper,
    "toyfaces-inversion": inversion,
    "toyfaces-samples": samples,
    **BENCH_TABLES,
    **DIRECTIONS_TABLES,
    **EVALUATE_TABLES,
    **GRADIENT_TABLES,
    "bring-your-own": bring_your_own.table,
}


def fill(text: str, results: Path = RESULTS) -> str:
    """The text of a document with every marked table made anew; InputError lists the names for an unknown one."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise InputError(f"no table {name!r}; expected one of: {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[name](results)}{match[4]}"

    return MARK.sub(table, text)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 where a document differs from the CSV files.")
@click.argument("documents", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(check: bool, documents: tuple[Path, ...]) -> None:
    """Fill the tables of DOCUMENTS (default: the repository's own) from benchmarks/results/*.csv.

    \b
    Examples:
      python -m styleclip_rt.benchmarks.report
      python -m styleclip_rt.benchmarks.report --check README.md
    """
    paths = documents or tuple(path for path in (ROOT / name for name in DOCUMENTS) if path.exists())
    try:
        stale = [path for path in paths if not _update(path, check)]
    except StyleclipError as error:
        raise click.ClickException(str(error)) from None
    if stale:
        names = ", ".join(str(path) for path in stale)
        click.echo(f"differs from the CSV files: {names}; run python -m styleclip_rt.benchmarks.report", err=True)
        sys.exit(1)


def _update(path: Path, check: bool) -> bool:
    """Whether the document agrees with the CSV files, after writing it unless `check`."""
    text = path.read_text(encoding="utf-8")
    filled = fill(text)
    if not check and filled != text:
        path.write_text(filled, encoding="utf-8")
    return filled == text or not check


if __name__ == "__main__":
    main()
