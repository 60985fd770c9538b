"""Channel directions beside the loop of the original: time by layer in turns in one run, and what early stop changes.

`speed` times one (image, channel) sample, two pictures and their embeddings, both ways. The original is `plain_rows`
over the generator as published (`baseline.ORIGINAL`), one picture at a time at full size, its pixels through Pillow's
bicubic resize. Ours is what `train directions` runs; what it computes once for an image and a block of channels is
timed apart and shared among the block. "near" is ours with `--render-at`, an approximation. `error` renders a slice of
a pack's table over all images and replays the early stop; the images that it takes there, and the time of the gradients
that it needs, give what a whole table costs with it.
"""

from __future__ import annotations

import csv
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..engines.errors import InputError, StyleclipError
from ..runtime.training.directions import BLOCK, TOLERANCE, group_size, moved_features, resolution_for
from ..runtime.training.directions_finite import front_of
from ..runtime.training.directions_plain import plain_rows
from ..runtime.training.directions_predicted import FACES, probes_for
from ..runtime.training.directions_render import OpenedImage, Renderer
from ..runtime.training.directions_stop import differences
from ..runtime.training.jacobian import chunk_size, embed, pullbacks
from ..runtime.training.memory import keep_freed_memory
from ..runtime.training.networks.clip import Clip
from ..runtime.training.networks.stylegan2 import StyleLayer
from .baseline import ORIGINAL, Variant, image_u8
from .directions_error import Row, errors
from .directions_subject import IMAGES, SIGMAS, Subject, pack_subject, random_subject, spread
from .network import SIZES, WIDTHS
from .report import RESULTS


def pillow_encoder(clip: Clip) -> Callable[[Tensor], Tensor]:
    """The original's way from a picture [1,3,R,R] to CLIP: uint8, Pillow's bicubic resize, mean and std."""
    size, normalise = clip.image_size, clip.preprocess.normalise

    def encode(picture: Tensor) -> Tensor:
        image = Image.fromarray(image_u8(picture.numpy())[0]).resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        return clip.model.visual(normalise(pixels))  # type: ignore[operator,no-any-return,union-attr]

    return encode


# Time -------------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds, result)."""
    began = time.perf_counter()
    result = call()
    return (time.perf_counter() - began) * 1e3, result


class Race:
    """Both ways over one layer: `original_ms` of a sample, and ours, with its part of what the block shares."""

    def __init__(self, subject: Subject, block: int, render_at: int | None = None) -> None:
        self.subject, self.block = subject, block
        self.renderer = Renderer(subject.generator, front_of(subject.clip))
        self.near = None if render_at is None else Renderer(subject.generator, front_of(subject.clip), render_at)
        self.variant, self.encode = Variant(subject.generator, ORIGINAL), pillow_encoder(subject.clip)
        self.group = group_size(self.renderer)

    def original_ms(self, layer: StyleLayer, count: int) -> float:
        """One image, `count` channels of the layer."""
        subject, channels = self.subject, [layer.offset + c for c in spread(layer, count)]
        moments = subject.mean, subject.std
        ms, _ = timed(lambda: plain_rows(self.variant, self.encode, subject.styles[:1], *moments, channels))
        return ms / len(channels)

    def ours_ms(self, renderer: Renderer, index: int, layer: StyleLayer, count: int) -> tuple[float, float, Tensor]:
        """(opening the image at the layer, one sample in it, the differences [count,E]).

        Whatever is done once for a block of channels counts to the opening: compiling, where it is compiled.
        """
        subject, channels = self.subject, spread(layer, count)
        places = [layer.offset + c for c in channels]
        mean, reach = subject.mean[places], SIGMAS * subject.std[places]

        def run(opened: OpenedImage, part: slice) -> Tensor:
            moved = moved_features(opened, subject.clip.encode_image, channels[part], mean[part], reach[part])
            return differences(moved)

        opening, opened = timed(lambda: renderer.open(subject.styles[0], index))
        parts = [slice(start, start + self.group) for start in range(0, len(channels), self.group)]
        compiles = renderer.engine == "openvino"  # at the first pictures
        first = timed(lambda: run(opened, parts[0]))[0] if compiles else 0.0
        ms, found = timed(lambda: [run(opened, part) for part in parts])
        once = max(0.0, first - ms / len(parts))
        return opening + once, ms / len(channels), torch.cat(found)

    def row(self, index: int, layer: StyleLayer, count: int, ours_count: int, turn: int) -> Row:
        """One row of the CSV; who is first changes from turn to turn."""
        original = 0.0 if turn % 2 else self.original_ms(layer, count)
        opening, ours, delta = self.ours_ms(self.renderer, index, layer, ours_count)
        shared = min(self.block, layer.channels)
        found = {"opening_ms": opening, "sample_ms": ours, "ours_ms": ours + opening / shared}
        if self.near is not None:
            opening, ours, nearly = self.ours_ms(self.near, index, layer, ours_count)
            found["near_ms"] = ours + opening / shared
            found["near_cosine"] = float(torch.cosine_similarity(delta, nearly, dim=1).mean())
        original = original or self.original_ms(layer, count)
        return {"layer": layer.name, "channels": layer.channels, "original_ms": original, **found}


@torch.no_grad()
def race(subject: Subject, count: int, rounds: int, block: int = BLOCK, render_at: int | None = None) -> list[Row]:
    """Rows by layer, the median over the rounds, and a last row for the whole table: layers weighted by channels."""
    contest = Race(subject, block, render_at)
    contest.row(*subject.layers()[-1], 1, 1, 0)  # warm-up of both
    laps: dict[str, list[Row]] = {}
    plan = [(turn, index, layer) for turn in range(rounds) for index, layer in subject.layers()]
    for number, (turn, index, layer) in enumerate(tqdm(plan, "samples", unit="layer", disable=None)):
        ours_count = max(count, min(contest.group, layer.channels))
        laps.setdefault(layer.name, []).append(contest.row(index, layer, count, ours_count, turn + number))
    rows = [_median(lap) for lap in laps.values()]
    keys = [key for key in rows[0] if key.endswith(("_ms", "_cosine"))]
    channels = sum(row["channels"] for row in rows)
    total = {key: sum(row["channels"] * row[key] for row in rows) / channels for key in keys}
    rows.append({"layer": "table", "channels": channels, **total})
    for row in rows:
        row["times_faster"] = row["original_ms"] / row["ours_ms"]
        if contest.near is not None:
            row["near_times_faster"] = row["original_ms"] / row["near_ms"]
    return rows


def _median(rows: Sequence[Row]) -> Row:
    numbers = {key: float(np.median([row[key] for row in rows])) for key in rows[0] if key.endswith(("_ms", "_cosine"))}
    return {**rows[0], **numbers}


def gradient_ms(subject: Subject, probes: int, timed_probes: int = 3) -> float:
    """Milliseconds that the gradients for the early stop take for one base image, its share of the probes included."""
    generator, encode = subject.generator, subject.clip.encode_image
    s = subject.styles[: chunk_size(generator)]
    embed(generator, encode, s)
    forward, embedded = timed(lambda: embed(generator, encode, s))
    passes = pullbacks(generator, encode, s, torch.eye(embedded.shape[1])[: timed_probes + 1])
    next(passes)
    backward = float(np.median([timed(lambda: next(passes))[0] for _ in range(timed_probes)]))
    return (forward * (1 + FACES / IMAGES) + backward * probes) / len(s)


def _gradient_ms(pack: str, size: str | None, width: str, tolerance: float, threads: int) -> float:
    """`gradient_ms` under the memory settings of `train directions`."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    subject = random_subject(int(size), width, 1) if size else pack_subject(pack, 16)
    return gradient_ms(subject, probes_for(tolerance, IMAGES, sum(layer.channels for _, layer in subject.layers())))


def gradient_ms_apart(pack: str, size: str | None, width: str, tolerance: float) -> float:
    """The same in a process of its own: the original's loop keeps the memory settings that it has."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_gradient_ms, pack, size, width, tolerance, torch.get_num_threads()).result()


def with_early_stop(rows: list[Row], stops: dict[str, float], gradients_ms: float, images: int = IMAGES) -> None:
    """Adds to each row how much cheaper the rows of its channels are when they stop after `stops[layer]` images.

    `gradients_ms`, of one image, is shared among all channels.
    """
    whole, share = rows[-1], gradients_ms / rows[-1]["channels"]
    for row in rows[:-1]:
        row["mean_images"], row["gradient_ms"] = stops[row["layer"]], share
    whole["mean_images"] = sum(row["channels"] * row["mean_images"] for row in rows[:-1]) / whole["channels"]
    whole["gradient_ms"] = share
    for way in [way for way in ("", "near_") if f"{way}times_faster" in whole]:
        key = f"{way}ms" if way else "ours_ms"
        for row in rows[:-1]:
            row[f"{way}times_cheaper"] = row["original_ms"] * images / (row[key] * row["mean_images"] + share * images)
        cost = sum(row["channels"] * (row[key] * row["mean_images"] + share * images) for row in rows[:-1])
        whole[f"{way}times_cheaper"] = whole["original_ms"] * whole["channels"] * images / cost


# Command ----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV with the columns of the first row; times to a thousandth of a millisecond."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 3) if key.endswith(("_ms", "_faster", "_cheaper", "_cosine")) else value
             for key, value in row.items()} for row in rows
        )  # fmt: skip


def read_stops(path: Path, tolerance: float, layers: Sequence[str]) -> dict[str, float]:
    """Mean images of `layers` from the CSV of `error`; those of its table for layers of another network.

    InputError where the CSV has no rows of that tolerance.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if float(row["tolerance"]) == tolerance]
    found = {row["layer"]: float(row["mean_images"]) for row in rows}
    if "table" not in found:
        raise InputError(f"{path} has no rows of tolerance {tolerance:g}; make it anew with `directions_bench error`")
    own = set(layers) <= set(found)
    return {layer: found[layer if own else "table"] for layer in layers}


OUT = click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, metavar="DIR",
                   help="Folder of the CSV.  [default: benchmarks/results]")  # fmt: skip
THREADS = click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")


@click.group()
def main() -> None:
    """Channel directions beside the loop of the original.

    \b
    Examples:
      python -m styleclip_rt.benchmarks.directions_bench error
      python -m styleclip_rt.benchmarks.directions_bench speed
      python -m styleclip_rt.benchmarks.directions_bench speed --size 1024
    """


@main.command()
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR")
@click.option("--size", type=click.Choice([str(size) for size in SIZES]), help="Random weights of this size instead.")
@click.option("--width", type=click.Choice(list(WIDTHS)), default="full", show_default=True)
@click.option("--slice", "count", type=click.IntRange(1), metavar="COUNT",
              help="Channels a layer in a round.  [default: 8; 1 with --size]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), metavar="COUNT", help="[default: 3; 1 with --size]")
@click.option("--tolerance", type=float, default=TOLERANCE, show_default=True,
              help="Of the early stop; how many images it takes comes from the CSV of `error` for --pack.")  # fmt: skip
@click.option("--render-at", metavar="full|clip|PIXELS", default="clip", show_default=True,
              help="Also ours up to this resolution, where the generator is larger.")  # fmt: skip
@THREADS
@OUT
def speed(
    pack: str, size: str | None, width: str, count: int | None, rounds: int | None, tolerance: float, render_at: str,
    threads: int | None, out: Path,
) -> None:  # fmt: skip
    """Time of an (image, channel) sample by layer: the original's loop and ours in turns."""
    if threads:
        torch.set_num_threads(threads)
    subject = random_subject(int(size), width, 1) if size else pack_subject(pack, 1)
    near = resolution_for(render_at, subject.generator.config.resolutions, subject.clip.image_size)
    path, layers = out / f"directions-error-{Path(pack).name}.csv", [layer.name for _, layer in subject.layers()]
    stops = read_stops(path, tolerance, layers) if tolerance and path.exists() else None  # wrong before anything long
    rows = race(subject, count or (1 if size else 8), rounds or (1 if size else 3), render_at=near)
    if stops:
        with_early_stop(rows, stops, gradient_ms_apart(pack, size, width, tolerance))
    _finish(out / f"directions-speed-{subject.name}.csv", rows)


@main.command()
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR")
@click.option("--slice", "count", type=click.IntRange(1), default=16, show_default=True, metavar="COUNT",
              help="Channels a layer.")  # fmt: skip
@click.option("--images", type=click.IntRange(8), default=IMAGES, show_default=True, metavar="COUNT")
@THREADS
@OUT
def error(pack: str, count: int, images: int, threads: int | None, out: Path) -> None:
    """Cosine of rows that stopped early with those over all images, by tolerance and layer; deterministic."""
    if threads:
        torch.set_num_threads(threads)
    subject = pack_subject(pack, images)
    _finish(out / f"directions-error-{subject.name}.csv", errors(subject, count))


def _finish(path: Path, rows: Sequence[Row]) -> None:
    write_rows(path, rows)
    for row in rows:
        click.echo("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    click.echo(str(path))


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except StyleclipError as problem:
        raise SystemExit(f"error: {problem}") from None
