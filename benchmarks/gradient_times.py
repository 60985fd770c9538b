"""What one prompt by gradients costs, beside the table by the original's loop and by ours, and until the first picture.

In each round the gradients of one prompt run once, then a slice of every layer's samples both ways
(`directions_bench.race`); a ratio is the median over the rounds of the ratio within a round, so that a machine that is
busy now and then does not decide it. Tables are multiplied up from the slice to all channels and images. The first
picture is timed as a user would: a new process, a pack with neither table nor statistics, the documented line.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines.errors import InputError
from ..runtime.store import sample_portrait
from ..runtime.training.chunks import in_chunks
from ..runtime.training.directions import TOLERANCE, DirectionRecipe, asked_channels
from ..runtime.training.directions_finite import base_faces
from ..runtime.training.directions_predicted import probes_for
from ..runtime.training.gradient import GradientRecipe, gradient_relevance
from ..runtime.training.loop import device
from ..runtime.training.pack import Pack
from ..runtime.training.pack_writer import PackWriter
from ..runtime.training.subject import Subject
from . import directions_bench
from .machine import environment

Row = dict[str, Any]


def without(pack: Pack, folder: Path, *components: str) -> Path:
    """The folder of a copy of the pack less some components."""
    with PackWriter(folder, pack.name, base=pack.path) as writer:
        for name in components:
            del writer.components[name]
    return writer.path


PREVIEW_IMAGES = 32
"""Of a first look; half the default, which a direction for keeps is made from."""


def preview_line(pack: Path, prompt: str, sheet: Path, threads: int) -> list[str]:
    """The documented line from a text to an edited picture: a first look, from `PREVIEW_IMAGES` images."""
    line = [sys.executable, "-m", "styleclip_rt", "train", "directions", "--method", "gradient", "--pack", str(pack)]
    return [*line, "--prompt", prompt, "--preview", str(sample_portrait()), "--sheet", str(sheet),
            "--images", str(PREVIEW_IMAGES), "--threads", str(threads)]  # fmt: skip


def first_picture_s(pack: Pack, prompt: str, threads: int) -> float:
    """Seconds from the command to the sheet, without a table and statistics; InputError where the command fails."""
    bare = [name for name in ("directions", "statistics") if pack.has(name)]
    with TemporaryDirectory() as work:
        folder = without(pack, Path(work) / "bare", *bare)
        line = preview_line(folder, prompt, Path(work) / "sheet.png", threads)
        began = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - began
        if done.returncode:
            raise InputError(f"{' '.join(line[1:])} failed: {done.stderr.strip().splitlines()[-1:]}")
    return taken


def gradient_s(subject: Subject) -> float:
    """Seconds of the relevance of the pack's first prompt, its base images ready."""
    generator, encode, recipe = subject.generator, subject.clip.encode_image, GradientRecipe()
    moments = subject.pack.statistics
    s = in_chunks(generator.styles, base_faces(generator, recipe.images, subject.psi)).to(device())
    prompt = next(iter(subject.pack.prompts.values()))
    delta_t = subject.pair(prompt["target"], prompt["neutral"]).delta_t
    began = time.perf_counter()
    gradient_relevance(generator, encode, s, delta_t[None], recipe, s_std=moments.s_std)
    return time.perf_counter() - began


def table_s(bench: directions_bench.Subject, count: int, stops: Path) -> dict[str, float]:
    """Seconds of the whole table by the original's loop, by ours over all images, and by ours with its early stop.

    count: channels a layer that are rendered. stops: CSV of `directions_bench error`; InputError where it is missing.
    """
    if not stops.is_file():
        raise InputError(f"{stops} is missing; make it with `python -m styleclip_rt.benchmarks.directions_bench error`")
    images = directions_bench.read_stops(stops, TOLERANCE, [layer.name for _, layer in bench.layers()])
    rows = directions_bench.race(bench, count, 1)
    whole = rows[-1]
    probes = probes_for(TOLERANCE, DirectionRecipe().images, whole["channels"])
    gradients_ms = directions_bench.gradient_ms(bench, probes)
    directions_bench.with_early_stop(rows, images, gradients_ms)
    pairs = whole["channels"] * DirectionRecipe().images / 1e3
    original = whole["original_ms"] * pairs
    return {
        "original_s": original,
        "finite_s": whole["ours_ms"] * pairs,
        "stopped_s": original / whole["times_cheaper"],
    }


def times(subject: Subject, results: Path, rounds: int, threads: int, count: int = 4) -> Row:
    """The row of the CSV: seconds, and how many times the gradients' each table takes."""
    recipe, name = GradientRecipe(), subject.pack.name
    bench = directions_bench.pack_subject(str(subject.pack.path), 16)
    stops = results / f"directions-error-{name}.csv"
    gradient_s(subject)  # whatever is set up on the first call is no part of a prompt
    laps = [{"gradient_s": gradient_s(subject), **table_s(bench, count, stops)} for _ in range(rounds)]
    prompt = next(iter(subject.pack.prompts))
    first = [first_picture_s(subject.pack, prompt, threads) for _ in range(rounds)]
    return {
        "pack": name,
        "channels": len(asked_channels(subject.generator)),
        "images": recipe.images,
        "passes": recipe.passes(),
        "table_images": DirectionRecipe().images,
        **{key: round(_median(laps, key), 2) for key in laps[0]},
        **{f"{key[:-2]}_ratio": round(_ratio(laps, key), 1) for key in laps[0] if key != "gradient_s"},
        "first_picture_s": round(float(np.median(first)), 2),
        "rounds": rounds,
        **about(threads),
    }


def about(threads: int) -> Row:
    """Where a row was taken."""
    place = environment(device().type, threads)
    return {
        "machine": f"{place['gpu'] or place['cpu']}, {place['threads']} threads",
        "torch": place["packages"].get("torch", ""),
        "date": place["date"][:10],
    }


def _median(laps: Sequence[dict[str, float]], key: str) -> float:
    return float(np.median([lap[key] for lap in laps]))


def _ratio(laps: Sequence[dict[str, float]], key: str) -> float:
    return float(np.median([lap[key] / lap["gradient_s"] for lap in laps]))
