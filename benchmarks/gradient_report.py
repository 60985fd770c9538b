"""Directions by gradients beside the finite table of the demonstration pack: agreement, and edits that a judge sees.

    python -m styleclip_rt.benchmarks.gradient_report
    python -m styleclip_rt.benchmarks.gradient_report --times --threads 2

Every prompt of the pack, by several estimates of the relevance, at the prompt's own alpha and with as many channels as
the finite table keeps at the prompt's beta; once more with as many as the command `train directions` keeps. The finite
table is no ground truth: it is a sample of images itself, hence the row of gradients on the very images that it was
made from beside those on others.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..engines.errors import InputError, StyleclipError
from ..runtime import edits
from ..runtime.training.chunks import in_chunks
from ..runtime.training.demo.scores import judged
from ..runtime.training.directions import asked_channels
from ..runtime.training.directions_finite import base_faces
from ..runtime.training.directions_stop import unit
from ..runtime.training.gradient import (
    GradientRecipe,
    chunk_size,
    embed,
    finite_passes,
    probe_matrix,
    pullbacks,
    scattered,
)
from ..runtime.training.gradient_run import KEPT
from ..runtime.training.loop import device
from ..runtime.training.pack import load_pack
from ..runtime.training.statistics import latent_batches
from ..runtime.training.subject import Faces, Subject
from .gradient_tables import NAME, TIMES
from .gradient_times import times

FACES_SEED = 73  # 71 and 72 are of the faces that spread and beta of the gradients were chosen on
Row = dict[str, Any]
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Slopes:
    """Raw pullbacks of images: rows [n,S,m] along `vectors` [m,E]; `embeddings` [n,E] of their pictures."""

    rows: Tensor
    vectors: Tensor
    embeddings: Tensor

    def take(self, images: slice) -> Slopes:
        """Those of some images."""
        return Slopes(self.rows[images], self.vectors, self.embeddings)

    def along(self, probes: Tensor) -> Tensor:
        """<J_c, p> of probes [k,E] that lie in the span of the vectors: [n,S,k]."""
        return self.rows.double() @ (probes @ torch.linalg.pinv(self.vectors)).T


def slopes_of(subject: Subject, s: Tensor, delta_t: Tensor, recipe: GradientRecipe) -> Slopes:
    """Everything that the estimates below read: one backward pass an image and vector."""
    encode = subject.clip.encode_image
    embeddings = embed(subject.generator, encode, s)
    vectors = probe_matrix(embeddings, delta_t, recipe)
    batches = tqdm(s.split(chunk_size(subject.generator)), "gradients", unit="batch", disable=None)
    found = [torch.stack([*pullbacks(subject.generator, encode, part, vectors)], -1).cpu() for part in batches]
    return Slopes(torch.cat(found), vectors, embeddings)


def by_cosine(slopes: Slopes, delta_t: Tensor, alike: bool = False) -> Array:
    """What `gradient_relevance` gives: unit mean rows, times delta_t (`alike`: see `mean_rows`)."""
    rows = slopes.along(slopes.vectors)
    rows = unit(rows) if alike else unit(rows.flatten(1)).view_as(rows)
    rows = unit(rows.mean(0))
    return (rows @ (slopes.vectors @ delta_t.double())).numpy()


def by_slope(slopes: Slopes, delta_t: Tensor, sigma: Tensor) -> Array:
    """The mean gradient of <E, delta_t> alone, times sigma: one backward pass an image, no probes."""
    return (slopes.along(delta_t[None].double())[..., 0].mean(0) * sigma.double()).numpy()


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two vectors without ties."""
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def strongest(r: Array, count: int) -> NDArray[np.int64]:
    """The `count` channels of the largest |r|."""
    return np.argsort(-np.abs(r))[:count]


def step(r: Array, count: int, sigma: Array) -> NDArray[np.float32]:
    """delta_s [S] of the `count` strongest channels: `edits.direction` at the beta that keeps so many."""
    kept = np.zeros(len(r))
    chosen = strongest(r, count)
    kept[chosen] = r[chosen] / np.abs(r).max()
    return (kept * sigma).astype(np.float32)


def agreement(finite: Array, r: Array, count: int, sigma: Array, asked: Sequence[int]) -> Row:
    """Rank correlation over the channels, and how much of the edit is the same at a count of channels."""
    shared = set(strongest(finite, count)) & set(strongest(r, count))
    return {
        "spearman": round(spearman(finite[asked], r[asked]), 4),
        "overlap": round(len(shared) / count, 4),
        "cosine": round(edits.cosine(step(finite, count, sigma), step(r, count, sigma)), 4),
        "largest": round(float(np.abs(r).max()), 4),
    }


@dataclass(frozen=True)
class Estimate:
    """A way to find a relevance: images and passes that it costs for one prompt, and its function of delta_t.

    own: it keeps as many channels as the command does by itself, else as many as the finite table.
    """

    name: str
    images: int
    passes: int
    relevance: Callable[[Tensor], Array]
    own: bool = False

    def count(self, r: Array, matched: int) -> int:
        """How many channels its edit moves."""
        return int((np.abs(r) >= edits.beta_keeping(r, KEPT)).sum()) if self.own else matched


def estimates(subject: Subject, delta_t: Tensor, images: Sequence[int], table_images: int) -> list[Estimate]:
    """The finite table; gradients at its own images and at others; around those, fewer and more; without probes."""
    recipe, moments = GradientRecipe(), subject.pack.statistics
    generator, psi = subject.generator, subject.psi
    mask = np.zeros(generator.style_channels)
    mask[asked_channels(generator)] = 1
    z = next(latent_batches(table_images, generator.config.z_dim, seed=5, batch=table_images)).to(device())
    own = in_chunks(generator.styles, generator.broadcast(generator.mapping(z, psi))).to(device())
    other = in_chunks(generator.styles, base_faces(generator, max(images), psi)).to(device())
    parts = (own, other[: recipe.images], scattered(other, moments.s_std, recipe))
    same, there, around = (slopes_of(subject, s, delta_t, recipe) for s in parts)
    rows = len(asked_channels(generator))
    table = subject.directions.astype(np.float64)

    def gradient(name: str, slopes: Slopes, count: int, *, alike: bool = False, own: bool = False) -> Estimate:
        part = slopes.take(slice(count))
        passes = GradientRecipe(count).passes()
        return Estimate(name, count, passes, lambda t: by_cosine(part, t, alike) * mask, own)

    few = around.take(slice(recipe.images))
    return [
        Estimate("finite table", table_images, finite_passes(table_images, rows), lambda t: table @ t.double().numpy()),
        gradient("at the table's faces", same, table_images, alike=True),
        gradient("at other faces", there, recipe.images, alike=True),
        *(gradient("around them", around, count) for count in images),
        Estimate("around them, slope x sigma", recipe.images, 2 * recipe.images,
                 lambda t: by_slope(few, t, moments.s_std) * mask),
        gradient("as the command does", around, recipe.images, own=True),
    ]  # fmt: skip


def study(subject: Subject, faces: Faces, images: Sequence[int], table_images: int) -> list[Row]:
    """Rows of the CSV: every prompt that the judge knows by every estimate."""
    prompts = {
        name: row for name, row in subject.pack.prompts.items() if subject.scorer.knows(name) and row.get("beta")
    }
    delta_t = torch.stack([subject.pair(row["target"], row["neutral"]).delta_t for row in prompts.values()])
    ways = estimates(subject, delta_t, images, table_images)
    todo = list(zip(prompts, prompts.values(), delta_t, strict=True))
    return [
        row
        for name, settings, text in tqdm(todo, "edits", unit="prompt", disable=None)
        for row in prompt_rows(subject, subject.lacking(name, faces), name, settings, text, ways)
    ]


def prompt_rows(
    subject: Subject, lacking: Faces, name: str, settings: Mapping[str, Any], text: Tensor, ways: Sequence[Estimate]
) -> list[Row]:
    """One prompt, in its recommended layers: the finite table comes first and says how many channels are kept."""
    sigma = subject.pack.statistics.s_std.numpy().astype(np.float64)
    inside = subject.mask(settings.get("resolutions"))
    asked = [channel for channel in asked_channels(subject.generator) if inside[channel]]
    finite = ways[0].relevance(text) * inside
    matched, alpha = max(1, int((np.abs(finite) >= settings["beta"]).sum())), float(settings["alpha"])
    rows = []
    for way in ways:
        r = way.relevance(text) * inside
        count = way.count(r, matched)
        edited = subject.compare(name, lacking, subject.edit(lacking, step(r, count, sigma), alpha))
        costs = {"prompt": name, "estimate": way.name, "images": way.images, "passes": way.passes}
        compared = {"alpha": alpha, "channels": count, **agreement(finite, r, count, sigma, asked)}
        rows.append({**costs, **compared, **edited.shares()})
    return rows


def write(path: Path, rows: Sequence[Row]) -> Path:
    """The CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@click.command()
@click.option("--pack", default="toyfaces", show_default=True, metavar="NAME|DIR", help="Pack with table and judge.")
@click.option("--faces", type=click.IntRange(4), default=64, show_default=True, metavar="COUNT", help="Edited faces.")
@click.option("--images", multiple=True, type=click.IntRange(2), default=(16, 32, 64), show_default=True,
              metavar="COUNT", help="Base images of the gradients; may be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option("--times", "timed", is_flag=True, help="Only time one prompt beside the table, and the first picture.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="COUNT", help="Of the times.")
@click.option("--threads", type=click.IntRange(1), metavar="COUNT", help="Threads for PyTorch.")
def main(
    pack: str, faces: int, images: tuple[int, ...], out: Path, timed: bool, rounds: int, threads: int | None
) -> None:
    """How directions by gradients compare with the finite table of a demonstration pack.

    \b
    Examples:
      python -m styleclip_rt.benchmarks.gradient_report
      python -m styleclip_rt.benchmarks.gradient_report --times --threads 2
    """
    if threads:
        torch.set_num_threads(threads)
    try:
        subject = judged(load_pack(pack))
        if timed:
            row = times(subject, out, rounds, threads or torch.get_num_threads())
            click.echo("\n".join(f"{key:15} {value}" for key, value in row.items()))
            click.echo(str(write(out / TIMES, [row])))
            return
        if max(images) < GradientRecipe().images:
            raise InputError(f"--images {max(images)}: give at least one of {GradientRecipe().images} or more")
        table_images = int(subject.pack.config("directions").get("images", 32))
        rows = study(subject, subject.faces(faces, FACES_SEED), images, table_images)
    except StyleclipError as error:
        raise click.ClickException(str(error)) from None
    click.echo(str(write(out / NAME, rows)))


if __name__ == "__main__":
    main()
