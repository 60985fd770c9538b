"""Two runs side by side: what became slower or less accurate.

Two runs on one machine differ by its drift, so the measure is the speed-up over the original that was timed in turns
with it; times themselves only on request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.errors import InputError
from .records import key_of, read_rows

LEAST_PSNR_LOSS_DB = 1.0
LOSSLESS_DB = 60.0
"""Above this a change in PSNR is rounding."""


@dataclass(frozen=True)
class Difference:
    """One row in both runs. ratio: how many times as slow as before (1 is the same); psnr_db: (old, new) or None."""

    name: str
    old: float
    new: float
    ratio: float
    psnr_db: tuple[float, float] | None = None

    def slower(self, threshold: float) -> bool:
        """Whether it is slower by more than a share."""
        return self.ratio > 1 + threshold

    def worse(self) -> bool:
        """Whether its pictures are visibly further from the reference than before."""
        if self.psnr_db is None:
            return False
        old, new = self.psnr_db
        return new < LOSSLESS_DB and old - new > LEAST_PSNR_LOSS_DB


@dataclass(frozen=True)
class Comparison:
    """All rows in both runs, and what is only in one of them."""

    measure: str
    threshold: float
    rows: tuple[Difference, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def regressions(self) -> list[Difference]:
        """Rows that are slower than the threshold allows, or less accurate."""
        return [row for row in self.rows if row.slower(self.threshold) or row.worse()]

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "measure": self.measure,
            "threshold": self.threshold,
            "rows": [vars(row) for row in self.rows],
            "regressions": [row.name for row in self.regressions],
            "only_old": list(self.only_old),
            "only_new": list(self.only_new),
        }

    def as_text(self) -> str:
        """A table with a verdict for each row."""
        width = max([len(row.name) for row in self.rows] + [10])
        lines = [f"{'row':{width}}  {'old':>10}  {'new':>10}  {'ratio':>6}   ({self.measure}; ratio above 1 is slower)"]
        for row in self.rows:
            mark = "slower" if row.slower(self.threshold) else "less accurate" if row.worse() else ""
            lines.append(f"{row.name:{width}}  {row.old:>10.4g}  {row.new:>10.4g}  {row.ratio:>6.2f}   {mark}".rstrip())
        lines += [f"only in old: {name}" for name in self.only_old] + [f"only in new: {name}" for name in self.only_new]
        count = len(self.regressions)
        lines.append(f"{count} regression{'s' * (count != 1)} beyond {self.threshold:.0%}")
        return "\n".join(lines)


def compare(old: Path, new: Path, threshold: float, absolute: bool = False) -> Comparison:
    """Compare two CSV files of `bench`; `threshold` is a share.

    Raises:
        InputError: a file is none of that, or they have no measured row in common.
    """
    column = "p50_ms" if absolute else "speedup"
    left, right = measured(old, column), measured(new, column)
    common = [key for key in left if key in right]
    if not common:
        raise InputError(f"{old} and {new} share no row with {column}; were they measured on the same network?")
    rows = tuple(difference(key, left[key], right[key], column) for key in common)
    return Comparison(
        "median ms" if absolute else "speed-up over the original",
        threshold,
        rows,
        tuple(label(key) for key in left if key not in right),
        tuple(label(key) for key in right if key not in left),
    )


def measured(path: Path, column: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a file by key that have a figure in `column`; ceilings belong to the machine and are left out."""
    rows = [row for row in read_rows(path) if row.get(column) and row["kind"] != "ceiling"]
    return {key_of(row): row for row in rows}


def difference(key: tuple[str, ...], old: dict[str, str], new: dict[str, str], column: str) -> Difference:
    """One row: a speed-up that shrinks and a time that grows both give a ratio above 1."""
    before, after = float(old[column]), float(new[column])
    ratio = after / before if column == "p50_ms" else before / after
    both = old.get("psnr_db") and new.get("psnr_db")
    psnr = (float(old["psnr_db"]), float(new["psnr_db"])) if both else None
    return Difference(label(key), before, after, ratio, psnr)


def label(key: tuple[str, ...]) -> str:
    """A key as people read it."""
    return " / ".join(part for part in key if part)
