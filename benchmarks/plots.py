"""Figures of a run: the waterfall, time over batch, percentile curves. matplotlib comes with the extra `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engines.errors import MissingDependency
from .plan import ORIGINAL

COLOURS = {"baseline": "#8d99ae", "technique": "#3d5a80", "engine": "#ee6c4d"}


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files; MissingDependency names the extra."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingDependency("figures need matplotlib; run: python -m pip install 'styleclip-rt[bench]'") from error
    return plt


def plot(record: dict[str, Any], base: Path) -> list[Path]:
    """Write `<base>-waterfall.png`, `-batches.png` and `-percentiles.png` of a run's JSON; those that have data.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    plt = pyplot()
    written = []
    for name, draw in (("waterfall", waterfall), ("batches", batches), ("percentiles", percentiles)):
        figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
        if draw(axes, record):
            path = base.with_name(f"{base.name}-{name}.png")
            figure.savefig(path, dpi=110)
            written.append(path)
        plt.close(figure)
    return written


def in_ms(record: dict[str, Any]) -> bool:
    """Whether times are shown: on a GPU. A CPU's are relative to the original's median."""
    return bool(record["environment"]["gpu"])


def where(record: dict[str, Any]) -> str:
    """Machine and network, for a title."""
    environment = record["environment"]
    return f"{environment['gpu'] or environment['cpu']}\n{record['workload']['network']}"


def waterfall(axes: Any, record: dict[str, Any]) -> bool:
    """Bars of the synthesis at batch 1, in the order of the techniques."""
    rows = [r for r in record["rows"] if r["kind"] == "latency" and r["task"] == "synthesize" and r["batch"] == 1]
    if not rows:
        return False
    first = rows[0]["p50_ms"]
    values = [r["p50_ms"] if in_ms(record) else r.get("speedup", first / r["p50_ms"]) for r in rows]
    bars = axes.barh([r["name"] for r in rows], values, color=[COLOURS.get(r["role"], "#999999") for r in rows])
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("median latency (ms)" if in_ms(record) else "times faster than the original")
    axes.set_title(f"Synthesis, batch 1: {where(record)}", fontsize=10)
    axes.margins(x=0.12)
    return True


def batches(axes: Any, record: dict[str, Any]) -> bool:
    """Time for one image over the batch, of the engines."""
    rows = [r for r in record["rows"] if r["kind"] == "latency" and r["role"] == "engine"]
    task = "edit" if any(r["task"] == "edit" for r in rows) else "synthesize"
    drawn = False
    for name in dict.fromkeys(r["name"] for r in rows):
        line = sorted((r["batch"], r["p50_ms"] / r["batch"]) for r in rows if r["name"] == name and r["task"] == task)
        if len(line) > 1:
            scale = 1.0 if in_ms(record) else line[0][1]
            axes.plot([b for b, _ in line], [value / scale for _, value in line], marker="o", label=name)
            drawn = True
    axes.set_xlabel("batch")
    axes.set_ylabel("ms an image" if in_ms(record) else "time of an image, batch 1 = 1")
    axes.set_title(f"{task.capitalize()}: {where(record)}", fontsize=10)
    if drawn:
        axes.legend()
    return drawn


def percentiles(axes: Any, record: dict[str, Any]) -> bool:
    """Latency over percentile of every subject with 20 samples or more."""
    laps = {name: np.sort(values) for name, values in record["laps_ms"].items() if len(values) >= 20}
    laps = {name: values for name, values in laps.items() if "matmul" not in name and "copy" not in name}
    original = [np.median(v) for n, v in record["laps_ms"].items() if n.endswith(ORIGINAL) and len(v)]
    scale = 1.0 if in_ms(record) or not original else float(original[0])
    for name, values in laps.items():
        axes.plot(100 * (np.arange(len(values)) + 1) / len(values), values / scale, label=name)
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms" if in_ms(record) else "share of the original's median")
    axes.set_yscale("log")
    axes.set_title(f"Latency by percentile: {where(record)}", fontsize=10)
    if laps:
        axes.legend(fontsize=7)
    return bool(laps)
