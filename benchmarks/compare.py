"""Two runs side by side: what became slower, larger or less accurate, and what is no longer there.

Two runs differ by their machine's drift, so times are compared as ratios within each run; see `MEASURES`. Times
themselves only on request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.errors import InputError
from .plan import ORIGINAL
from .records import COLUMNS, key_of, read_rows

LEAST_PSNR_LOSS_DB = 1.0
LOSSLESS_DB = 60.0
"""Above this a change in PSNR is rounding."""
MEMORY = ("peak_rss_mib", "peak_device_mib")
ABSOLUTE = "median ms"

Row = dict[str, str]
Key = tuple[str, ...]


# What is compared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The rows of a run by key, without its ceilings, which belong to the machine; those stand apart."""

    rows: dict[Key, Row]
    ceilings: list[Row]

    def median(self, kind: str, **wanted: str) -> float | None:
        """The median in ms of the first row of a kind with these cells, None where there is none."""
        for row in self.rows.values() if kind != "ceiling" else self.ceilings:
            if row["kind"] == kind and row["p50_ms"] and all(row[name] == value for name, value in wanted.items()):
                return float(row["p50_ms"])
        return None


def read_run(path: Path) -> Measured:
    """The rows of a CSV of `bench`; InputError if it is none."""
    rows = [{column: row.get(column) or "" for column in COLUMNS} for row in read_rows(path)]
    ceilings = [row for row in rows if row["kind"] == "ceiling"]
    return Measured({key_of(row): row for row in rows if row["kind"] != "ceiling"}, ceilings)


def over_original(row: Row, run: Measured) -> float | None:
    """The speed-up that was timed in turns; a slider's gain over the whole edit times that of this edit."""
    if row["speedup"]:
        return float(row["speedup"])
    if not row["gain"]:
        return None
    engine = row["task"] if row["kind"] == "slider" else row["name"].split(" from ")[0]
    edit = (r for r in run.rows.values() if r["kind"] == "latency" and (r["task"], r["name"]) == ("edit", engine))
    speedup = next((float(r["speedup"]) for r in edit if r["batch"] == "1" and r["speedup"]), None)
    return None if speedup is None else float(row["gain"]) * speedup


def over_edit(row: Row, run: Measured) -> float | None:
    """A slider's gain over the whole edit, timed in turns."""
    return float(row["gain"]) if row["gain"] else None


def of_matmul(row: Row, run: Measured) -> float | None:
    """The share of the rate of the large matrix product, timed in turns."""
    return float(row["of_matmul"]) if row["of_matmul"] else None


def beside_original(row: Row, run: Measured) -> float | None:
    """How often the row fits into one call of the original, timed elsewhere in the run."""
    times = (run.median("latency", name=ORIGINAL, task=task, batch="1") for task in ("edit", "synthesize"))
    return _times(row, next((ms for ms in times if ms is not None), None))


def beside_synthesis(row: Row, run: Measured) -> float | None:
    """How often the row fits into a synthesis by the same engine; that synthesis itself into the decoding."""
    if row["kind"] == "stage" and row["name"] == "synthesize":
        return _times(row, run.median("stage", task=row["task"], name="decode"))
    stage = run.median("stage", task=row["task"], name="synthesize")
    engine = row["name"] if row["kind"] == "scenario" else row["task"]
    times = (run.median("latency", name=engine, task=task, batch="1") for task in ("edit", "synthesize"))
    return _times(row, stage if stage is not None else next((ms for ms in times if ms is not None), None))


def _times(row: Row, other_ms: float | None) -> float | None:
    return other_ms / float(row["p50_ms"]) if other_ms and row["p50_ms"] else None


MEASURES: dict[str, Callable[[Row, Measured], float | None]] = {
    "speed-up over the original": over_original,
    "gain over the whole edit": over_edit,
    "share of the matrix rate": of_matmul,
    "original's median over this": beside_original,
    "engine's synthesis over this": beside_synthesis,
}
"""What a row is compared by: the first that both runs have. Higher is faster; in turns before apart."""


# Rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One row in both runs.

    Attributes:
        name: of the row.
        measure: a key of `MEASURES`, or `ABSOLUTE`; "" where the runs have no figure of time in common.
        old, new: in that measure.
        ratio: how many times as slow as before (1 is the same), None without a measure.
        psnr_db, memory_mib: (old, new), None where a run has none.
        lost: a server that kept its bound and keeps it no more.
    """

    name: str
    measure: str = ""
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    psnr_db: tuple[float, float] | None = None
    memory_mib: tuple[float, float] | None = None
    lost: bool = False

    def faults(self, threshold: float) -> list[str]:
        """What is worse than before; time and memory by more than a share."""
        found = {
            "slower": self.ratio is not None and self.ratio > 1 + threshold,
            "over its bound": self.lost,
            "more memory": self.memory_mib is not None and self.memory_mib[1] > self.memory_mib[0] * (1 + threshold),
            "less accurate": self._less_accurate(),
        }
        return [fault for fault, there in found.items() if there]

    def _less_accurate(self) -> bool:
        """Whether its pictures are visibly further from the reference than before."""
        if self.psnr_db is None:
            return False
        old, new = self.psnr_db
        return new < LOSSLESS_DB and old - new > LEAST_PSNR_LOSS_DB


@dataclass(frozen=True)
class Comparison:
    """All rows in both runs, what is only in one of them, and {what: why} the new run left something out."""

    threshold: float
    rows: tuple[Difference, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def regressions(self) -> list[Difference]:
        """Rows that are slower or larger than the threshold allows, less accurate, or over their bound."""
        return [row for row in self.rows if row.faults(self.threshold)]

    @property
    def worse(self) -> int:
        """Regressions, and rows that are gone."""
        return len(self.regressions) + len(self.only_old)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "threshold": self.threshold,
            "rows": [vars(row) | {"faults": row.faults(self.threshold)} for row in self.rows],
            "regressions": [row.name for row in self.regressions] + list(self.only_old),
            "only_old": list(self.only_old),
            "only_new": list(self.only_new),
            "left_out": self.left_out,
        }

    def as_text(self) -> str:
        """A table with a verdict for each row."""
        width = max([len(row.name) for row in self.rows] + [10])
        head = f"{'row':{width}}  {'old':>10}  {'new':>10}  {'ratio':>6}  {'memory':>6}"
        lines = [f"{head}   (above 1 is slower, larger)"]
        lines += [self._line(row, width) for row in self.rows]
        lines += [f"only in new: {name}" for name in self.only_new]
        lines += [f"GONE, only in old: {name}" for name in self.only_old]
        if self.only_old:
            lines += [f"left out of new: {name}: {reason}" for name, reason in self.left_out.items()]
        lines.append(f"{self.worse} regression{'s' * (self.worse != 1)} beyond {self.threshold:.0%}")
        return "\n".join(lines)

    def _line(self, row: Difference, width: int) -> str:
        times = [f"{value:.4g}" if value is not None else "" for value in (row.old, row.new)]
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        memory = f"{row.memory_mib[1] / row.memory_mib[0]:.2f}" if row.memory_mib else ""
        said = ", ".join(filter(None, (row.measure, *(fault.upper() for fault in row.faults(self.threshold)))))
        return f"{row.name:{width}}  {times[0]:>10}  {times[1]:>10}  {ratio:>6}  {memory:>6}   {said}".rstrip()


def compare(old: Path, new: Path, threshold: float, absolute: bool = False) -> Comparison:
    """Compare two CSV files of `bench`; `threshold` is a share.

    Raises:
        InputError: a file is none of that, or they have no measured row in common.
    """
    left, right = read_run(old), read_run(new)
    common = [key for key in left.rows if key in right.rows]
    if not common:
        raise InputError(f"{old} and {new} share no row; were they measured on the same network?")
    return Comparison(
        threshold,
        tuple(difference(key, left, right, absolute) for key in common),
        tuple(label(key) for key in left.rows if key not in right.rows),
        tuple(label(key) for key in right.rows if key not in left.rows),
        left_out_of(new),
    )


def difference(key: Key, left: Measured, right: Measured, absolute: bool) -> Difference:
    """One row, by the first measure that both runs have of it."""
    old, new = left.rows[key], right.rows[key]
    facts: dict[str, Any] = {"psnr_db": _pair(old, new, "psnr_db"), "memory_mib": grown(old, new)}
    facts["lost"] = old["valid"] == "True" and new["valid"] == "False"
    if absolute:
        times = _pair(old, new, "p50_ms")
        if times is None:
            return Difference(label(key), **facts)
        return Difference(label(key), ABSOLUTE, *times, times[1] / times[0], **facts)
    for measure, figure in MEASURES.items():
        before, after = figure(old, left), figure(new, right)
        if before and after:
            return Difference(label(key), measure, before, after, before / after, **facts)
    return Difference(label(key), **facts)


def grown(old: Row, new: Row) -> tuple[float, float] | None:
    """(old, new) peak memory in MiB, of the host or of the device: where it grew more."""
    pairs = [pair for column in MEMORY if (pair := _pair(old, new, column)) and pair[0] > 0]
    return max(pairs, key=lambda pair: pair[1] / pair[0], default=None)


def _pair(old: Row, new: Row, column: str) -> tuple[float, float] | None:
    """(old, new) of a column that both have."""
    return (float(old[column]), float(new[column])) if old[column] and new[column] else None


def left_out_of(path: Path) -> dict[str, str]:
    """What the run of a CSV left out and why, from the JSON beside it; nothing where there is none."""
    try:
        return dict(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["left_out"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def label(key: Key) -> str:
    """A key as people read it."""
    return " / ".join(part for part in key if part)
