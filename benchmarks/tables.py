"""Tables of a run: Markdown for the documents, text for the terminal. On a CPU ratios only, on a GPU times as well.

A document's table is made from the newest committed CSV of its kind; where there is none it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .plan import ALL_LAYERS, COLOUR_PROMPTS, LOAD_EDIT, OPENING_STEPS
from .records import COLUMNS, Record, cell, read_rows
from .report_text import markdown
from .scenarios import SCENARIOS

Rows = Sequence[dict[str, Any]]
OPENING_BAR_S = 3.0
"""The longest that a 1024 px bundle may take until it can edit."""
SLIDER_BAR = 1.6
EDIT_BAR, ORT_BAR, ORT = 6.0, 3.8, "ONNX Runtime"
"""How many times faster than the original's an edit must be on a CPU: by the best engine, and by this one."""
EQUAL_DB = 200.0
NOT_YET = "Not measured yet: `{command}` on such a machine writes the CSV.\n"
NAMED = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
COMMANDS = {
    "cpu": "styleclip-rt bench --device cpu --size 1024 --width full",
    "cuda": "styleclip-rt bench --device cuda --size 1024 --width full",
}
MORE_OPTIONS = {"opening": " --task none --stage opening"}
"""Of the command that measures a kind of rows alone."""


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
            command = COMMANDS[device] if size else COMMANDS[device].split(" --size")[0]
            return NOT_YET.format(command=command + MORE_OPTIONS.get(kind, ""))
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        in_seconds = device == "cuda" or kind == "opening"
        head = caption(about["environment"], about["workload"], in_seconds)
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


def edits(rows: Rows, times: bool) -> str:
    """The edit at batch 1 and, on a CPU, the verdict on its bars: the engines over the original."""
    table = latency("edit")(rows, times)
    gains = {
        r["name"]: float(r["speedup"])
        for r in rows
        if (r["kind"], r["task"], r["batch"], r["role"]) == ("latency", "edit", "1", "engine") and r["speedup"]
    }
    if times or not gains:
        return table
    best = max(gains, key=gains.__getitem__)
    said = [f"The bar for the best engine is {EDIT_BAR:g} times: {best} {verdict(gains[best] >= EDIT_BAR)}."]
    if ORT in gains:
        said.append(f"The bar for {ORT} is {ORT_BAR:g} times: {ORT} {verdict(gains[ORT] >= ORT_BAR)}.")
    return f"{table}\n{' '.join(said)}\n"


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


def stages(rows: Rows, times: bool) -> str:
    """Shares of the stages of an edit, one column for each engine."""
    found = [r for r in rows if r["kind"] == "stage"]
    engines, names = (list(dict.fromkeys(r[key] for r in found)) for key in ("task", "name"))
    medians = {(r["name"], r["task"]): float(r["p50_ms"]) for r in found}
    whole = {e: sum(ms for (n, of), ms in medians.items() if of == e and n != "text (cached)") for e in engines}
    body = [
        [name, *(f"{medians[name, e] / whole[e]:.1%}" if (name, e) in medians else "" for e in engines)]
        for name in names
    ]
    return markdown(["stage of an edit", *engines], body) if body else "No rows of this kind.\n"


def sliders(rows: Rows, times: bool) -> str:
    """Steps of a slider by prompt, and the verdict on the bar."""
    table = slider_gains(rows)
    return f"{table}\n{slider_verdict(rows)}\n" if any(r["kind"] == "slider" for r in rows) else table


def slider_gains(rows: Rows) -> str:
    """Where a step of a prompt starts, what it does not repeat, how many times faster than a whole edit it is."""
    found = [r for r in rows if r["kind"] == "slider"]
    engines = list(dict.fromkeys(r["task"] for r in found))
    cells = {(r["name"], r["task"]): r for r in found}
    first: dict[str, dict[str, Any]] = {}
    for row in found:
        first.setdefault(row["name"], row)  # where a step starts is the same for every engine
    body = []
    for name, row in first.items():
        gains = [factor(cells[name, engine]["gain"]) if (name, engine) in cells else "" for engine in engines]
        place = [row.get("resolutions") or "all", row.get("start") or "", percent(row.get("saved") or "")]
        body.append([name.removesuffix(f", {ALL_LAYERS}"), *place, *gains])
    header = ["prompt", "resolutions", "start", "not repeated", *(f"{engine}, times faster" for engine in engines)]
    return markdown(header, body) if body else "No rows of this kind.\n"


def slider_verdict(rows: Rows) -> str:
    """Whether the steps of colour prompts meet their bar: in their recommended layers, in all, and by grids."""
    found = [r for r in rows if r["kind"] == "slider" and r["name"].split(",")[0] in COLOUR_PROMPTS]
    said = [f"The bar for a colour prompt ({', '.join(COLOUR_PROMPTS)}) is {SLIDER_BAR:g} times a whole edit's speed."]
    for way in dict.fromkeys(r["name"].partition(", ")[2] for r in found):  # "", "all layers", "grid of 8"
        gains = [float(r["gain"]) for r in found if r["name"].partition(", ")[2] == way]
        met = sum(gain >= SLIDER_BAR for gain in gains)
        word = "met" if met == len(gains) else "not met" if met == 0 else f"met by {met} of {len(gains)} rows"
        steps = "Single steps" if not way else f"Steps in {'a ' if way.startswith('grid') else ''}{way}"
        said.append(f"{steps}: {word} ({min(gains):.2f} to {max(gains):.2f}).")
    return " ".join(said) if found else "No colour prompt was measured."


def openings(rows: Rows, times: bool) -> str:
    """Seconds of each step of opening, one column for each engine, and the verdict on the bar."""
    found = [r for r in rows if r["kind"] == "opening"]
    if not found:
        return "No rows of this kind.\n"
    engines = list(dict.fromkeys(r["task"] for r in found))
    seconds = {(r["name"], r["task"]): float(r["p50_ms"]) / 1e3 for r in found}
    body = [
        [step, *(f"{seconds[step, e]:.2f}" if (step, e) in seconds else "" for e in engines)] for step in OPENING_STEPS
    ]
    edit = {engine: seconds[LOAD_EDIT, engine] for engine in engines if (LOAD_EDIT, engine) in seconds}
    said = [f"{engine} {verdict(value <= OPENING_BAR_S)}" for engine, value in edit.items()]
    bar = f"The bar for a bundle that can edit is {OPENING_BAR_S:g} s: {', '.join(said) or 'not measured'}."
    return f"{markdown(['seconds', *engines], body)}\n{bar}\n"


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


def verdict(met: bool) -> str:
    """Whether a bar is met."""
    return "meets it" if met else "does not meet it"


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
    return "" if not value else "equal" if float(value) >= EQUAL_DB else f"{float(value):.1f}"


BENCH_TABLES: dict[str, Callable[[Path], str]] = {
    f"bench-{label}-{name}": from_newest(device, size, kind, make)
    for label, device in (("cpu", "cpu"), ("gpu", "cuda"))
    for name, size, kind, make in (
        ("synthesis", 1024, "latency", latency("synthesize")),
        ("edit", 1024, "latency", edits),
        ("batches", 1024, "latency", batches),
        ("slider-steps", 1024, "slider-step", slider_steps),
        ("opening", 1024, "opening", openings),
        ("scenarios", None, "scenario", scenarios),
        ("stages", None, "stage", stages),
        ("sliders", None, "slider", sliders),
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
    if any(row["kind"] == "stage" for row in rows):
        parts.append(plain(stages(rows, times)))
    if any(row["kind"] == "slider" for row in rows):
        parts.append(f"{plain(slider_gains(rows))}\n{slider_verdict(rows)}")
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
