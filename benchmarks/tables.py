"""Tables of a run: Markdown for the documents, text for the terminal. On a CPU ratios only, on a GPU times as well.

A document's table is made from the newest committed CSV of its kind; where there is none it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .records import COLUMNS, Record, cell, read_rows
from .report_text import markdown
from .scenarios import SCENARIOS

Rows = Sequence[dict[str, Any]]
NOT_YET = "Not measured yet: `{command}` on such a machine writes the CSV.\n"
NAMED = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
COMMANDS = {
    "cpu": "styleclip-rt bench --device cpu --size 1024 --width full",
    "cuda": "styleclip-rt bench --device cuda --size 1024 --width full",
}


def newest(results: Path, device: str, size: int | None = None, kind: str = "latency") -> Path | None:
    """The latest bench CSV in a folder with rows of a kind, measured on `device` (at `size` px), by its date."""
    found = []
    for path in results.glob("*c-*px-*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            fits = record["environment"]["device"] == device and size in (None, record["workload"]["size"])
            fits = fits and any(row["kind"] == kind for row in record["rows"])
            date = record["environment"]["date"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if fits and path.with_suffix(".csv").is_file():
            found.append((date, path.with_suffix(".csv")))
    return max(found)[1] if found else None


def from_newest(device: str, size: int | None, kind: str, make: Callable[[Rows, bool], str]) -> Callable[[Path], str]:
    """A table of `report.TABLES`: `make(rows, times)` of the newest CSV, or a line that says there is none."""

    def table(results: Path) -> str:
        path = newest(results, device, size, kind)
        if path is None:
            return NOT_YET.format(command=COMMANDS[device] if size else COMMANDS[device].split(" --size")[0])
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        head = caption(about["environment"], about["workload"], device == "cuda")
        return f"{head}\n\n{make(read_rows(path), device == 'cuda')}"

    return table


def caption(environment: dict[str, Any], workload: dict[str, Any], times: bool) -> str:
    """Where and on what: the line above a table."""
    place = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in NAMED if name in packages]
    what = "" if times else "; ratios of times taken in turns in one run"
    return f"{place}; {workload['network']}; {', '.join(versions)}; {environment['date'][:10]}{what}."


# Tables of the documents ------------------------------------------------------------------------------------------


def latency(task: str) -> Callable[[Rows, bool], str]:
    """Every subject of a task at batch 1: the waterfall and the engines."""

    def table(rows: Rows, times: bool) -> str:
        found = [r for r in rows if r["kind"] == "latency" and r["task"] == task and r["batch"] == "1"]
        header = ["", *(("p50 (ms)", "p99 (ms)", "on the card (ms)") if times else ()), "times faster", "last step",
                  "of the matrix rate", "PSNR (dB)", "peak memory (MiB)"]  # fmt: skip
        body, before = [], None
        for row in found:
            step = ratio(row["speedup"], before) if row["role"] in ("technique", "baseline") else ""
            before = row["speedup"] if row["role"] in ("technique", "baseline") else before
            memory = row["peak_device_mib"] if times else row["peak_rss_mib"]
            timing = [ms(row["p50_ms"]), ms(row["p99_ms"]), ms(row["compute_ms"])] if times else []
            body.append([row["name"], *timing, factor(row["speedup"]), step, percent(row["of_matmul"]),
                         quality(row["psnr_db"]), memory])  # fmt: skip
        return markdown(header, body) if body else "No rows of this kind.\n"

    return table


def batches(rows: Rows, times: bool) -> str:
    """Time for one image over the batch, of the edit where it was measured."""
    task = "edit" if any(r["task"] == "edit" for r in rows if r["kind"] == "latency") else "synthesize"
    found = [r for r in rows if r["kind"] == "latency" and r["task"] == task and r["role"] in ("engine", "baseline")]
    sizes = sorted({int(r["batch"]) for r in found})
    names = list(dict.fromkeys(r["name"] for r in found if r["batch"] != "1"))
    table = {(r["name"], int(r["batch"])): r for r in found}
    body = []
    for name in names:
        base = table.get((name, 1))
        line = [name]
        for size in sizes:
            row = table.get((name, size))
            if row is None or base is None:
                line.append("")
            elif times:
                line.append(f"{float(row['p50_ms']) / size:.2f} ms")
            else:
                line.append(f"{float(row['p50_ms']) / size / float(base['p50_ms']):.2f}")
        body.append(line)
    unit = "ms an image" if times else "time of an image, batch 1 = 1"
    return markdown([unit, *(f"batch {size}" for size in sizes)], body) if body else "No rows of this kind.\n"


def extras(kind: str, first: str) -> Callable[[Rows, bool], str]:
    """Shares of the stages of an edit, or gains of the slider, one column for each engine."""

    def table(rows: Rows, times: bool) -> str:
        found = [r for r in rows if r["kind"] == kind]
        engines, names = (list(dict.fromkeys(r[key] for r in found)) for key in ("task", "name"))
        cells = {(r["name"], r["task"]): r for r in found}
        body = [[name, *(one(cells, name, engine) for engine in engines)] for name in names]
        return markdown([first, *engines], body) if body else "No rows of this kind.\n"

    def one(cells: dict[tuple[str, str], dict[str, Any]], name: str, engine: str) -> str:
        row = cells.get((name, engine))
        if row is None:
            return ""
        if kind == "slider":
            return f"{float(row['gain']):.2f}"
        whole = sum(float(r["p50_ms"]) for (n, e), r in cells.items() if e == engine and n != "text (cached)")
        return f"{float(row['p50_ms']) / whole:.1%}"

    return table


def slider_steps(rows: Rows, times: bool) -> str:
    """What a step of a slider gains, by the layer from which it starts."""
    found = [r for r in rows if r["kind"] == "slider-step"]
    if not found:
        return "No rows of this kind.\n"
    whole = float(found[0]["gflop"])
    body = [[r["name"], factor(r["gain"]), f"{1 - float(r['gflop']) / whole:.0%}"] for r in found]
    return markdown(["start", "times faster than the whole edit", "operations not repeated"], body)


def scenarios(rows: Rows, times: bool) -> str:
    """Single stream, server and offline of each engine; the server's load is a share of the single stream's rate."""
    found = [r for r in rows if r["kind"] == "scenario"]
    body = []
    for name in dict.fromkeys(r["name"] for r in found):
        mine = {kind: [r for r in found if r["name"] == name and r["scenario"] == kind] for kind in SCENARIOS}
        stream = (mine["singlestream"] or [dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "images_per_s"), "")])[0]
        loads = [float(r["load"]) for r in mine["server"] if r["valid"] == "True"]
        batch = mine["offline"][0]["images_per_s"] if mine["offline"] else ""
        body.append([name, ratio(stream["p90_ms"], stream["p50_ms"]), ratio(stream["p99_ms"], stream["p50_ms"]),
                     f"{max(loads):.0%}" if loads else "", ratio(batch, stream["images_per_s"])])  # fmt: skip
    header = ("engine", "p90 / p50", "p99 / p50", "server: valid load", "offline: rate over single stream")
    return markdown(header, body) if body else "No rows of this kind.\n"


def factor(value: str) -> str:
    """A speed-up."""
    return f"{float(value):.2f}" if value else ""


def ratio(value: str, before: str | None) -> str:
    """One figure over another, "" where either is absent."""
    return f"{float(value) / float(before):.2f}" if value and before else ""


def percent(value: str) -> str:
    """A share."""
    return f"{100 * float(value):.0f}%" if value else ""


def ms(value: str) -> str:
    """Milliseconds."""
    return f"{float(value):.3f}" if value else ""


def quality(value: str) -> str:
    """PSNR; pictures that are equal level by level say so."""
    return "" if not value else "equal" if float(value) >= 200 else f"{float(value):.1f}"


BENCH_TABLES: dict[str, Callable[[Path], str]] = {
    f"bench-{label}-{name}": from_newest(device, size, kind, make)
    for label, device in (("cpu", "cpu"), ("gpu", "cuda"))
    for name, size, kind, make in (
        ("synthesis", 1024, "latency", latency("synthesize")),
        ("edit", 1024, "latency", latency("edit")),
        ("batches", 1024, "latency", batches),
        ("slider-steps", 1024, "slider-step", slider_steps),
        ("scenarios", None, "scenario", scenarios),
        ("stages", None, "stage", extras("stage", "stage of an edit")),
        ("sliders", None, "slider", extras("slider", "prompt")),
    )
}


# The terminal -----------------------------------------------------------------------------------------------------


def summary(record: Record) -> str:
    """What a run found, in lines for the terminal."""
    times = record.environment["device"] == "cuda"
    rows: list[dict[str, str]] = [{key: cell(row.get(key)) for key in COLUMNS} for row in record.rows]
    parts = [caption(record.environment, record.workload, times)]
    parts += [
        f"{task}, batch 1\n{plain(latency(task)(rows, times))}"
        for task in ("synthesize", "edit")
        if any(row["task"] == task for row in rows)
    ]
    if any(row["kind"] == "latency" and row["batch"] != "1" for row in rows):
        parts.append(plain(batches(rows, times)))
    parts += [
        plain(extras(kind, kind)(rows, times)) for kind in ("stage", "slider") if any(r["kind"] == kind for r in rows)
    ]
    if any(row["kind"] == "slider-step" for row in rows):
        parts.append(f"a step of a slider\n{plain(slider_steps(rows, times))}")
    parts += [_single(row) for row in rows if row["kind"] in ("scenario", "cold", "opening")]
    parts += [f"left out: {name}: {reason}" for name, reason in record.left_out.items()]
    return "\n\n".join(parts)


def _single(row: dict[str, str]) -> str:
    """A row that stands alone."""
    keys = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "images_per_s", "rate_per_s", "load", "valid", "judged_by",
            "peak_rss_mib")  # fmt: skip
    figures = ", ".join(f"{key} {row[key]}" for key in keys if row[key])
    return f"{row['scenario'] or row['kind']}, {row['name']} ({row['task']}): {figures}"


def plain(table: str) -> str:
    """A Markdown table with aligned columns."""
    lines = [[part.strip() for part in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    if len(lines) < 2:
        return table.strip()
    lines = [lines[0], *lines[2:]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: list[str], widths: list[int]) -> str:
    cells = [part.rjust(width) for part, width in zip(line, widths, strict=True)]
    return "  ".join([line[0].ljust(widths[0]), *cells[1:]])
